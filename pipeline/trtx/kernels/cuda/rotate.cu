// Rotary positions of queries and keys, and keys and values into the pools: what is between a layer's first product and its
// attention, in one pass. A thread has 8 pairs of a head's channels, or 8 channels that are only copied.

#include "common.cuh"
#include "kernels.h"

namespace trtx {
namespace {

constexpr int THREADS = 128, NUMBERS = 8;

// 8 numbers of a pool, rounded as they are kept there.
__device__ __forceinline__ void store_pool(const RotateTask& task, void* pool, int64_t at, float x[NUMBERS], float scale) {
  if (task.pool_number == PoolNumber::bf16) {
    *reinterpret_cast<uint4*>(static_cast<bf16*>(pool) + at) = pack8(x);
  } else if (task.pool_number == PoolNumber::e4m3) {
    store8_e4m3(static_cast<char*>(pool) + at, x, scale);
  } else {
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) {
      const int number = int(fminf(fmaxf(rintf(round_bf16(x[i]) / scale), -128.f), 127.f));
      words[i / 4] |= uint32_t(number & 0xff) << (i % 4 * 8);
    }
    *reinterpret_cast<uint2*>(static_cast<char*>(pool) + at) = make_uint2(words[0], words[1]);
  }
}

__global__ void __launch_bounds__(THREADS) rotate(const RotateTask task) {
  let_next_start();
  const int turned = task.pairs / NUMBERS, copied = (task.D - 2 * task.pairs) / NUMBERS, whole = task.D / NUMBERS;
  const int rotated_heads = task.H + task.G, units = rotated_heads * (turned + copied) + task.G * whole;
  const int index = blockIdx.x * THREADS + threadIdx.x, token = index / units;
  int unit = index % units;
  const float k_scale = task.k_scale ? *task.k_scale : 1.f, v_scale = task.v_scale ? *task.v_scale : 1.f;
  wait_for_inputs();
  if (token >= task.M) return;
  const bf16* row = static_cast<const bf16*>(task.qkv) + int64_t(token) * (rotated_heads + task.G) * task.D;
  const int64_t slot = task.slots[token];
  float x[NUMBERS];
  const auto load = [&](int head, int channel, float numbers[NUMBERS]) {
    unpack8(load16(row + head * task.D + channel), numbers);
    if (task.scale) scale8(numbers, task.scale + head * task.D + channel);
  };
  if (unit >= rotated_heads * (turned + copied)) {
    unit -= rotated_heads * (turned + copied);
    const int head = unit / whole, channel = unit % whole * NUMBERS;
    load(rotated_heads + head, channel, x);
    return store_pool(task, task.v_pool, (slot * task.G + head) * task.D + channel, x, v_scale);
  }
  const int head = unit / (turned + copied), part = unit % (turned + copied);
  const auto store = [&](int channel, float numbers[NUMBERS]) {
    if (head < task.H)
      *reinterpret_cast<uint4*>(static_cast<bf16*>(task.q) + (int64_t(token) * task.H + head) * task.D + channel) = pack8(numbers);
    else
      store_pool(task, task.k_pool, (slot * task.G + head - task.H) * task.D + channel, numbers, k_scale);
  };
  if (part >= turned) {
    const int channel = 2 * task.pairs + (part - turned) * NUMBERS;
    load(head, channel, x);
    return store(channel, x);
  }
  const int pair = part * NUMBERS;
  float y[NUMBERS], low[NUMBERS], high[NUMBERS];
  load(head, pair, x);
  load(head, task.pairs + pair, y);
#pragma unroll
  for (int i = 0; i < NUMBERS; ++i) {
    const float c = task.cos[int64_t(token) * task.pairs + pair + i], s = task.sin[int64_t(token) * task.pairs + pair + i];
    low[i] = x[i] * c - y[i] * s, high[i] = y[i] * c + x[i] * s;
  }
  store(pair, low);
  store(task.pairs + pair, high);
}

}  // namespace

void run_rotate(const RotateTask& task, cudaStream_t stream) {
  const int units = (task.H + task.G) * (task.D - task.pairs) / NUMBERS + task.G * task.D / NUMBERS;
  launch_early(rotate, dim3((int64_t(task.M) * units + THREADS - 1) / THREADS), THREADS, stream, task);
}

}  // namespace trtx
