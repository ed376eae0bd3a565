// Attention of one token a sequence: every key and value is read once, from where it lies in the pools.
//
// A block has one sequence, one key-value head and up to four of its query heads; its warps take runs of tokens of
// the context in turn and keep their own softmax (Milakov and Gimelshein, arXiv:1805.02867), which are joined at the end.
// Few sequences with long contexts are split over blocks, of which the last to end joins the parts (Dao et al., "Flash-Decoding").
//
// Legend: B sequences, H query heads, G key-value heads, D channels, Q query heads of a block, C channels of a value in a lane.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int WARPS = 4;
constexpr int RUN = 16;  // tokens that a warp takes at a time
constexpr float NOTHING = -1e30f;

template <PoolNumber P>
constexpr int BYTES = P == PoolNumber::bf16 ? 2 : 1;

template <PoolNumber P, int COUNT>
__device__ __forceinline__ void widen(const uint32_t* words, float* out) {
  if constexpr (P == PoolNumber::bf16) {
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      const float2 v = unpack(words[i]);
      out[2 * i] = v.x, out[2 * i + 1] = v.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT / 4; ++i) {
      const float2 a = P == PoolNumber::e4m3 ? unpack_e4m3(words[i] & 0xffff) : unpack_int8(words[i] & 0xffff);
      const float2 b = P == PoolNumber::e4m3 ? unpack_e4m3(words[i] >> 16) : unpack_int8(words[i] >> 16);
      out[4 * i] = a.x, out[4 * i + 1] = a.y, out[4 * i + 2] = b.x, out[4 * i + 3] = b.y;
    }
  }
}

template <int NUM_BYTES>
__device__ __forceinline__ void load_words(const void* from, uint32_t* words) {
  if constexpr (NUM_BYTES >= 16) {
#pragma unroll
    for (int i = 0; i < NUM_BYTES / 16; ++i) {
      const uint4 v = load_stream(static_cast<const char*>(from) + 16 * i);
      words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
    }
  } else if constexpr (NUM_BYTES == 8) {
    const uint2 v = __ldg(static_cast<const uint2*>(from));
    words[0] = v.x, words[1] = v.y;
  } else if constexpr (NUM_BYTES == 4) {
    words[0] = __ldg(static_cast<const uint32_t*>(from));
  } else {
    words[0] = __ldg(static_cast<const uint16_t*>(from));
  }
}

// Scores by matrix instructions: 16 channels of the heads (rows, of which 8 are used) times 8 tokens (columns). A lane
// takes 16 bytes of the key of token l / 4; the order of channels does not matter as long as queries have the same one.
template <PoolNumber P>
constexpr int CHANNELS_16B = P == PoolNumber::bf16 ? 8 : 16;

// The channel that the first of four numbers of instruction m comes from, in lane part.
template <PoolNumber P>
__device__ __forceinline__ int first_channel(int m, int part) {
  constexpr int PER_LOAD = CHANNELS_16B<P> / 4;
  return m / PER_LOAD * 4 * CHANNELS_16B<P> + part * CHANNELS_16B<P> + m % PER_LOAD * 4;
}

__device__ __forceinline__ void mma_f16(float d[4], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(0), "r"(a2), "r"(0), "r"(b0), "r"(b1));
}

// Four numbers of 8 bits as two pairs of half precision.
template <PoolNumber P>
__device__ __forceinline__ void to_halves(uint32_t word, uint32_t& low, uint32_t& high) {
  if constexpr (P == PoolNumber::e4m3) {
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(low) : "h"(static_cast<uint16_t>(word & 0xffff)));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(high) : "h"(static_cast<uint16_t>(word >> 16)));
  } else {
    // 0x6400 is 1024, whose steps are 1; the sign bit is turned so that -128 is 0.
    const uint32_t turned = word ^ 0x80808080u;
    low = __byte_perm(turned, 0x64646464u, 0x4140), high = __byte_perm(turned, 0x64646464u, 0x4342);
    const __half2 offset = __floats2half2_rn(1152.f, 1152.f);
    __half2 a = __hsub2(*reinterpret_cast<__half2*>(&low), offset), b = __hsub2(*reinterpret_cast<__half2*>(&high), offset);
    low = *reinterpret_cast<uint32_t*>(&a), high = *reinterpret_cast<uint32_t*>(&b);
  }
}

template <PoolNumber P, int D, int Q>
__global__ void __launch_bounds__(WARPS* WARP, D > 128 ? 2 : P == PoolNumber::bf16 ? 3 : 4) decode(AttentionTask task) {
  constexpr int LOADS = D / (4 * CHANNELS_16B<P>);  // of 16 bytes, for a key
  constexpr int C = 8, LANES = D / C, AT_ONCE = WARP / LANES;  // channels of a lane, lanes of a value, values of a warp
  __shared__ float scores[WARPS][RUN][Q];
  __shared__ float joined[WARPS][Q][D + 2];
  __shared__ bool is_last;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, part = lane % 4;
  const int per_head = task.H / task.G, quarters = (per_head + Q - 1) / Q;
  const int g = blockIdx.x / quarters, first_head = g * per_head + blockIdx.x % quarters * Q;
  const int heads = min(Q, per_head - blockIdx.x % quarters * Q);
  const int b = blockIdx.y, split = blockIdx.z;
  wait_for_inputs();
  const int length = task.context_lens[b];
  const int begin = task.window > 0 ? max(0, length - task.window) : 0;
  // Every split takes the same number of runs.
  const int runs = (length - begin / RUN * RUN + RUN - 1) / RUN, share = (runs + task.splits - 1) / task.splits;
  const int first_run = begin / RUN + split * share, end_run = min(begin / RUN + runs, first_run + share);
  const int32_t* table = task.block_tables + int64_t(b) * task.W;
  const int64_t row_bytes = int64_t(task.G) * D * BYTES<P>, head_bytes = int64_t(g) * D * BYTES<P>;
  const char* keys = static_cast<const char*>(task.k_pool) + head_bytes;
  const char* values = static_cast<const char*>(task.v_pool) + head_bytes;
  const float scale = task.scale * (task.k_scale ? *task.k_scale : 1.f);
  const int which = lane / LANES, place = lane % LANES;

  uint32_t q[D / 16][2];
#pragma unroll
  for (int m = 0; m < D / 16; ++m) {
    const int channel = first_channel<P>(m, part);
    const bf16* from = static_cast<const bf16*>(task.q) + (int64_t(b) * task.H + first_head + min(group, heads - 1)) * D;
    const uint2 four = *reinterpret_cast<const uint2*>(from + channel);
    if constexpr (P == PoolNumber::bf16) {
      q[m][0] = group < heads ? four.x : 0u, q[m][1] = group < heads ? four.y : 0u;
    } else {
      const float2 x = unpack(four.x), y = unpack(four.y);
      const __half2 u = __floats2half2_rn(x.x, x.y), v = __floats2half2_rn(y.x, y.y);
      q[m][0] = group < heads ? *reinterpret_cast<const uint32_t*>(&u) : 0u;
      q[m][1] = group < heads ? *reinterpret_cast<const uint32_t*>(&v) : 0u;
    }
  }
  float largest[Q], total[Q], y[Q][C];
#pragma unroll
  for (int h = 0; h < Q; ++h) {
    largest[h] = NOTHING, total[h] = 0;
#pragma unroll
    for (int c = 0; c < C; ++c) y[h][c] = 0;
  }
  constexpr int PASSES = RUN / AT_ONCE, EARLY = PASSES > 8 ? 8 : PASSES;
  uint4 k[RUN / 8][LOADS];
  // Lanes l and l + RUN have the same token of a run; this is where it lies.
  const auto find_slot = [&](int run) {
    const int mine = run * RUN + lane % RUN;
    return mine < length ? int64_t(table[mine / task.S]) * task.S + mine % task.S : int64_t(0);
  };
  const auto load_keys = [&](int64_t slot) {
#pragma unroll
    for (int n = 0; n < RUN / 8; ++n) {
      const char* from = keys + __shfl_sync(ALL, slot, n * 8 + group) * row_bytes + part * 16;
#pragma unroll
      for (int i = 0; i < LOADS; ++i) k[n][i] = load_stream(from + i * 64);
    }
  };
  int64_t slot = 0;
  if (first_run + warp < end_run) {
    slot = find_slot(first_run + warp);
    load_keys(slot);
  }
  for (int run = first_run + warp; run < end_run; run += WARPS) {
    const int mine = run * RUN + lane % RUN;
    const bool is_seen = mine >= begin && mine < length;
    const bool has_next = run + WARPS < end_run;
    // Values are on their way while scores are computed, and the next run's keys while values are added up.
    uint32_t v[EARLY][C * BYTES<P> / 4];
    const auto load_values = [&](int first) {
#pragma unroll
      for (int i = 0; i < EARLY; ++i) {
        const int64_t at = __shfl_sync(ALL, slot, (first + i) * AT_ONCE + which);
        load_words<C * BYTES<P>>(values + at * row_bytes + place * C * BYTES<P>, v[i]);
      }
    };
    load_values(0);
    const int64_t next_slot = has_next ? find_slot(run + WARPS) : 0;
#pragma unroll
    for (int n = 0; n < RUN / 8; ++n) {
      float sums[4] = {};
#pragma unroll
      for (int m = 0; m < D / 16; ++m) {
        constexpr int PER_LOAD = CHANNELS_16B<P> / 4;
        const uint4& from = k[n][m / PER_LOAD];
        if constexpr (P == PoolNumber::bf16) {
          const uint32_t b0 = m % 2 ? from.z : from.x, b1 = m % 2 ? from.w : from.y;
          mma_bf16(sums, q[m][0], 0, q[m][1], 0, b0, b1);
        } else {
          uint32_t b0, b1;
          to_halves<P>(m % 4 == 0 ? from.x : m % 4 == 1 ? from.y : m % 4 == 2 ? from.z : from.w, b0, b1);
          mma_f16(sums, q[m][0], q[m][1], b0, b1);
        }
      }
      // Lane l has head l / 4 and tokens 2 (l % 4) and + 1.
      if (group < Q) scores[warp][n * 8 + part * 2][group] = sums[0], scores[warp][n * 8 + part * 2 + 1][group] = sums[1];
    }
    if (has_next) load_keys(next_slot);
    __syncwarp();
    float p[Q];
#pragma unroll
    for (int h = 0; h < Q; ++h) {
      float score = scores[warp][lane % RUN][h] * scale;
      if (task.softcap > 0) score = task.softcap * tanhf(score / task.softcap);
      if (!is_seen) score = NOTHING;
      float top = score;
#pragma unroll
      for (int step = RUN / 2; step; step /= 2) top = fmaxf(top, __shfl_xor_sync(ALL, top, step));
      top = fmaxf(largest[h], top);
      p[h] = is_seen ? __expf(score - top) : 0.f;
      float sum = p[h];
#pragma unroll
      for (int step = RUN / 2; step; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
      const float shrink = __expf(largest[h] - top);
      total[h] = total[h] * shrink + sum;
      largest[h] = top;
#pragma unroll
      for (int c = 0; c < C; ++c) y[h][c] *= shrink;
    }
    __syncwarp();
    if (lane < RUN) {
#pragma unroll
      for (int h = 0; h < Q; ++h) scores[warp][lane][h] = p[h];
    }
    __syncwarp();
#pragma unroll
    for (int first = 0; first < PASSES; first += EARLY) {
      if (first > 0) load_values(first);
#pragma unroll
      for (int i = 0; i < EARLY; ++i) {
        float wide[C];
        widen<P, C>(v[i], wide);
        const float* weights = scores[warp][(first + i) * AT_ONCE + which];
#pragma unroll
        for (int h = 0; h < Q; ++h) {
#pragma unroll
          for (int c = 0; c < C; ++c) y[h][c] += weights[h] * wide[c];
        }
      }
    }
    __syncwarp();
    slot = next_slot;
  }
#pragma unroll
  for (int h = 0; h < Q; ++h) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int step = LANES; step < WARP; step *= 2) y[h][c] += __shfl_xor_sync(ALL, y[h][c], step);
      if (which == 0) joined[warp][h][place * C + c] = y[h][c];
    }
    if (lane == 0) joined[warp][h][D] = largest[h], joined[warp][h][D + 1] = total[h];
  }
  __syncthreads();
  let_next_start();
  const float v_scale = task.v_scale ? *task.v_scale : 1.f;
  for (int index = threadIdx.x; index < heads * D; index += WARPS * WARP) {
    const int h = index / D, d = index % D;
    float top = NOTHING, sum = 0, value = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, joined[w][h][D]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float factor = __expf(joined[w][h][D] - top);
      sum += factor * joined[w][h][D + 1];
      value += factor * joined[w][h][d];
    }
    const int64_t row = int64_t(b) * task.H + first_head + h;
    if (task.splits == 1) {
      static_cast<bf16*>(task.y)[row * D + d] = __float2bfloat16(sum > 0 ? value / sum * v_scale : 0.f);
    } else {
      float* to = task.partials + (row * task.splits + split) * (D + 2);
      to[d] = value;
      if (d == 0) to[D] = top, to[D + 1] = sum;
    }
  }
  if (task.splits == 1) return;
  __threadfence();
  __syncthreads();
  int32_t* counter = task.counters + int64_t(b) * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) is_last = atomicAdd(counter, 1) == task.splits - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int index = threadIdx.x; index < heads * D; index += WARPS * WARP) {
    const int h = index / D, d = index % D;
    const int64_t row = int64_t(b) * task.H + first_head + h;
    const volatile float* from = task.partials + row * task.splits * (D + 2);
    float top = NOTHING, sum = 0, value = 0;
    for (int s = 0; s < task.splits; ++s) top = fmaxf(top, from[s * (D + 2) + D]);
    for (int s = 0; s < task.splits; ++s) {
      const float factor = __expf(from[s * (D + 2) + D] - top);
      sum += factor * from[s * (D + 2) + D + 1];
      value += factor * from[s * (D + 2) + d];
    }
    static_cast<bf16*>(task.y)[row * D + d] = __float2bfloat16(sum > 0 ? value / sum * v_scale : 0.f);
  }
  if (threadIdx.x == 0) *counter = 0;
}

template <PoolNumber P, int D>
void run(const AttentionTask& task, cudaStream_t stream) {
  const int per_head = task.H / task.G;
  const auto launch = [&](auto kernel, int at_once) {
    const dim3 grid(task.G * ((per_head + at_once - 1) / at_once), task.B, task.splits);
    launch_early(kernel, grid, WARPS * WARP, stream, task);
  };
  if (per_head == 1)
    launch(decode<P, D, 1>, 1);
  else if (per_head == 2)
    launch(decode<P, D, 2>, 2);
  else
    launch(decode<P, D, 4>, 4);
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
