// Integer weights as bf16, scales multiplied in. Legend: N rows, K columns, Z groups of columns.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int THREADS = 256;

__global__ void widen_int8(const int8_t* weight, const float* scale, bf16* y, int64_t count, int K) {
  const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 16;
  if (at >= count) return;
  // K is a multiple of 16, or a thread's numbers may be of two rows.
  for (int i = 0; i < 16 && at + i < count; i += 2) {
    const float s = scale[(at + i) / K], t = scale[(at + i + 1) / K];
    *reinterpret_cast<uint32_t*>(y + at + i) = pack(float(weight[at + i]) * s, float(weight[at + i + 1]) * t);
  }
}

// Byte j of a group holds its column j in the low nibble and its column j + half a group in the high one.
__global__ void widen_int4(const uint8_t* weight, const float* scale, bf16* y, int64_t bytes, int half) {
  const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 2;
  if (at >= bytes) return;
  const int64_t group = at / half;
  const int within = int(at % half);
  const uint32_t a = weight[at], b = weight[at + 1];
  const float s = scale[group];
  bf16* to = y + group * 2 * half + within;
  *reinterpret_cast<uint32_t*>(to) = pack((int(a & 15) - 8) * s, (int(b & 15) - 8) * s);
  *reinterpret_cast<uint32_t*>(to + half) = pack((int(a >> 4) - 8) * s, (int(b >> 4) - 8) * s);
}

}  // namespace

void run_widen(const void* weight, const float* scale, void* y, int N, int K, int group, cudaStream_t stream) {
  const int64_t count = int64_t(N) * K;
  if (group == 0) {
    const int64_t blocks = (count + 16 * THREADS - 1) / (16 * THREADS);
    widen_int8<<<unsigned(blocks), THREADS, 0, stream>>>(
        static_cast<const int8_t*>(weight), scale, static_cast<bf16*>(y), count, K);
    return;
  }
  const int64_t blocks = (count / 2 + 2 * THREADS - 1) / (2 * THREADS);
  widen_int4<<<unsigned(blocks), THREADS, 0, stream>>>(
      static_cast<const uint8_t*>(weight), scale, static_cast<bf16*>(y), count / 2, group / 2);
}

}  // namespace trtx
