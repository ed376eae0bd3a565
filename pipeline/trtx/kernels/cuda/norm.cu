// Root mean square norms (Zhang and Sennrich, arXiv:1910.07467), with the sum before and the rounding after them: a block
// has one token, a thread 8 of its channels at a time.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int THREADS = 512, NUMBERS = 8, MOST_TURNS = 4;
static_assert(THREADS * NUMBERS * MOST_TURNS == MAX_NORM_CHANNELS);

template <int TURNS>
__global__ void __launch_bounds__(THREADS) norm(const NormTask task) {
  __shared__ float squares[THREADS / WARP];
  let_next_start();
  const int64_t row = int64_t(blockIdx.x) * task.E;
  // What depends on nothing comes before the wait.
  uint4 weights[TURNS];
#pragma unroll
  for (int t = 0; t < TURNS; ++t) {
    const int channel = (t * THREADS + threadIdx.x) * NUMBERS;
    weights[t] = channel < task.E ? load16(static_cast<const bf16*>(task.weight) + channel) : make_uint4(0, 0, 0, 0);
  }
  const float y_scale = task.y_scale ? *task.y_scale : 1.f;
  wait_for_inputs();
  float x[TURNS][NUMBERS], total = 0;
#pragma unroll
  for (int t = 0; t < TURNS; ++t) {
    const int channel = (t * THREADS + threadIdx.x) * NUMBERS;
    const bool is_there = channel < task.E;
    const uint4 first = is_there ? load16(static_cast<const bf16*>(task.x) + row + channel) : make_uint4(0, 0, 0, 0);
    unpack8(first, x[t]);
    if (task.addend != nullptr && is_there) {
      float more[NUMBERS];
      unpack8(load16(static_cast<const bf16*>(task.addend) + row + channel), more);
      if (task.addend_scale) scale8(more, task.addend_scale + channel);
#pragma unroll
      for (int i = 0; i < NUMBERS; ++i) x[t][i] += more[i];
      const uint4 sum = pack8(x[t]);
      *reinterpret_cast<uint4*>(static_cast<bf16*>(task.sum) + row + channel) = sum;
      unpack8(sum, x[t]);
    }
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) total += x[t][i] * x[t][i];
  }
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) total += __shfl_xor_sync(ALL, total, step);
  if (threadIdx.x % WARP == 0) squares[threadIdx.x / WARP] = total;
  __syncthreads();
  total = squares[threadIdx.x % (THREADS / WARP)];
#pragma unroll
  for (int step = THREADS / WARP / 2; step; step /= 2) total += __shfl_xor_sync(ALL, total, step);
  const float factor = rsqrtf(total / float(task.E) + task.epsilon);
#pragma unroll
  for (int t = 0; t < TURNS; ++t) {
    const int channel = (t * THREADS + threadIdx.x) * NUMBERS;
    if (channel >= task.E) continue;
    float weight[NUMBERS];
    unpack8(weights[t], weight);
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i)
      x[t][i] = task.is_plus_one ? x[t][i] * factor * (1.f + weight[i]) : round_bf16(x[t][i] * factor) * weight[i];
    if (task.y_scale) store8_e4m3(static_cast<char*>(task.y) + row + channel, x[t], y_scale);
    else *reinterpret_cast<uint4*>(static_cast<bf16*>(task.y) + row + channel) = pack8(x[t]);
  }
}

}  // namespace

void run_norm(const NormTask& task, cudaStream_t stream) {
  const int turns = (task.E + THREADS * NUMBERS - 1) / (THREADS * NUMBERS);
  if (turns <= 1) return launch_early(norm<1>, dim3(task.M), THREADS, stream, task);
  if (turns <= 2) return launch_early(norm<2>, dim3(task.M), THREADS, stream, task);
  launch_early(norm<MOST_TURNS>, dim3(task.M), THREADS, stream, task);
}

}  // namespace trtx
