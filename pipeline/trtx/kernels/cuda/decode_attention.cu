// Attention of one token a sequence: every key and value is read once, from where it lies in the pools.
//
// A block has one sequence, one key-value head and up to eight of its query heads. Its warps take runs of 16 tokens of the
// context in turn and keep their own softmax (Milakov and Gimelshein, arXiv:1805.02867), which are joined at the end. Both
// products are matrix instructions with the heads as rows, so that a lane's scores are its part of the weights of the
// second one. Few sequences with long contexts are split over blocks, of which the last to end joins the parts
// (Dao et al., "Flash-Decoding").
//
// Legend: B sequences, H query heads, G key-value heads, D channels.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int HEADS = 8;
constexpr int RUN = 16;  // tokens that a warp takes at a time
// Runs of a warp that are in shared memory or on their way.
template <PoolNumber P>
constexpr int STAGES = P == PoolNumber::bf16 ? 2 : 3;
constexpr int FEW_CONTEXTS = 132, SOME_CONTEXTS = 512, MANY_CONTEXTS = 1024;
constexpr int MIN_RUNS = 12;  // of a split
constexpr float NOTHING = -1e30f;

template <PoolNumber P>
constexpr int BYTES = P == PoolNumber::bf16 ? 2 : 1;
// Numbers in 16 bytes.
template <PoolNumber P>
constexpr int NUMBERS = 16 / BYTES<P>;

// The channel of the first of the four numbers that lane `part` gives to instruction m of the scores: a lane takes 16
// bytes of a key at a time. The order of channels does not matter as long as queries have the same one.
template <PoolNumber P>
__device__ __forceinline__ int first_channel(int m, int part) {
  constexpr int PER_LOAD = NUMBERS<P> / 4;
  return m / PER_LOAD * 4 * NUMBERS<P> + part * NUMBERS<P> + m % PER_LOAD * 4;
}

// Rows of 16-byte chunks in shared memory: chunks change places by the row's number, so that neither the four chunks of
// two neighbouring rows nor one chunk of eight lie in the same banks.
template <int CHUNKS>
__device__ __forceinline__ int place_of(int chunk, int token) {
  return chunk ^ ((token % 2 * 4 ^ token / 2 % 4) & (CHUNKS - 1));
}

__device__ __forceinline__ void mma_f16(float d[4], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(0), "r"(a2), "r"(0), "r"(b0), "r"(b1));
}

// The heads are the upper eight rows; below them is nothing.
template <PoolNumber P>
__device__ __forceinline__ void multiply(float d[4], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1) {
  if constexpr (P == PoolNumber::bf16) mma_bf16(d, a0, 0, a2, 0, b0, b1);
  else mma_f16(d, a0, a2, b0, b1);
}

__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// As what the matrix instructions multiply: bf16 beside a pool of bf16, else half precision.
template <PoolNumber P>
__device__ __forceinline__ uint32_t pack_for(float low, float high) {
  return P == PoolNumber::bf16 ? pack(low, high) : pack_halves(low, high);
}

// Two numbers of 8 bits, in the low half of a word, as half precision.
template <PoolNumber P>
__device__ __forceinline__ uint32_t to_halves(uint32_t pair) {
  uint32_t halves;
  if constexpr (P == PoolNumber::e4m3) {
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  } else {
    // 0x6400 is 1024, whose steps are 1; the sign bit is turned so that -128 is 0.
    halves = __byte_perm(pair ^ 0x8080u, 0x64u, 0x4140);
    const __half2 moved = __hsub2(*reinterpret_cast<const __half2*>(&halves), __floats2half2_rn(1152.f, 1152.f));
    halves = *reinterpret_cast<const uint32_t*>(&moved);
  }
  return halves;
}

__device__ __forceinline__ void load_transposed(uint32_t v[4], const char* from) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(address));
}

// Four channels of softmax-weighted values, joined from parts that have their own largest score.
struct Joined {
  float top = NOTHING, sum = 0;
  float4 value = make_float4(0, 0, 0, 0);

  __device__ __forceinline__ void add(const float4& other, float other_top, float other_sum) {
    const float larger = fmaxf(top, other_top), a = __expf(top - larger), b = __expf(other_top - larger);
    top = larger;
    sum = sum * a + other_sum * b;
    value.x = value.x * a + other.x * b, value.y = value.y * a + other.y * b;
    value.z = value.z * a + other.z * b, value.w = value.w * a + other.w * b;
  }
};

__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ __forceinline__ void store_result(
    const AttentionTask& task, int64_t at, const Joined& all, float v_scale, float y_scale) {
  const float factor = all.sum > 0 ? v_scale / all.sum : 0.f;
  const float x[4] = {all.value.x * factor, all.value.y * factor, all.value.z * factor, all.value.w * factor};
  if (task.y_scale)
    *reinterpret_cast<uint32_t*>(static_cast<char*>(task.y) + at) = to_e4m3x4(x, y_scale);
  else
    *reinterpret_cast<uint2*>(static_cast<bf16*>(task.y) + at) = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
}

template <PoolNumber P, int D, int WARPS>
__global__ void __launch_bounds__(WARPS* WARP) decode(AttentionTask task) {
  constexpr int ROW = D * BYTES<P>, CHUNKS = ROW / 16, TOGETHER = WARP / CHUNKS, COPIES = RUN / TOGETHER;
  constexpr int LOADS = CHUNKS / 4;  // of 16 bytes, by a lane, for a key
  __shared__ __align__(16) float joined[WARPS][HEADS][D + 4];
  __shared__ bool is_last;
  extern __shared__ __align__(16) char memory[];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, part = lane % 4;
  const int per_head = task.H / task.G, shares = (per_head + HEADS - 1) / HEADS;
  const int g = blockIdx.x / shares, first_head = g * per_head + blockIdx.x % shares * HEADS;
  const int heads = min(HEADS, per_head - blockIdx.x % shares * HEADS);
  const int b = blockIdx.y, split = blockIdx.z;
  let_next_start();
  // Scales are weights: they wait for nothing.
  const float scale = task.scale * (task.k_scale ? *task.k_scale : 1.f), v_scale = task.v_scale ? *task.v_scale : 1.f;
  const float y_scale = task.y_scale ? *task.y_scale : 1.f;
  wait_for_inputs();
  const int length = task.context_lens[b];
  const int begin = task.window > 0 ? max(0, length - task.window) : 0;
  // Splits take the same number of runs, but no fewer than are worth it: a short context is one block's, the others end.
  const int runs = (length - begin / RUN * RUN + RUN - 1) / RUN;
  const int share = max((runs + task.splits - 1) / task.splits, MIN_RUNS);
  const int splits = max(1, (runs + share - 1) / share);
  if (split >= splits) return;
  const int first_run = begin / RUN + split * share, end_run = min(begin / RUN + runs, first_run + share);
  const int32_t* table = task.block_tables + int64_t(b) * task.W;
  const int64_t row_bytes = int64_t(task.G) * ROW, head_bytes = int64_t(g) * ROW, block_bytes = task.S * row_bytes;
  const char* keys = static_cast<const char*>(task.k_pool) + head_bytes;
  const char* values = static_cast<const char*>(task.v_pool) + head_bytes;

  // Keys and values of a run pass through shared memory of the warp's own, so that many bytes are on their way without
  // holding registers.
  char* ring = memory + warp * STAGES<P> * 2 * RUN * ROW;
  const int token_in = lane / CHUNKS, chunk = lane % CHUNKS;
  const auto start_copy = [&](int run, int stage) {
    // Lanes l and l + RUN have the same token of a run; this is where it lies.
    const int mine = run * RUN + lane % RUN;
    const int64_t place_in = mine < length ? table[mine / task.S] * block_bytes + mine % task.S * row_bytes : int64_t(0);
    char* to = ring + stage * 2 * RUN * ROW;
#pragma unroll
    for (int i = 0; i < COPIES; ++i) {
      const int token = i * TOGETHER + token_in;
      const int64_t at = __shfl_sync(ALL, place_in, token) + chunk * 16;
      char* place = to + token * ROW + place_of<CHUNKS>(chunk, token) * 16;
      // Not even the null block is read for tokens that are not there: all blocks would meet in its few lines.
      const bool is_there = run * RUN + token < length;
      copy_async(place, keys + at, is_there);
      copy_async(place + RUN * ROW, values + at, is_there);
    }
  };
#pragma unroll
  for (int ahead = 0; ahead < STAGES<P> - 1; ++ahead) {
    const int run = first_run + warp + ahead * WARPS;
    if (run < end_run) start_copy(run, ahead);
    commit_copies();
  }
  uint32_t q[D / 16][2];
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
    const bf16* from = static_cast<const bf16*>(task.q) + (int64_t(b) * task.H + first_head + min(group, heads - 1)) * D;
    const uint2 four = *reinterpret_cast<const uint2*>(from + first_channel<P>(m, part));
    const float2 x = unpack(four.x), z = unpack(four.y);
    q[m][0] = group < heads ? pack_for<P>(x.x, x.y) : 0u, q[m][1] = group < heads ? pack_for<P>(z.x, z.y) : 0u;
  }
  float largest = NOTHING, total = 0, y[D / 8][4] = {};  // of head `group`; `total` of this lane's tokens only
  int stage = 0;
  for (int run = first_run + warp; run < end_run; run += WARPS) {
    const int later = run + (STAGES<P> - 1) * WARPS;
    if (later < end_run) start_copy(later, (stage + STAGES<P> - 1) % STAGES<P>);
    commit_copies();
    wait_for_copies<STAGES<P> - 1>();
    __syncwarp();
    const char* key_rows = ring + stage * 2 * RUN * ROW;
    const char* value_rows = key_rows + RUN * ROW;
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int token = n * 8 + group;
        const uint4 k = load16(key_rows + token * ROW + place_of<CHUNKS>(i * 4 + part, token) * 16);
        if constexpr (P == PoolNumber::bf16) {
          multiply<P>(sums[n], q[2 * i][0], q[2 * i][1], k.x, k.y);
          multiply<P>(sums[n], q[2 * i + 1][0], q[2 * i + 1][1], k.z, k.w);
        } else {
          const uint32_t words[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
          for (int w = 0; w < 4; ++w)
            multiply<P>(sums[n], q[4 * i + w][0], q[4 * i + w][1], to_halves<P>(words[w] & 0xffff), to_halves<P>(words[w] >> 16));
        }
      }
    }
    // Tokens 2 part and + 1 of the run, and the same of its second half.
    float p[4], top = largest;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = run * RUN + i / 2 * 8 + part * 2 + i % 2;
      float score = sums[i / 2][i % 2] * scale;
      if (task.softcap > 0) score = task.softcap * tanhf(score / task.softcap);
      p[i] = token >= begin && token < length ? score : NOTHING;
      top = fmaxf(top, p[i]);
    }
    top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(ALL, top, 2));
    const float shrink = __expf(largest - top);
    largest = top;
    total *= shrink;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = p[i] == NOTHING ? 0.f : __expf(p[i] - top);
      total += p[i];
    }
#pragma unroll
    for (int d = 0; d < D / 8; ++d) y[d][0] *= shrink, y[d][1] *= shrink;
    const uint32_t early = pack_for<P>(p[0], p[1]), late = pack_for<P>(p[2], p[3]);
#pragma unroll
    for (int c = 0; c < CHUNKS; c += 2) {
      // Tokens 0 … 7 and 8 … 15 of two chunks.
      uint32_t v[4];
      const int token = lane % 16;
      load_transposed(v, value_rows + token * ROW + place_of<CHUNKS>(c + lane / 16, token) * 16);
      if constexpr (P == PoolNumber::bf16) {
        multiply<P>(y[c], early, late, v[0], v[1]);
        multiply<P>(y[c + 1], early, late, v[2], v[3]);
      } else {
        // What was moved are pairs of channels: even ones make one product, odd ones another.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t low = v[2 * half], high = v[2 * half + 1];
          multiply<P>(y[2 * (c + half)], early, late, to_halves<P>(__byte_perm(low, 0, 0x4420)),
                      to_halves<P>(__byte_perm(high, 0, 0x4420)));
          multiply<P>(y[2 * (c + half) + 1], early, late, to_halves<P>(__byte_perm(low, 0, 0x4431)),
                      to_halves<P>(__byte_perm(high, 0, 0x4431)));
        }
      }
    }
    __syncwarp();
    stage = (stage + 1) % STAGES<P>;
  }
  total += __shfl_xor_sync(ALL, total, 1);
  total += __shfl_xor_sync(ALL, total, 2);
#pragma unroll
  for (int d = 0; d < D / 8; ++d) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = part * 2 + i;
      const int channel = P == PoolNumber::bf16 ? d * 8 + column : d / 2 * 16 + column * 2 + d % 2;
      joined[warp][group][channel] = y[d][i];
    }
  }
  if (part == 0) joined[warp][group][D] = largest, joined[warp][group][D + 1] = total;
  __syncthreads();
  for (int index = threadIdx.x; index < heads * D / 4; index += WARPS * WARP) {
    const int h = index / (D / 4), d = index % (D / 4) * 4;
    const int64_t row = int64_t(b) * task.H + first_head + h;
    Joined all;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) all.add(load4(joined[w][h] + d), joined[w][h][D], joined[w][h][D + 1]);
    if (splits == 1) {
      store_result(task, row * D + d, all, v_scale, y_scale);
    } else {
      float* to = task.partials + (row * task.splits + split) * (D + 4);
      *reinterpret_cast<float4*>(to + d) = all.value;
      if (d == 0) to[D] = all.top, to[D + 1] = all.sum;
    }
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  int32_t* counter = task.counters + int64_t(b) * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) is_last = atomicAdd(counter, 1) == splits - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int index = threadIdx.x; index < heads * D / 4; index += WARPS * WARP) {
    const int h = index / (D / 4), d = index % (D / 4) * 4;
    const int64_t row = int64_t(b) * task.H + first_head + h;
    Joined all;
    for (int s = 0; s < splits; ++s) {
      const float* from = task.partials + (row * task.splits + s) * (D + 4);
      all.add(__ldcg(reinterpret_cast<const float4*>(from + d)), __ldcg(from + D), __ldcg(from + D + 1));
    }
    store_result(task, row * D + d, all, v_scale, y_scale);
  }
  if (threadIdx.x == 0) *counter = 0;
}

template <PoolNumber P, int D, int WARPS>
void launch(const AttentionTask& task, int blocks_per_sequence, cudaStream_t stream) {
  constexpr int bytes = WARPS * STAGES<P> * 2 * RUN * D * BYTES<P>;
  const auto kernel = decode<P, D, WARPS>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  launch_early(kernel, dim3(blocks_per_sequence, task.B, task.splits), WARPS * WARP, stream, task, bytes);
}

// Warps share a context where there are few contexts; where there are many, all of them are under way at once.
template <PoolNumber P, int D>
void run(const AttentionTask& task, cudaStream_t stream) {
  const int per_head = task.H / task.G, blocks = task.G * ((per_head + HEADS - 1) / HEADS);
  const bool is_narrow = P != PoolNumber::bf16;
  if (is_narrow && blocks * task.B >= MANY_CONTEXTS) return launch<P, D, 1>(task, blocks, stream);
  if (blocks * task.B >= SOME_CONTEXTS) return launch<P, D, 2>(task, blocks, stream);
  // Eight warps' rings of the widest heads would not fit.
  if (D > 128 || blocks * task.B * task.splits > FEW_CONTEXTS) return launch<P, D, 4>(task, blocks, stream);
  if constexpr (D <= 128) launch<P, D, 8>(task, blocks, stream);
}

template <PoolNumber P>
void run_sized(const AttentionTask& task, cudaStream_t stream) {
  if (task.D == 64) return run<P, 64>(task, stream);
  if (task.D == 128) return run<P, 128>(task, stream);
  run<P, 256>(task, stream);
}

}  // namespace

bool has_attention(int head_dim, int heads_per_kv_head) {
  return (head_dim == 64 || head_dim == 128 || head_dim == 256) && heads_per_kv_head <= 64;
}

void run_decode_attention(const AttentionTask& task, cudaStream_t stream) {
  switch (task.pool_number) {
    case PoolNumber::bf16: return run_sized<PoolNumber::bf16>(task, stream);
    case PoolNumber::e4m3: return run_sized<PoolNumber::e4m3>(task, stream);
    case PoolNumber::int8: return run_sized<PoolNumber::int8>(task, stream);
  }
}

}  // namespace trtx
