// Products of up to 128 tokens with a weight, for which reading the weight is what takes the time.
//
// A block has R rows of the weight and all tokens; the copy engine brings tiles of 128 bytes of each row into a ring, and
// two warp groups multiply what has come. A model's weight depends on nothing: a block fills its ring while the kernels before
// this one still run, and waits for them before it asks for the tokens. Where the weight has too few rows to occupy the
// device, the blocks of a cluster share the columns: each sends its sums of some tokens to the block that adds those up.
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
constexpr int UNIT = 8;  // tokens that the instructions keep together, and that a block adds up together
constexpr int ROWS = 16;  // of a warp, likewise

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
  static constexpr int RING_BYTES = STAGES * WEIGHT_BYTES + TOKEN_STAGES * TOKEN_BYTES;
  static constexpr int ROUNDED_BYTES = 2 * R + 16;  // of a token's rounded sums, so that tokens lie in different banks
  // Of a unit's sums, of all rows.
  static constexpr int UNIT_BYTES = UNIT * R * int(sizeof(float));
  // What a block of S needs when all is read: sums of all blocks for its tokens, and those tokens rounded.
  static constexpr int summing_bytes(int S) {
    const int own = (T / UNIT + S - 1) / S;
    return own * (S * UNIT_BYTES + UNIT * ROUNDED_BYTES);
  }
  static constexpr bool have_room() {
    for (int S = 2; S <= MAX_CLUSTER; ++S)
      if (summing_bytes(S) > RING_BYTES) return false;
    return RING_BYTES >= T * ROUNDED_BYTES;
  }
  static_assert(have_room());
  static constexpr int SHARED_BYTES = RING_BYTES + BARRIER_BYTES;
  static_assert((2 * (STAGES + TOKEN_STAGES) + 1) * int(sizeof(uint64_t)) <= BARRIER_BYTES);
};

// What a block adds up of what its cluster has: tokens in units, the first `each` of them the first block's, and so on.
struct Share {
  int units, each, begin, end;

  __device__ __forceinline__ Share(int M, int S, int block)
      : units((M + UNIT - 1) / UNIT), each((units + S - 1) / S), begin(min(units, block * each)), end(min(units, begin + each)) {}
};

// Lanes that have a token of a unit with so many tokens left: two tokens a lane.
__device__ __forceinline__ bool has_token(int left) { return threadIdx.x % 4 * 2 < left; }
__device__ __forceinline__ int count_lanes(int left) { return left >= UNIT ? WARP : (left + 1) / 2 * (WARP / 4); }

// The sum of four numbers of S blocks, in their order.
__device__ __forceinline__ void add_units(float sum[4], const char* from, int stride, int S) {
  float4 parts[MAX_CLUSTER];
#pragma unroll
  for (int block = 0; block < MAX_CLUSTER; ++block)
    parts[block] = block < S ? *reinterpret_cast<const float4*>(from + block * stride) : make_float4(0, 0, 0, 0);
  sum[0] = parts[0].x, sum[1] = parts[0].y, sum[2] = parts[0].z, sum[3] = parts[0].w;
#pragma unroll
  for (int block = 1; block < MAX_CLUSTER; ++block)
    sum[0] += parts[block].x, sum[1] += parts[block].y, sum[2] += parts[block].z, sum[3] += parts[block].w;
}

// The scales of the two rows of 16 from `row` on whose sums a lane has.
struct Scales {
  float first, second;

  __device__ __forceinline__ Scales(const StreamedTask& task, int row, float factor) {
    const int own = row + threadIdx.x % WARP / 4;
    first = task.scale && own < task.N ? task.scale[own] * factor : factor;
    second = task.scale && own + 8 < task.N ? task.scale[own + 8] * factor : factor;
  }
};

// A warp's sums of 16 rows, times their scales, as bf16 at [token][row] of shared memory. Lanes 0 … 7 and 8 … 15 name columns of the
// first and the last 8 rows, 16 … 31 those of the next 8 tokens.
template <int ROUNDED_BYTES, int UNITS>
__device__ __forceinline__ void keep_rounded(char* rounded, const float* sums, int row, const Scales& scales) {
  const int lane = threadIdx.x % WARP;
  char* to = rounded + (lane % 8 + lane / 16 * 8) * ROUNDED_BYTES + (row + lane / 8 % 2 * 8) * 2;
  const auto first = [&](int i) { return pack(sums[4 * i] * scales.first, sums[4 * i + 1] * scales.first); };
  const auto second = [&](int i) { return pack(sums[4 * i + 2] * scales.second, sums[4 * i + 3] * scales.second); };
  if constexpr (UNITS == 1) {
    store_turned2(to, first(0), second(0));
  } else {
#pragma unroll
    for (int i = 0; i < UNITS; i += 2)
      store_turned4(to + i * UNIT * ROUNDED_BYTES, first(i), second(i), first(i + 1), second(i + 1));
  }
}

// 8 columns of a token at a time, from there to where they belong: tokens `begin` to `end`, `begin` at the front.
template <int R, int ROUNDED_BYTES, bool IS_GATED>
__device__ __forceinline__ void write_rounded(
    const StreamedTask& task, const char* rounded, int first, int begin, int end, float y_scale) {
  constexpr int WIDTH = IS_GATED ? R / 2 : R, OWN = WIDTH / 8, AT_ONCE = THREADS / OWN;
  const int columns = IS_GATED ? task.N / 2 : task.N, column = threadIdx.x % OWN * 8;
  if (threadIdx.x >= AT_ONCE * OWN || first + column >= columns) return;
  for (int token = begin + threadIdx.x / OWN; token < end; token += AT_ONCE) {
    const char* from = rounded + (token - begin) * ROUNDED_BYTES + column * 2;
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
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int S = task.S, share = blockIdx.x, rows_half = R / 2;
  // A gated product has gates in the upper half of a tile and what they gate in the lower one.
  const int first = blockIdx.y * (IS_GATED ? rows_half : R), second = IS_GATED ? task.N / 2 + first : first + rows_half;
  const Share own(task.M, S, share);
  const int chunks = (task.K + NUMBERS - 1) / NUMBERS;
  const int begin = chunks * share / S, count = chunks * (share + 1) / S - begin;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < P::STAGES; ++stage) init_barrier(full + stage, 1), init_barrier(empty + stage, GROUPS);
    for (int stage = 0; stage < P::TOKEN_STAGES; ++stage)
      init_barrier(tokens_full + stage, 1), init_barrier(tokens_empty + stage, GROUPS);
    init_barrier(received, 1);
    publish_barriers();
    int lanes = 0;
    for (int unit = own.begin; unit < own.end; ++unit) lanes += count_lanes(task.M - unit * UNIT);
    arrive_for(received, S * (R / ROWS) * lanes * int(sizeof(float4)));
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
  }
  // All has been read, and the ring takes sums.
  const auto row_of = [&](int b) { return (warp / 4 * P::BLOCKS + b) * 64 + warp % 4 * ROWS; };
  const auto scales_of = [&](int row) { return Scales(task, row < rows_half ? first + row : second + row - rows_half, factor); };
  if (S == 1) {
    __syncthreads();
    if (warp < GROUPS * 4) {
#pragma unroll
      for (int b = 0; b < P::BLOCKS; ++b)
        keep_rounded<P::ROUNDED_BYTES, T / UNIT>(ring, sums[b], row_of(b), scales_of(row_of(b)));
    }
    __syncthreads();
    return write_rounded<R, P::ROUNDED_BYTES, IS_GATED>(task, ring, first, 0, task.M, y_scale);
  }
  meet_cluster();
  // Units of a block lie as [unit][block they are of][R / 16][lane], behind the place of its rounded tokens.
  char* units = ring + own.each * UNIT * P::ROUNDED_BYTES;
  const auto place_of = [&](int unit, int block, int b) {
    return units + ((((unit * S + block) * P::BLOCKS + b) * GROUPS * 4 + warp) * WARP + lane) * int(sizeof(float4));
  };
  if (warp < GROUPS * 4) {
    int to = 0;
#pragma unroll
    for (int unit = 0; unit < T / UNIT; ++unit) {
      if (unit == (to + 1) * own.each) ++to;
      if (unit >= own.units || !has_token(task.M - unit * UNIT)) continue;
#pragma unroll
      for (int b = 0; b < P::BLOCKS; ++b)
        send_to_block(place_of(unit - to * own.each, share, b), sums[b] + 4 * unit, to, received);
    }
  }
  if (own.begin == own.end) return;
  if (warp < GROUPS * 4) {
    wait_for_cluster(received, 0);
#pragma unroll
    for (int b = 0; b < P::BLOCKS; ++b) {
      const Scales scales = scales_of(row_of(b));
      for (int unit = 0; unit < own.end - own.begin; ++unit) {
        float sum[4];
        add_units(sum, place_of(unit, 0, b), place_of(unit, 1, b) - place_of(unit, 0, b), S);
        keep_rounded<P::ROUNDED_BYTES, 1>(ring + unit * UNIT * P::ROUNDED_BYTES, sum, row_of(b), scales);
      }
    }
  }
  __syncthreads();
  write_rounded<R, P::ROUNDED_BYTES, IS_GATED>(
      task, ring, first, own.begin * UNIT, min(task.M, own.end * UNIT), y_scale);
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
