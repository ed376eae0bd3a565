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

__global__ void find_largest(const float* rows, int64_t columns, unsigned long long* best) {
  const float* row = rows + blockIdx.y * columns;
  unsigned long long top = 0;
  for (int64_t at = blockIdx.x * THREADS + threadIdx.x; at < columns; at += PARTS * THREADS) {
    // Of equal numbers the first: its place is stored turned over.
    const unsigned long long found = (static_cast<unsigned long long>(order(row[at])) << 32) | (0xffffffffu - uint32_t(at));
    top = found > top ? found : top;
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

}  // namespace

void run_argmax(const float* rows, int64_t columns, int count, unsigned long long* best, int64_t* places,
                cudaStream_t stream) {
  find_largest<<<dim3(PARTS, count), THREADS, 0, stream>>>(rows, columns, best);
  read_largest<<<(count + 127) / 128, 128, 0, stream>>>(best, places, count);
}

}  // namespace trtx
