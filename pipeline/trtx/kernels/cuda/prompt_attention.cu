// Attention of any number of tokens a sequence, by matrix instructions (Dao, FlashAttention-2, arXiv:2307.08691) over the pools.
//
// The tokens of one sequence times the query heads of one key-value head are rows; a block has 64 of them, 16 a warp, and
// walks over the context in tiles of 64 tokens that it copies, widened to bf16, to shared memory.
//
// Legend: M tokens, B sequences, H query heads, G key-value heads, R heads per key-value head, D channels.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int WARPS = 4, ROWS = 64, TILE = 64;
constexpr float NOTHING = -1e30f;

__device__ __forceinline__ void load_transposed(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, const bf16* from) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(address));
}

// Eight numbers of a pool as bf16.
template <PoolNumber P>
__device__ __forceinline__ uint4 load_wide(const char* row, int first) {
  if constexpr (P == PoolNumber::bf16) {
    return load16(row + first * 2);
  } else {
    const uint2 v = *reinterpret_cast<const uint2*>(row + first);
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = ((i < 2 ? v.x : v.y) >> (16 * (i % 2))) & 0xffff;
      const float2 f = P == PoolNumber::e4m3 ? unpack_e4m3(pair) : unpack_int8(pair);
      out[i] = pack(f.x, f.y);
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
  }
}

template <PoolNumber P, int D>
__global__ void __launch_bounds__(WARPS* WARP) prompt(AttentionTask task) {
  constexpr int STRIDE = D + 8;  // so that the rows of a column lie in different banks
  extern __shared__ uint4 memory[];
  bf16* keys = reinterpret_cast<bf16*>(memory);
  bf16* values = keys + TILE * STRIDE;
  const int R = task.H / task.G, at_once = ROWS / R;  // tokens of a block
  // Sequence b begins with block query_starts[b] / at_once + b of this grid, and has at least as many as it needs.
  int low = 0, high = task.B - 1;
  const int index = blockIdx.x;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (task.query_starts[middle] / at_once + middle <= index) low = middle;
    else high = middle - 1;
  }
  const int b = low, start = task.query_starts[b], tokens = task.query_starts[b + 1] - start;
  const int first = (index - (start / at_once + b)) * at_once;
  if (first >= tokens) return;
  const int g = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, part = lane % 4;
  const int length = task.context_lens[b], offset = length - tokens;
  const int32_t* table = task.block_tables + int64_t(b) * task.W;
  constexpr int BYTES = P == PoolNumber::bf16 ? 2 : 1;
  const int64_t row_bytes = int64_t(task.G) * D * BYTES, head_bytes = int64_t(g) * D * BYTES;
  const char* k_pool = static_cast<const char*>(task.k_pool) + head_bytes;
  const char* v_pool = static_cast<const char*>(task.v_pool) + head_bytes;
  const float scale = task.scale * (task.k_scale ? *task.k_scale : 1.f);

  // This lane's two rows.
  int position[2];
  int64_t at[2];
  bool is_real[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + i * 8 + group, token = first + row / R;
    is_real[i] = row / R < at_once && token < tokens;
    position[i] = is_real[i] ? offset + token : -1;
    at[i] = (int64_t(start + (is_real[i] ? token : 0)) * task.H + g * R + row % R) * D;
  }
  uint32_t q[D / 16][4];
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bf16* from = static_cast<const bf16*>(task.q) + at[i % 2] + k * 16 + part * 2 + i / 2 * 8;
      q[k][i] = is_real[i % 2] ? *reinterpret_cast<const uint32_t*>(from) : 0u;
    }
  }
  float y[D / 8][4] = {};
  float largest[2] = {NOTHING, NOTHING}, total[2] = {0, 0};
  const int last = offset + min(first + at_once, tokens);  // one past the last key that any row sees
  const int begin = task.window > 0 ? max(0, offset + first + 1 - task.window) : 0;
  for (int tile = begin / TILE * TILE; tile < last; tile += TILE) {
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * D / 8; i += WARPS * WARP) {
      const int token = i / (D / 8), channel = i % (D / 8) * 8, key = tile + token;
      uint4 k = make_uint4(0, 0, 0, 0), v = k;
      if (key < last) {
        const int64_t slot = int64_t(table[key / task.S]) * task.S + key % task.S;
        k = load_wide<P>(k_pool + slot * row_bytes, channel);
        v = load_wide<P>(v_pool + slot * row_bytes, channel);
      }
      *reinterpret_cast<uint4*>(keys + token * STRIDE + channel) = k;
      *reinterpret_cast<uint4*>(values + token * STRIDE + channel) = v;
    }
    __syncthreads();
    float scores[TILE / 8][4] = {};
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        const bf16* from = keys + (n * 8 + group) * STRIDE + k * 16 + part * 2;
        const uint32_t b0 = *reinterpret_cast<const uint32_t*>(from), b1 = *reinterpret_cast<const uint32_t*>(from + 8);
        mma_bf16(scores[n], q[k][0], q[k][1], q[k][2], q[k][3], b0, b1);
      }
    }
    float top[2] = {largest[0], largest[1]};
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = tile + n * 8 + part * 2 + i % 2, row = i / 2;
        float score = scores[n][i] * scale;
        if (task.softcap > 0) score = task.softcap * tanhf(score / task.softcap);
        const bool is_seen = key <= position[row] && (task.window == 0 || key > position[row] - task.window);
        scores[n][i] = is_seen ? score : NOTHING;
        top[row] = fmaxf(top[row], scores[n][i]);
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      top[row] = fmaxf(top[row], __shfl_xor_sync(ALL, top[row], 1));
      top[row] = fmaxf(top[row], __shfl_xor_sync(ALL, top[row], 2));
      const float shrink = __expf(largest[row] - top[row]);
      total[row] *= shrink;
      largest[row] = top[row];
#pragma unroll
      for (int d = 0; d < D / 8; ++d) y[d][row * 2] *= shrink, y[d][row * 2 + 1] *= shrink;
    }
    uint32_t p[TILE / 8][2];
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) {
      float e[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        e[i] = scores[n][i] == NOTHING ? 0.f : __expf(scores[n][i] - largest[i / 2]);
        total[i / 2] += e[i];
      }
      p[n][0] = pack(e[0], e[1]), p[n][1] = pack(e[2], e[3]);
    }
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k) {
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        // Four 8 x 8 matrices: tokens k·16 + 0 … 7 and 8 … 15, channels d·16 + 0 … 7 and 8 … 15.
        uint32_t v[4];
        load_transposed(v[0], v[1], v[2], v[3], values + (k * 16 + lane % 16) * STRIDE + d * 16 + lane / 16 * 8);
        mma_bf16(y[2 * d], p[2 * k][0], p[2 * k][1], p[2 * k + 1][0], p[2 * k + 1][1], v[0], v[1]);
        mma_bf16(y[2 * d + 1], p[2 * k][0], p[2 * k][1], p[2 * k + 1][0], p[2 * k + 1][1], v[2], v[3]);
      }
    }
  }
  const float v_scale = task.v_scale ? *task.v_scale : 1.f, y_scale = task.y_scale ? *task.y_scale : 1.f;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float sum = total[row];
    sum += __shfl_xor_sync(ALL, sum, 1);
    sum += __shfl_xor_sync(ALL, sum, 2);
    if (!is_real[row]) continue;
    const float factor = sum > 0 ? v_scale / sum : 0.f;
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      const float low = y[d][row * 2] * factor, high = y[d][row * 2 + 1] * factor;
      const int64_t to = at[row] + d * 8 + part * 2;
      if (task.y_scale)
        *reinterpret_cast<uint16_t*>(static_cast<char*>(task.y) + to) =
            uint16_t(to_e4m3x2(low, high, y_scale));
      else
        *reinterpret_cast<uint32_t*>(static_cast<bf16*>(task.y) + to) = pack(low, high);
    }
  }
}

template <PoolNumber P, int D>
void run(const AttentionTask& task, cudaStream_t stream) {
  const int at_once = ROWS / (task.H / task.G), bytes = 2 * TILE * (D + 8) * 2;
  cudaFuncSetAttribute(prompt<P, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  prompt<P, D><<<dim3(task.M / at_once + task.B, task.G), WARPS * WARP, bytes, stream>>>(task);
}

template <PoolNumber P>
void run_sized(const AttentionTask& task, cudaStream_t stream) {
  if (task.D == 64) return run<P, 64>(task, stream);
  if (task.D == 128) return run<P, 128>(task, stream);
  run<P, 256>(task, stream);
}

}  // namespace

void run_prompt_attention(const AttentionTask& task, cudaStream_t stream) {
  switch (task.pool_number) {
    case PoolNumber::bf16: return run_sized<PoolNumber::bf16>(task, stream);
    case PoolNumber::e4m3: return run_sized<PoolNumber::e4m3>(task, stream);
    case PoolNumber::int8: return run_sized<PoolNumber::int8>(task, stream);
  }
}

}  // namespace trtx
