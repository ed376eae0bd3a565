// Products of few tokens with a weight: y[m, n] = sum over k of x[m, k] · w[n, k].
//
// The weight is read once, from where it lies, and is all the time such a product takes. A block of warps has 16 rows of
// it (or 32) and shares their columns; a warp feeds what a lane loads straight to a matrix instruction. The order
// of columns in an instruction does not matter as long as weight and tokens agree: so lane l takes 16 bytes in a row of
// row l / 4, which four lanes make 64.
//
// Legend: M tokens, N rows of the weight, K columns, T tiles of 8 tokens, R tiles of 16 rows, Z groups of columns.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int WARPS = 8;
constexpr int STEP_BYTES = 64;  // of a row, in one step of a warp

// Numbers of the tokens that 16 bytes of a weight meet: as they are, or wider.
template <Weight W>
constexpr int NUMBERS = W == Weight::bf16 ? 8 : W == Weight::int4 ? 32 : 16;

// 8 signed bytes as 4 pairs of bf16. 128 + 2^15 as bf16 has steps of 1 in its low byte: subtracting is exact.
__device__ __forceinline__ void widen_int8(uint32_t v, uint32_t& low, uint32_t& high) {
  const int a = int(v << 24) >> 24, b = int(v << 16) >> 24, c = int(v << 8) >> 24, d = int(v) >> 24;
  low = pack(float(a), float(b));
  high = pack(float(c), float(d));
}

// Four nibbles (0 … 15, of four neighbouring bytes) less 8, as two pairs of bf16: 0x4300 is 128, whose steps are 1.
__device__ __forceinline__ void widen_int4(uint32_t nibbles, uint32_t& low, uint32_t& high) {
  const uint32_t first = __byte_perm(nibbles, 0, 0x4140) | 0x43004300u;   // bytes 0 and 1
  const uint32_t second = __byte_perm(nibbles, 0, 0x4342) | 0x43004300u;  // bytes 2 and 3
  const __nv_bfloat162 offset = __floats2bfloat162_rn(136.f, 136.f);
  const __nv_bfloat162 a = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&first), offset);
  const __nv_bfloat162 b = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&second), offset);
  low = *reinterpret_cast<const uint32_t*>(&a);
  high = *reinterpret_cast<const uint32_t*>(&b);
}

__device__ __forceinline__ uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

template <Weight W, int T, int R>
__global__ void __launch_bounds__(WARPS* WARP) few_tokens(FewTokensTask task) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, part = lane % 4;
  const int M = task.M, N = task.N;
  const int64_t row_bytes = task.row_bytes;
  const int first_row = blockIdx.x * 16 * R;
  const int steps = int(row_bytes / STEP_BYTES);
  const char* rows[2 * R];
#pragma unroll
  for (int r = 0; r < 2 * R; ++r) {
    const int row = min(first_row + r * 8 + group, N - 1);
    rows[r] = static_cast<const char*>(task.weight) + row * row_bytes + part * 16;
  }
  constexpr int X_BYTES = W == Weight::e4m3 ? 16 : 2 * NUMBERS<W>;  // of a token beside 16 bytes of a weight
  const char* tokens[T];
#pragma unroll
  for (int t = 0; t < T; ++t) {
    const int token = min(t * 8 + group, M - 1);
    tokens[t] = static_cast<const char*>(task.x) + token * task.x_bytes;
  }
  float sums[R][T][4] = {};
  float scaled[R][T][4] = {};  // of int4, whose groups have scales
  constexpr int UNROLL = 2;
  uint4 weights[UNROLL][2 * R], next[UNROLL][2 * R];
  const auto load_weights = [&](int base) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int step = base + u;
#pragma unroll
      for (int r = 0; r < 2 * R; ++r)
        next[u][r] = step < steps ? load_stream(rows[r] + int64_t(step) * STEP_BYTES) : make_uint4(0, 0, 0, 0);
    }
  };
  let_next_start();
  // A weight of the model depends on nothing: it is on its way before the kernel that makes the tokens has ended.
  if (task.is_new) wait_for_inputs();
  load_weights(warp * UNROLL);
  wait_for_inputs();
  for (int base = warp * UNROLL; base < steps; base += WARPS * UNROLL) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int r = 0; r < 2 * R; ++r) weights[u][r] = next[u][r];
    load_weights(base + WARPS * UNROLL);
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int step = base + u;
      if (step >= steps) break;
      if constexpr (W == Weight::bf16 || W == Weight::e4m3) {
#pragma unroll
        for (int t = 0; t < T; ++t) {
          const uint4 x = load16(tokens[t] + int64_t(step) * STEP_BYTES + part * 16);
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const uint4 a = weights[u][2 * r], b = weights[u][2 * r + 1];
            if constexpr (W == Weight::bf16) {
              mma_bf16(sums[r][t], a.x, b.x, a.y, b.y, x.x, x.y);
              mma_bf16(sums[r][t], a.z, b.z, a.w, b.w, x.z, x.w);
            } else {
              mma_e4m3(sums[r][t], a.x, b.x, a.y, b.y, x.x, x.y);
              mma_e4m3(sums[r][t], a.z, b.z, a.w, b.w, x.z, x.w);
            }
          }
        }
      } else if constexpr (W == Weight::int8) {
#pragma unroll
        for (int t = 0; t < T; ++t) {
          const char* at = tokens[t] + (int64_t(step) * STEP_BYTES + part * 16) * 2;
          const uint4 x[2] = {load16(at), load16(at + 16)};
#pragma unroll
          for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              uint32_t a0, a2, a1, a3;
              widen_int8(word(weights[u][2 * r], i), a0, a2);
              widen_int8(word(weights[u][2 * r + 1], i), a1, a3);
              mma_bf16(sums[r][t], a0, a1, a2, a3, word(x[i / 2], 2 * (i % 2)), word(x[i / 2], 2 * (i % 2) + 1));
            }
          }
        }
      } else {
        // 64 bytes of a row are 64 columns in the low nibbles and 64 in the high ones, half a group later. The bytes
        // of one group are group / 2: with groups of 128 a step is a group.
        const int z = step * STEP_BYTES / task.group_bytes;
        const int64_t low_column = int64_t(z) * 2 * task.group_bytes + (step * STEP_BYTES) % task.group_bytes + part * 16;
#pragma unroll
        for (int t = 0; t < T; ++t) {
          const char* at = tokens[t] + low_column * 2;
          const char* above = at + task.group_bytes * 2;
          const uint4 x[4] = {load16(at), load16(at + 16), load16(above), load16(above + 16)};
#pragma unroll
          for (int r = 0; r < R; ++r) {
            float part_sums[4] = {};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const uint32_t p = word(weights[u][2 * r], i), q = word(weights[u][2 * r + 1], i);
              uint32_t a0, a2, a1, a3;
              widen_int4(p & 0x0f0f0f0fu, a0, a2);
              widen_int4(q & 0x0f0f0f0fu, a1, a3);
              mma_bf16(part_sums, a0, a1, a2, a3, word(x[i / 2], 2 * (i % 2)), word(x[i / 2], 2 * (i % 2) + 1));
              widen_int4((p >> 4) & 0x0f0f0f0fu, a0, a2);
              widen_int4((q >> 4) & 0x0f0f0f0fu, a1, a3);
              mma_bf16(part_sums, a0, a1, a2, a3, word(x[2 + i / 2], 2 * (i % 2)), word(x[2 + i / 2], 2 * (i % 2) + 1));
            }
            const int row = min(first_row + r * 16 + group, N - 1), next = min(first_row + r * 16 + 8 + group, N - 1);
            const float s0 = task.scale[int64_t(row) * task.Z + z], s1 = task.scale[int64_t(next) * task.Z + z];
            scaled[r][t][0] += part_sums[0] * s0, scaled[r][t][1] += part_sums[1] * s0;
            scaled[r][t][2] += part_sums[2] * s1, scaled[r][t][3] += part_sums[3] * s1;
          }
        }
      }
    }
  }
  __shared__ float shared[WARPS][R * T * 4][WARP];
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int t = 0; t < T; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        shared[warp][(r * T + t) * 4 + i][lane] = W == Weight::int4 ? scaled[r][t][i] : sums[r][t][i];
  __syncthreads();
  const float factor = task.factor ? *task.factor : 1.f;
  for (int index = threadIdx.x; index < R * T * 4 * WARP; index += WARPS * WARP) {
    // Neighbouring threads write neighbouring rows of y's N: lane l holds row l / 4 and tokens 2 (l % 4), + 1.
    const int row_in = index % (16 * R), token = index / (16 * R);
    const int r = row_in / 16, upper = (row_in % 16) / 8, t = token / 8;
    const int source = (row_in % 8) * 4 + (token % 8) / 2, slot = (r * T + t) * 4 + upper * 2 + token % 2;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += shared[w][slot][source];
    const int row = first_row + row_in;
    if (row >= N || token >= M) continue;
    sum *= factor;
    if (W == Weight::int8) sum *= task.scale[row];
    static_cast<bf16*>(task.y)[int64_t(token) * N + row] = __float2bfloat16(sum);
  }
}

template <Weight W>
void run(const FewTokensTask& task, cudaStream_t stream) {
  if (task.M <= 8)
    launch_early(few_tokens<W, 1, 1>, dim3((task.N + 15) / 16), WARPS * WARP, stream, task);
  else if (task.M <= 16)
    launch_early(few_tokens<W, 2, 2>, dim3((task.N + 31) / 32), WARPS * WARP, stream, task);
  else
    launch_early(few_tokens<W, 4, 2>, dim3((task.N + 31) / 32), WARPS * WARP, stream, task);
}

}  // namespace

void run_few_tokens(const FewTokensTask& task, cudaStream_t stream) {
  switch (task.weight_number) {
    case Weight::bf16: return run<Weight::bf16>(task, stream);
    case Weight::e4m3: return run<Weight::e4m3>(task, stream);
    case Weight::int8: return run<Weight::int8>(task, stream);
    case Weight::int4: return run<Weight::int4>(task, stream);
  }
}

}  // namespace trtx
