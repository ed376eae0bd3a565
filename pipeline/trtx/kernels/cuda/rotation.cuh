// A step's own queries, keys and values out of the product that has all three: scaled, rotated, and as the pools keep them.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace trtx {

// What the projections of one token are, [H + 2 G, D]: those of queries first, then of keys, then of values.
__device__ __forceinline__ int64_t find_token(const RotateTask& task, int token) {
  return int64_t(token) * (task.H + 2 * task.G) * task.D;
}

// Four channels from `channel` on of a head, a multiple of four, times their scales.
__device__ __forceinline__ float4 load_projection(const RotateTask& task, int64_t row, int head, int channel) {
  const int at = head * task.D + channel;
  const uint2 words = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(task.qkv) + row + at);
  const float2 low = unpack(words.x), high = unpack(words.y);
  float4 x = make_float4(low.x, low.y, high.x, high.y);
  if (task.scale) {
    const float4 scale = *reinterpret_cast<const float4*>(task.scale + at);
    x.x = round_bf16(x.x * scale.x), x.y = round_bf16(x.y * scale.y);
    x.z = round_bf16(x.z * scale.z), x.w = round_bf16(x.w * scale.w);
  }
  return x;
}

// The same, rotated (Su et al., arXiv:2104.09864): channel c < pairs turns with c + pairs. Rounded by the caller.
__device__ __forceinline__ float4 load_rotated(const RotateTask& task, int token, int64_t row, int head, int channel) {
  const float4 x = load_projection(task, row, head, channel);
  if (channel >= 2 * task.pairs) return x;
  const bool is_first = channel < task.pairs;
  const int other = is_first ? channel + task.pairs : channel - task.pairs;
  const float4 y = load_projection(task, row, head, other);
  const int64_t at = int64_t(token) * task.pairs + (is_first ? channel : other);
  const float4 c = *reinterpret_cast<const float4*>(task.cos + at), s = *reinterpret_cast<const float4*>(task.sin + at);
  const float sign = is_first ? -1.f : 1.f;
  return make_float4(
      fmaf(x.x, c.x, sign * y.x * s.x), fmaf(x.y, c.y, sign * y.y * s.y), fmaf(x.z, c.z, sign * y.z * s.z),
      fmaf(x.w, c.w, sign * y.w * s.w));
}

// Four numbers as a pool keeps them: a word of 8-bit numbers, or two words of bf16.
__device__ __forceinline__ uint2 pack_bf16x4(const float4& x) { return make_uint2(pack(x.x, x.y), pack(x.z, x.w)); }

__device__ __forceinline__ uint32_t pack_narrow4(PoolNumber number, const float4& x, float scale) {
  const float numbers[4] = {x.x, x.y, x.z, x.w};
  if (number == PoolNumber::e4m3) return to_e4m3x4(numbers, scale);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int rounded = int(fminf(fmaxf(rintf(round_bf16(numbers[i]) / scale), -128.f), 127.f));
    word |= uint32_t(rounded & 0xff) << (i * 8);
  }
  return word;
}

}  // namespace trtx
