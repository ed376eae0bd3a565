// silu(gate) · up of many tokens, whose product came from elsewhere than streamed_product.cu.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int THREADS = 256, NUMBERS = 8;

__global__ void __launch_bounds__(THREADS) gate(const GateTask task) {
  let_next_start();
  const float y_scale = task.y_scale ? *task.y_scale : 1.f;
  wait_for_inputs();
  // A block has a part of one token: what divides large numbers takes longer than what is computed here.
  const int channel = (blockIdx.y * THREADS + threadIdx.x) * NUMBERS;
  if (channel >= task.F) return;
  const int64_t row = blockIdx.x;
  const bf16* from = static_cast<const bf16*>(task.x) + row * 2 * task.F + channel;
  float gates[NUMBERS], ups[NUMBERS];
  unpack8(load_stream(from), gates);
  unpack8(load_stream(from + task.F), ups);
  if (task.scale) scale8(gates, task.scale + channel), scale8(ups, task.scale + task.F + channel);
#pragma unroll
  for (int i = 0; i < NUMBERS; ++i) gates[i] = gate_one(gates[i], ups[i]);
  if (task.y_scale) store8_e4m3(static_cast<char*>(task.y) + row * task.F + channel, gates, y_scale);
  else *reinterpret_cast<uint4*>(static_cast<bf16*>(task.y) + row * task.F + channel) = pack8(gates);
}

}  // namespace

void run_gate(const GateTask& task, cudaStream_t stream) {
  launch_early(gate, dim3(task.M, (task.F / NUMBERS + THREADS - 1) / THREADS), THREADS, stream, task);
}

}  // namespace trtx
