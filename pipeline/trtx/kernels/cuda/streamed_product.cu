// Products of up to 128 tokens with a weight, for which reading the weight is what takes the time.
//
// A block has R rows of the weight and all tokens; the copy engine brings tiles of 128 bytes of each row into a ring, and
// two warp groups multiply what has come. A model's weight depends on nothing: a block fills its ring while the kernels before
// this one still run, and waits for them before it asks for the tokens. Where the weight has too few rows to occupy the
// device, the blocks of a cluster share the columns. Of up to eight tokens they send their sums to the first one, and end
// before it has added them up, so that the next kernel can fill their place; of more, each adds up what it fetches of all.
//
// Legend: M tokens, T their number rounded up to a tile's, N rows of the weight, K columns, S blocks that share columns.

#include "hopper.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int MAX_CLUSTER = 8;  // that every device takes
constexpr int GROUPS = 2;
constexpr int THREADS = GROUPS * WARP_GROUP + WARP;  // the last warp asks for copies
constexpr int MULTIPROCESSOR_BYTES = 227 << 10;      // of shared memory; 1 KB a block is the system's

constexpr int BARRIER_BYTES = 256;
constexpr int SENT_TOKENS = 8;  // so many tokens' sums are sent at most
constexpr int ROWS = 16;        // of a warp

struct Maps {
  CUtensorMap weight, x;
};

template <int T, int R>
struct Plan {
  static constexpr int BLOCKS = R / WARP_GROUP;  // of 64 rows, by a warp group
  // Two blocks share a multiprocessor, so that one loads while another ends, unless sums and tokens take too much.
  static constexpr int TOGETHER = BLOCKS == 2 && T >= 64 ? 1 : 2;
  // The weight's ring is as deep as memory allows: what is in it when the kernel before ends costs no time. Tokens come
  // from the second cache.
  static constexpr int WEIGHT_BYTES = R * TILE_BYTES, TOKEN_BYTES = T * TILE_BYTES, TOKEN_STAGES = TOGETHER == 1 ? 4 : 3;
  static constexpr int BUDGET = MULTIPROCESSOR_BYTES / TOGETHER - (1 << 10) - BARRIER_BYTES - TOKEN_STAGES * TOKEN_BYTES;
  static constexpr int STAGES = BUDGET / WEIGHT_BYTES < 12 ? BUDGET / WEIGHT_BYTES : 12;
  static_assert(STAGES >= TOKEN_STAGES);
  static constexpr int STRIDE = R + 4;  // of sums, so that neighbouring tokens lie in different banks
  static constexpr int RING_BYTES = STAGES * WEIGHT_BYTES + TOKEN_STAGES * TOKEN_BYTES;
  static constexpr int ROUNDED_BYTES = 2 * R + 16;  // of a token's rounded sums, likewise
  static_assert(RING_BYTES >= T * STRIDE * int(sizeof(float)) && RING_BYTES >= T * ROUNDED_BYTES);
  static constexpr int SHARED_BYTES = RING_BYTES + BARRIER_BYTES;
  static_assert((2 * (STAGES + TOKEN_STAGES) + 1) * int(sizeof(uint64_t)) <= BARRIER_BYTES);
  // Of few tokens: the sums of one block.
  static constexpr int SUMS_BYTES = R * SENT_TOKENS * int(sizeof(float));
  static_assert(RING_BYTES >= SENT_TOKENS * ROUNDED_BYTES + MAX_CLUSTER * SUMS_BYTES);
};

// Two tokens a lane, of few.
__device__ __forceinline__ bool has_token(int lane, int M) { return lane % 4 * 2 < M; }
__device__ __forceinline__ int count_lanes(int M) { return (M + 1) / 2 * (WARP / 4); }

// What the sums of four rows from `row` on are multiplied by.
__device__ __forceinline__ float4 load_scale(const StreamedTask& task, float factor, int row) {
  const float4 own = task.scale ? *reinterpret_cast<const float4*>(task.scale + row) : make_float4(1, 1, 1, 1);
  return make_float4(own.x * factor, own.y * factor, own.z * factor, own.w * factor);
}

__device__ __forceinline__ float4 multiply(const float4& a, const float4& b) {
  return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

__device__ __forceinline__ void store4(const StreamedTask& task, float y_scale, int64_t at, float4 v) {
  if (task.y_scale) {
    const float numbers[4] = {v.x, v.y, v.z, v.w};
    *reinterpret_cast<uint32_t*>(static_cast<char*>(task.y) + at) = to_e4m3x4(numbers, y_scale);
  } else {
    *reinterpret_cast<uint2*>(static_cast<bf16*>(task.y) + at) = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
  }
}

// The sum of what the S blocks of a cluster have at this place.
__device__ __forceinline__ float4 add_parts(const float* at, int S) {
  float4 parts[MAX_CLUSTER];
#pragma unroll
  for (int rank = 0; rank < MAX_CLUSTER; ++rank)
    parts[rank] = rank < S ? load_of_block(shared_address(at), rank) : make_float4(0, 0, 0, 0);
  float4 sum = parts[0];
#pragma unroll
  for (int rank = 1; rank < MAX_CLUSTER; ++rank)
    sum.x += parts[rank].x, sum.y += parts[rank].y, sum.z += parts[rank].z, sum.w += parts[rank].w;
  return sum;
}

// A warp group's sums of 64 rows from `row` on, times their scales, as bf16 at [token][row] of shared memory.
template <int T, int R>
__device__ __forceinline__ void keep_rounded(
    char* rounded, const float (&sums)[T / 2], int row, const float* scale, int scale_row, int scale_rows, float factor) {
  constexpr int ROW_BYTES = Plan<T, R>::ROUNDED_BYTES;
  const int warp = threadIdx.x / WARP % 4, lane = threadIdx.x % WARP;
  float scales[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own = scale_row + warp * 16 + half * 8 + lane / 4;
    scales[half] = scale && own < scale_rows ? scale[own] * factor : factor;
  }
  // Lanes 0 … 7 and 8 … 15 name columns of the first and the last 8 rows, 16 … 31 those of the next 8 tokens.
  char* to = rounded + (lane % 8 + lane / 16 * 8) * ROW_BYTES + (row + warp * 16 + lane / 8 % 2 * 8) * 2;
  const auto pair = [&](int i, int half) {
    return pack(sums[4 * i + 2 * half] * scales[half], sums[4 * i + 2 * half + 1] * scales[half]);
  };
  if constexpr (T == 8) {
    store_turned2(to, pair(0, 0), pair(0, 1));
  } else {
#pragma unroll
    for (int i = 0; i < T / 8; i += 2)
      store_turned4(to + i * 8 * ROW_BYTES, pair(i, 0), pair(i, 1), pair(i + 1, 0), pair(i + 1, 1));
  }
}

// 8 columns of a token at a time, from there to where they belong.
template <int T, int R, bool IS_GATED>
__device__ __forceinline__ void write_rounded(const StreamedTask& task, const char* rounded, int first, float y_scale) {
  constexpr int WIDTH = IS_GATED ? R / 2 : R, OWN = WIDTH / 8, AT_ONCE = THREADS / OWN;
  const int columns = IS_GATED ? task.N / 2 : task.N, column = threadIdx.x % OWN * 8;
  if (threadIdx.x >= AT_ONCE * OWN || first + column >= columns) return;
  for (int token = threadIdx.x / OWN; token < task.M; token += AT_ONCE) {
    const char* from = rounded + token * Plan<T, R>::ROUNDED_BYTES + column * 2;
    const int64_t at = int64_t(token) * columns + first + column;
    uint4 v = load16(from);
    if (IS_GATED || task.y_scale) {
      float x[8];
      unpack8(v, x);
      if constexpr (IS_GATED) {
        float ups[8];
        unpack8(load16(from + R), ups);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = gate_one(x[i], ups[i]);
      }
      if (task.y_scale) {
        store8_e4m3(static_cast<char*>(task.y) + at, x, y_scale);
        continue;
      }
      v = pack8(x);
    }
    *reinterpret_cast<uint4*>(static_cast<bf16*>(task.y) + at) = v;
  }
}

// The same of sums that are shared out over the blocks of a cluster: 4 columns of a token at a time.
template <int T, int R, bool IS_GATED>
__device__ __forceinline__ void write_joined(
    const StreamedTask& task, const float* part, int first, float factor, float y_scale) {
  constexpr int WIDTH = IS_GATED ? R / 2 : R, STRIDE = Plan<T, R>::STRIDE;
  const int S = task.S, share = blockIdx.x, columns = IS_GATED ? task.N / 2 : task.N;
  const int from = WIDTH / 4 * share / S, own = WIDTH / 4 * (share + 1) / S - from, at_once = THREADS / own;
  const int column = (from + threadIdx.x % own) * 4;
  if (threadIdx.x >= at_once * own || first + column >= columns) return;
  const float4 scale = load_scale(task, factor, first + column);
  const float4 up_scale = IS_GATED ? load_scale(task, factor, columns + first + column) : scale;
#pragma unroll 2
  for (int token = threadIdx.x / own; token < task.M; token += at_once) {
    const float* at = part + token * STRIDE + column;
    float4 v = multiply(add_parts(at, S), scale);
    if constexpr (IS_GATED) {
      const float4 up = multiply(add_parts(at + R / 2, S), up_scale);
      const auto gated = [](float a, float b) { return gate_one(round_bf16(a), round_bf16(b)); };
      v = make_float4(gated(v.x, up.x), gated(v.y, up.y), gated(v.z, up.z), gated(v.w, up.w));
    }
    store4(task, y_scale, int64_t(token) * columns + first + column, v);
  }
}

// The same of few tokens: a warp sends its sums to the first block, which waits for those of all S, adds them up in the
// order of the blocks, and keeps them rounded. `sums` are of the 64 rows from `row` on; see keep_rounded.
template <int R>
__device__ __forceinline__ void send_sums(char* ring, uint64_t* received, const float (&sums)[4], int b, int share, int M) {
  using P = Plan<SENT_TOKENS, R>;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  char* to = ring + SENT_TOKENS * P::ROUNDED_BYTES + share * P::SUMS_BYTES;
  if (has_token(lane, M)) send_to_block(to + ((b * GROUPS * 4 + warp) * WARP + lane) * int(sizeof(float4)), sums, 0, received);
}

template <int R>
__device__ __forceinline__ void receive_sums(const char* ring, float (&sums)[4], int b, int S) {
  using P = Plan<SENT_TOKENS, R>;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const char* from = ring + SENT_TOKENS * P::ROUNDED_BYTES + ((b * GROUPS * 4 + warp) * WARP + lane) * int(sizeof(float4));
  float4 parts[MAX_CLUSTER];
#pragma unroll
  for (int block = 0; block < MAX_CLUSTER; ++block)
    parts[block] =
        block < S ? *reinterpret_cast<const float4*>(from + block * P::SUMS_BYTES) : make_float4(0, 0, 0, 0);
  sums[0] = parts[0].x, sums[1] = parts[0].y, sums[2] = parts[0].z, sums[3] = parts[0].w;
#pragma unroll
  for (int block = 1; block < MAX_CLUSTER; ++block)
    sums[0] += parts[block].x, sums[1] += parts[block].y, sums[2] += parts[block].z, sums[3] += parts[block].w;
}

template <bool IS_E4M3, int T, int R, bool IS_GATED>
__global__ void __launch_bounds__(THREADS, Plan<T, R>::TOGETHER)
    streamed_product(const __grid_constant__ Maps maps, const __grid_constant__ StreamedTask task) {
  using P = Plan<T, R>;
  constexpr int NUMBERS = IS_E4M3 ? 128 : 64;  // in a row of a tile
  extern __shared__ __align__(1024) char ring[];  // tiles of a swizzle begin at multiples of 1,024
  uint64_t* full = reinterpret_cast<uint64_t*>(ring + P::RING_BYTES);
  uint64_t *empty = full + P::STAGES, *tokens_full = empty + P::STAGES, *tokens_empty = tokens_full + P::TOKEN_STAGES;
  uint64_t* received = tokens_empty + P::TOKEN_STAGES;
  char* tokens_ring = ring + P::STAGES * P::WEIGHT_BYTES;
  float* part = reinterpret_cast<float*>(ring);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int S = task.S, share = blockIdx.x, rows_half = R / 2;
  const bool is_sent = T == SENT_TOKENS && S > 1;
  // A gated product has gates in the upper half of a tile and what they gate in the lower one.
  const int first = blockIdx.y * (IS_GATED ? rows_half : R), second = IS_GATED ? task.N / 2 + first : first + rows_half;
  const int chunks = (task.K + NUMBERS - 1) / NUMBERS;
  const int begin = chunks * share / S, count = chunks * (share + 1) / S - begin;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < P::STAGES; ++stage) init_barrier(full + stage, 1), init_barrier(empty + stage, GROUPS);
    for (int stage = 0; stage < P::TOKEN_STAGES; ++stage)
      init_barrier(tokens_full + stage, 1), init_barrier(tokens_empty + stage, GROUPS);
    init_barrier(received, 1);
    publish_barriers();
    if (is_sent && share == 0) arrive_for(received, S * (R / ROWS) * count_lanes(task.M) * int(sizeof(float4)));
  }
  // Scales are weights, too.
  const float factor = task.factor ? *task.factor : 1.f, y_scale = task.y_scale ? *task.y_scale : 1.f;
  __syncthreads();
  let_next_start();
  float sums[P::BLOCKS][T / 2] = {};
  if (warp == GROUPS * 4) {
    if (lane == 0) {
      prefetch_map(maps.weight);
      prefetch_map(maps.x);
      const auto ask_weight = [&](int i) {
        const int stage = i % P::STAGES, column = (begin + i) * NUMBERS;
        char* to = ring + stage * P::WEIGHT_BYTES;
        if (i >= P::STAGES) wait_for(empty + stage, (i / P::STAGES + 1) & 1);
        arrive_for(full + stage, P::WEIGHT_BYTES);
        copy_tile(to, maps.weight, column, first, full + stage, READ_ONCE);
        copy_tile(to + P::WEIGHT_BYTES / 2, maps.weight, column, second, full + stage, READ_ONCE);
      };
      const auto ask_tokens = [&](int i) {
        const int stage = i % P::TOKEN_STAGES;
        if (i >= P::TOKEN_STAGES) wait_for(tokens_empty + stage, (i / P::TOKEN_STAGES + 1) & 1);
        arrive_for(tokens_full + stage, P::TOKEN_BYTES);
        copy_tile(tokens_ring + stage * P::TOKEN_BYTES, maps.x, (begin + i) * NUMBERS, 0, tokens_full + stage, READ_OFTEN);
      };
      const int ahead = P::STAGES - P::TOKEN_STAGES;  // of the weight's ring before the tokens'
      if (task.is_new) wait_for_inputs();
      for (int i = 0; i < min(count, P::STAGES); ++i) ask_weight(i);
      wait_for_inputs();
      for (int i = 0; i < count; ++i) {
        ask_tokens(i);
        const int later = i + ahead;
        if (later >= P::STAGES && later < count) ask_weight(later);
      }
    }
    __syncwarp();
  } else {
    const int group = warp / 4;
    for (int i = 0; i < count; ++i) {
      const int stage = i % P::STAGES;
      const char* tile = ring + stage * P::WEIGHT_BYTES;
      const char* token_tile = tokens_ring + i % P::TOKEN_STAGES * P::TOKEN_BYTES;
      wait_for(full + stage, i / P::STAGES & 1);
      wait_for(tokens_full + i % P::TOKEN_STAGES, i / P::TOKEN_STAGES & 1);
      begin_products();
#pragma unroll
      for (int step = 0; step < TILE_BYTES / 32; ++step) {
        const uint64_t tokens = describe_tile(token_tile) + step * 2;
#pragma unroll
        for (int b = 0; b < P::BLOCKS; ++b) {
          const uint64_t rows = describe_tile(tile + (group * P::BLOCKS + b) * 64 * TILE_BYTES) + step * 2;
          multiply_tiles<IS_E4M3, T>(sums[b], rows, tokens);
        }
      }
      commit_products();
      // The products of the tile before have ended: its place can be filled again.
      finish_products<1>();
      if (i > 0 && threadIdx.x % WARP_GROUP == 0) {
        arrive(empty + (i - 1) % P::STAGES);
        arrive(tokens_empty + (i - 1) % P::TOKEN_STAGES);
      }
    }
    finish_products<0>();
    // Both groups have read all tiles: the ring takes the sums.
    if (!is_sent) asm volatile("bar.sync 1, %0;" ::"n"(GROUPS* WARP_GROUP) : "memory");
  }
  if constexpr (T == SENT_TOKENS) {
    if (is_sent) {
      // Everybody's ring is free, and has a barrier.
      meet_cluster();
      if (warp < GROUPS * 4) {
#pragma unroll
        for (int b = 0; b < P::BLOCKS; ++b) send_sums<R>(ring, received, sums[b], b, share, task.M);
      }
      if (share != 0) return;
      if (warp < GROUPS * 4) {
        wait_for_cluster(received, 0);
#pragma unroll
        for (int b = 0; b < P::BLOCKS; ++b) receive_sums<R>(ring, sums[b], b, S);
      }
    }
  }
  if (S == 1 || is_sent) {
    if (warp < GROUPS * 4) {
#pragma unroll
      for (int b = 0; b < P::BLOCKS; ++b) {
        const int row = (warp / 4 * P::BLOCKS + b) * 64, scale_row = row < R / 2 ? first + row : second + row - R / 2;
        keep_rounded<T, R>(ring, sums[b], row, task.scale, scale_row, task.N, factor);
      }
    }
    __syncthreads();
    return write_rounded<T, R, IS_GATED>(task, ring, first, y_scale);
  }
  if (warp < GROUPS * 4) {
#pragma unroll
    for (int b = 0; b < P::BLOCKS; ++b) {
      float* to = part + lane % 4 * 2 * P::STRIDE + (warp / 4 * P::BLOCKS + b) * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
      for (int i = 0; i < T / 2; ++i) to[(i / 4 * 8 + i % 2) * P::STRIDE + i % 4 / 2 * 8] = sums[b][i];
    }
  }
  meet_cluster();
  write_joined<T, R, IS_GATED>(task, part, first, factor, y_scale);
  // Nobody may leave whose shared memory is still read.
  end_cluster();
}

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status);
    return status == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  return found;
}

// Tiles of `tile_rows` rows and TILE_BYTES of a matrix whose rows lie one after another.
bool describe(CUtensorMap* map, const void* matrix, bool is_e4m3, int rows, int columns, int tile_rows) {
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)};
  const cuuint64_t stride[1] = {cuuint64_t(columns) * (is_e4m3 ? 1 : 2)};
  const cuuint32_t box[2] = {cuuint32_t(is_e4m3 ? 128 : 64), cuuint32_t(tile_rows)}, steps[2] = {1, 1};
  const Encode encode = find_encode();
  return encode != nullptr &&
         encode(map, is_e4m3 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix),
                sizes, stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <bool IS_E4M3, int T, int R, bool IS_GATED>
bool launch(const StreamedTask& task, cudaStream_t stream) {
  using P = Plan<T, R>;
  Maps maps;
  if (!describe(&maps.weight, task.weight, IS_E4M3, task.N, task.K, R / 2) ||
      !describe(&maps.x, task.x, IS_E4M3, task.M, task.K, T))
    return false;
  const auto kernel = streamed_product<IS_E4M3, T, R, IS_GATED>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::SHARED_BYTES);
  const int width = IS_GATED ? R / 2 : R, columns = IS_GATED ? task.N / 2 : task.N;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(task.S), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(task.S, (columns + width - 1) / width), config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = P::SHARED_BYTES, config.stream = stream;
  config.attrs = attributes, config.numAttrs = task.S > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, maps, task) == cudaSuccess;
}

template <bool IS_E4M3, int R, bool IS_GATED>
bool run_sized(const StreamedTask& task, cudaStream_t stream) {
  if (task.M <= 8) return launch<IS_E4M3, 8, R, IS_GATED>(task, stream);
  if (task.M <= 16) return launch<IS_E4M3, 16, R, IS_GATED>(task, stream);
  if (task.M <= 32) return launch<IS_E4M3, 32, R, IS_GATED>(task, stream);
  if (task.M <= 64) return launch<IS_E4M3, 64, R, IS_GATED>(task, stream);
  if (task.M <= 96) return launch<IS_E4M3, 96, R, IS_GATED>(task, stream);
  return launch<IS_E4M3, 128, R, IS_GATED>(task, stream);
}

template <bool IS_E4M3, bool IS_GATED>
bool run_rows(const StreamedTask& task, cudaStream_t stream) {
  return task.R == 256 ? run_sized<IS_E4M3, 256, IS_GATED>(task, stream) : run_sized<IS_E4M3, 128, IS_GATED>(task, stream);
}

}  // namespace

bool run_streamed_product(const StreamedTask& task, cudaStream_t stream) {
  if (task.is_e4m3) return task.is_gated ? run_rows<true, true>(task, stream) : run_rows<true, false>(task, stream);
  return task.is_gated ? run_rows<false, true>(task, stream) : run_rows<false, false>(task, stream);
}

}  // namespace trtx
