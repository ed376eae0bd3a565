// Integer weights as bf16, scales multiplied in: a block has a part of one row, a thread 16 numbers side by side. Where rows or
// groups do not begin at multiples of what a thread reads at once, it reads byte by byte.
//
// Legend: N rows, K columns, Z groups of columns.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int THREADS = 256;
constexpr int NUMBERS = 16, BYTES = NUMBERS / 2;  // of a thread; a byte of int4 has two numbers

__device__ __forceinline__ float byte_of(const uint32_t* words, int i) {
  return float(static_cast<int8_t>(words[i / 4] >> (i % 4 * 8) & 0xff));
}

__device__ __forceinline__ void store8(bf16* to, const float* x) { *reinterpret_cast<uint4*>(to) = pack8(x); }

template <bool IS_ALIGNED>
__global__ void __launch_bounds__(THREADS) widen_int8(const int8_t* weight, const float* scale, bf16* y, int K) {
  const int64_t row = blockIdx.x;
  const int column = (blockIdx.y * THREADS + threadIdx.x) * NUMBERS;
  if (column >= K) return;
  const float s = scale[row];
  const int8_t* from = weight + row * K + column;
  bf16* to = y + row * K + column;
  if constexpr (IS_ALIGNED) {
    const uint4 v = load_stream(from);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    float x[NUMBERS];
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) x[i] = byte_of(words, i) * s;
    store8(to, x), store8(to + 8, x + 8);
  } else {
    for (int i = 0; i < NUMBERS && column + i < K; ++i) to[i] = __float2bfloat16(float(from[i]) * s);
  }
}

// Byte j of a group holds its column j in the low nibble and its column j + half a group in the high one.
template <bool IS_ALIGNED>
__global__ void __launch_bounds__(THREADS) widen_int4(const uint8_t* weight, const float* scale, bf16* y, int K, int half) {
  const int64_t row = blockIdx.x;
  const int row_bytes = K / 2, first = (blockIdx.y * THREADS + threadIdx.x) * BYTES;
  if (first >= row_bytes) return;
  const uint8_t* from = weight + row * row_bytes;
  const float* scales = scale + row * (row_bytes / half);
  if constexpr (IS_ALIGNED) {
    // Eight bytes of one group.
    const uint2 v = *reinterpret_cast<const uint2*>(from + first);
    const int group = first / half;
    const float s = scales[group];
    float low[BYTES], high[BYTES];
#pragma unroll
    for (int i = 0; i < BYTES; ++i) {
      const uint32_t byte = (i < 4 ? v.x : v.y) >> (i % 4 * 8) & 0xff;
      low[i] = (int(byte & 15) - 8) * s, high[i] = (int(byte >> 4) - 8) * s;
    }
    bf16* to = y + row * K + group * 2 * half + first % half;
    store8(to, low), store8(to + half, high);
  } else {
    for (int at = first; at < min(first + BYTES, row_bytes); ++at) {
      const int group = at / half;
      bf16* to = y + row * K + group * 2 * half + at % half;
      to[0] = __float2bfloat16((int(from[at] & 15) - 8) * scales[group]);
      to[half] = __float2bfloat16((int(from[at] >> 4) - 8) * scales[group]);
    }
  }
}

}  // namespace

void run_widen(const void* weight, const float* scale, void* y, int N, int K, int group, cudaStream_t stream) {
  const dim3 grid(N, (K + NUMBERS * THREADS - 1) / (NUMBERS * THREADS));
  const bool is_aligned = reinterpret_cast<uintptr_t>(weight) % 16 == 0 && K % NUMBERS == 0;
  auto* to = static_cast<bf16*>(y);
  if (group == 0) {
    const auto kernel = is_aligned ? widen_int8<true> : widen_int8<false>;
    kernel<<<grid, THREADS, 0, stream>>>(static_cast<const int8_t*>(weight), scale, to, K);
  } else {
    const auto kernel = is_aligned && group / 2 % BYTES == 0 ? widen_int4<true> : widen_int4<false>;
    kernel<<<grid, THREADS, 0, stream>>>(static_cast<const uint8_t*>(weight), scale, to, K, group / 2);
  }
}

}  // namespace trtx
