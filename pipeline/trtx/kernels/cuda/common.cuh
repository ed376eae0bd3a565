// What the kernels of a GPU share: vectors of 16 bytes, conversions, matrix instructions of one warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace trtx {

using bf16 = __nv_bfloat16;

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

// Weights and pools are read once: they should not push other things out of the caches.
__device__ __forceinline__ uint4 load_stream(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ __forceinline__ uint4 load16(const void* from) { return *reinterpret_cast<const uint4*>(from); }

// 16 bytes to shared memory, without waiting and past the registers; zeros in place of what is not wanted.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_wanted) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int size = is_wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(size) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait for all but the last `pending` groups of this thread's copies.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float round_bf16(float x) { return __bfloat162float(__float2bfloat16(x)); }

__device__ __forceinline__ void unpack8(const uint4& v, float x[8]) {
  const float2 a = unpack(v.x), b = unpack(v.y), c = unpack(v.z), d = unpack(v.w);
  x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y, x[4] = c.x, x[5] = c.y, x[6] = d.x, x[7] = d.y;
}

__device__ __forceinline__ uint4 pack8(const float x[8]) {
  return make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
}

// As bf16, then divided by a scale and within what e4m3 can hold: quant/rounding.py, to_fp8.
__device__ __forceinline__ uint32_t to_e4m3x2(float low, float high, float scale) {
  const float2 pair = make_float2(__fdividef(round_bf16(low), scale), __fdividef(round_bf16(high), scale));
  return __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ uint32_t to_e4m3x4(const float x[4], float scale) {
  return to_e4m3x2(x[0], x[1], scale) | to_e4m3x2(x[2], x[3], scale) << 16;
}

__device__ __forceinline__ void store8_e4m3(void* to, const float x[8], float scale) {
  *static_cast<uint2*>(to) = make_uint2(to_e4m3x4(x, scale), to_e4m3x4(x + 4, scale));
}

// Each times its own scale, rounded as a product is.
__device__ __forceinline__ void scale8(float x[8], const float* scale) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = round_bf16(x[i] * scale[i]);
}

// silu(gate) · up.
__device__ __forceinline__ float gate_one(float gate, float up) { return __fdividef(gate, 1.f + __expf(-gate)) * up; }

// Two e4m3 numbers in the low 16 bits.
__device__ __forceinline__ float2 unpack_e4m3(uint32_t pair) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  return __half22float2(*reinterpret_cast<const __half2*>(&halves));
}

__device__ __forceinline__ float2 unpack_int8(uint32_t pair) {
  return make_float2(float(static_cast<int8_t>(pair & 0xff)), float(static_cast<int8_t>((pair >> 8) & 0xff)));
}

// A kernel that was launched early runs beside the end of the one before it on its stream: here it waits for that one's
// results (PTX ISA, griddepcontrol).
__device__ __forceinline__ void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// From here on the next kernel may start, if it was launched early.
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

template <typename Task>
void launch_early(
    void (*kernel)(Task), dim3 grid, int threads, cudaStream_t stream, const Task& task, int shared_bytes = 0) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.stream = stream;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &early, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, task);
}

// d += a · b for 16 rows, 8 columns and 16 numbers each: PTX ISA, "Matrix Fragments for mma.m16n8k16".
__device__ __forceinline__ void mma_bf16(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same for 32 numbers of e4m3: "Matrix Fragments for mma.m16n8k32".
__device__ __forceinline__ void mma_e4m3(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace trtx
