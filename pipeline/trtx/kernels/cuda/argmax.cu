// The largest number of every row and where it is, of several rows at once: a row is shared by blocks, which meet in one
// 64-bit maximum that holds the number above and the place below it.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int THREADS = 512, PARTS = 8;

// Numbers in the order of unsigned integers; NaN above all, as torch has it.
__device__ __forceinline__ uint32_t order(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A key whose order is that of the numbers, and of equal ones the first: its place is stored turned over.
__device__ __forceinline__ unsigned long long make_key(float x, int64_t at) {
  return static_cast<unsigned long long>(order(x)) << 32 | (0xffffffffu - uint32_t(at));
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }

// The numbers of a row AT_ONCE at a time, where the row begins at a multiple of 16 bytes; else one by one.
template <typename Number, int AT_ONCE>
__global__ void find_largest(const Number* rows, int64_t columns, unsigned long long* best) {
  const Number* row = rows + blockIdx.y * columns;
  unsigned long long top = 0;
  for (int64_t at = int64_t(blockIdx.x * THREADS + threadIdx.x) * AT_ONCE; at < columns; at += PARTS * THREADS * AT_ONCE) {
    Number x[AT_ONCE];
    if constexpr (AT_ONCE > 1) *reinterpret_cast<uint4*>(x) = load16(row + at);
    else x[0] = row[at];
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const unsigned long long found = make_key(widen(x[i]), at + i);
      top = found > top ? found : top;
    }
  }
  for (int step = 16; step; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(ALL, top, step);
    top = other > top ? other : top;
  }
  if (threadIdx.x % WARP == 0) atomicMax(best + blockIdx.y, top);
}

// Places, or -1 where the largest is not a finite number; leaves zeros behind.
__global__ void read_largest(unsigned long long* best, int64_t* places, int count) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= count) return;
  const unsigned long long found = best[row];
  best[row] = 0;
  const uint32_t number = uint32_t(found >> 32);
  // Infinities as ordered above.
  const bool is_finite = number < 0xff800000u && number > 0x007fffffu;
  places[row] = is_finite ? int64_t(0xffffffffu - uint32_t(found)) : -1;
}

template <typename Number>
void find(const Number* rows, int64_t columns, int count, unsigned long long* best, cudaStream_t stream) {
  constexpr int AT_ONCE = 16 / sizeof(Number);
  const bool is_aligned = columns % AT_ONCE == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
  const auto kernel = is_aligned ? find_largest<Number, AT_ONCE> : find_largest<Number, 1>;
  kernel<<<dim3(PARTS, count), THREADS, 0, stream>>>(rows, columns, best);
}

}  // namespace

void run_argmax(const void* rows, bool is_bf16, int64_t columns, int count, unsigned long long* best, int64_t* places,
                cudaStream_t stream) {
  if (is_bf16) find(static_cast<const bf16*>(rows), columns, count, best, stream);
  else find(static_cast<const float*>(rows), columns, count, best, stream);
  read_largest<<<(count + 127) / 128, 128, 0, stream>>>(best, places, count);
}

}  // namespace trtx
