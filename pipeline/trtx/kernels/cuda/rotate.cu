// Rotary positions of queries and keys, and keys and values into the pools, of a step with parts of prompts: what is between
// a layer's first product and its attention, in one pass. A thread has four channels. Where every sequence has one token,
// attention does this itself.

#include "rotation.cuh"

namespace trtx {
namespace {

constexpr int THREADS = 256, NUMBERS = 4;

__global__ void __launch_bounds__(THREADS) rotate(const RotateTask task) {
  let_next_start();
  const int heads = task.H + 2 * task.G, units = heads * task.D / NUMBERS;
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  const int token = int(index / units), unit = int(index % units);
  const int head = unit / (task.D / NUMBERS), channel = unit % (task.D / NUMBERS) * NUMBERS;
  const bool is_query = head < task.H, is_key = !is_query && head < task.H + task.G;
  const float* scale_at = is_key ? task.k_scale : task.v_scale;
  const float scale = scale_at ? *scale_at : 1.f;
  wait_for_inputs();
  if (token >= task.M) return;
  const int64_t row = find_token(task, token);
  const float4 x = is_query || is_key ? load_rotated(task, token, row, head, channel) : load_projection(task, row, head, channel);
  if (is_query) {
    const int64_t at = (int64_t(token) * task.H + head) * task.D + channel;
    *reinterpret_cast<uint2*>(static_cast<bf16*>(task.q) + at) = pack_bf16x4(x);
    return;
  }
  const int64_t at = (task.slots[token] * task.G + head - task.H - (is_key ? 0 : task.G)) * task.D + channel;
  void* pool = is_key ? task.k_pool : task.v_pool;
  if (task.pool_number == PoolNumber::bf16)
    *reinterpret_cast<uint2*>(static_cast<bf16*>(pool) + at) = pack_bf16x4(x);
  else
    *reinterpret_cast<uint32_t*>(static_cast<char*>(pool) + at) = pack_narrow4(task.pool_number, x, scale);
}

}  // namespace

void run_rotate(const RotateTask& task, cudaStream_t stream) {
  const int64_t units = int64_t(task.M) * (task.H + 2 * task.G) * task.D / NUMBERS;
  launch_early(rotate, dim3((units + THREADS - 1) / THREADS), THREADS, stream, task);
}

}  // namespace trtx
