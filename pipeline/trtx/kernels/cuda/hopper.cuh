// Instructions of Hopper: copies of tiles by the copy engine, barriers that count bytes, products of a warp group.
//
// PTX ISA 8.0 and later: "cp.async.bulk.tensor", "mbarrier", "Asynchronous Warpgroup Level Matrix Instructions".
#pragma once

#include <cuda.h>

#include "common.cuh"

namespace trtx {

constexpr int WARP_GROUP = 128;
// What a row of a tile has: the span of the 128-byte swizzle, within which chunks of 16 bytes change places by row.
constexpr int TILE_BYTES = 128;

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// Make barriers that were just initialized known to the copy engine.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrive, and let the barrier wait for so many bytes of copies as well.
__device__ __forceinline__ void arrive_for(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void wait_for(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The same where other blocks of the cluster send what is waited for.
__device__ __forceinline__ void wait_for_cluster(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// What is read once goes out of the second cache first; what all blocks read goes last.
constexpr uint64_t READ_ONCE = 0x12F0000000000000ull, READ_OFTEN = 0x14F0000000000000ull;

// A tile of a matrix to shared memory: `column` in numbers, `row` the first one; beyond the matrix there are zeros.
__device__ __forceinline__ void copy_tile(
    void* to, const CUtensorMap& map, int column, int row, uint64_t* barrier, uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], "
      "%5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(row), "l"(hint)
      : "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// All threads of a cluster meet; what was written to shared memory before is seen by all after.
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// They meet, and nothing more: no memory is waited for.
__device__ __forceinline__ void end_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Four numbers from the shared memory of block `rank` of the cluster, where this block has `address`.
__device__ __forceinline__ float4 load_of_block(uint32_t address, int rank) {
  float4 v;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
      "}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

// Four numbers to the shared memory of block `rank` of the cluster, where this block has `to`; the barrier counts them there
// (PTX ISA, "st.async").
__device__ __forceinline__ void send_to_block(const void* to, const float* from, int rank, const uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 there, counted;\n"
      "mapa.shared::cluster.u32 there, %0, %2;\n"
      "mapa.shared::cluster.u32 counted, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, [counted];\n"
      "}\n" ::"r"(shared_address(to)),
      "r"(shared_address(barrier)), "r"(rank), "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3])
      : "memory");
}

// Where a tile's rows of TILE_BYTES lie: "Matrix Descriptor Format", 1,024 bytes from eight rows to the next eight.
__device__ __forceinline__ uint64_t describe_tile(const void* at) {
  return uint64_t(shared_address(at) >> 4 & 0x3fff) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait for all but the last `pending` groups.
template <int pending>
__device__ __forceinline__ void finish_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Matrices of 8 · 8 numbers of 16 bits, turned: what a lane has of row lane / 4 and columns 2 (lane % 4), + 1 goes to its
// place in columns of shared memory. Lane l gives where column l % 8 of matrix l / 8 begins.
__device__ __forceinline__ void store_turned4(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

__device__ __forceinline__ void store_turned2(void* to, uint32_t a, uint32_t b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(to)), "r"(a), "r"(b)
               : "memory");
}

#define TRTX_R4 "%0, %1, %2, %3"
#define TRTX_R8 TRTX_R4 ", %4, %5, %6, %7"
#define TRTX_R16 TRTX_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TRTX_R32 TRTX_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TRTX_R48 TRTX_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define TRTX_R64 TRTX_R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TRTX_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TRTX_D8(i) TRTX_D4(i), TRTX_D4(i + 4)
#define TRTX_D16(i) TRTX_D8(i), TRTX_D8(i + 8)
#define TRTX_D32(i) TRTX_D16(i), TRTX_D16(i + 16)
// `a`, `b`: numbers of the operands after the registers.
#define TRTX_WGMMA(columns, registers, a, b, ...)                                                                       \
  if constexpr (IS_E4M3)                                                                                                \
    asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" columns                     \
                 "k32.f32.e4m3.e4m3 {" registers "}, %" a ", %" b ", p, 1, 1;\n}\n"                                     \
                 : __VA_ARGS__                                                                                          \
                 : "l"(rows), "l"(columns_));                                                                           \
  else                                                                                                                  \
    asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" columns                     \
                 "k16.f32.bf16.bf16 {" registers "}, %" a ", %" b ", p, 1, 1, 0, 0;\n}\n"                               \
                 : __VA_ARGS__                                                                                          \
                 : "l"(rows), "l"(columns_));

// d += 64 rows · T columns over 32 bytes of each, described tiles. A lane has rows lane / 4 and + 8 of its warp's 16, and
// of every 8 columns 2 (lane % 4) and + 1: d[4 i], d[4 i + 1] are of the first row, d[4 i + 2], d[4 i + 3] of the second.
template <bool IS_E4M3, int T>
__device__ __forceinline__ void multiply_tiles(float (&d)[T / 2], uint64_t rows, uint64_t columns_) {
  static_assert(T == 8 || T == 16 || T == 32 || T == 64 || T == 96 || T == 128);
  if constexpr (T == 8) {
    TRTX_WGMMA("8", TRTX_R4, "4", "5", TRTX_D4(0))
  } else if constexpr (T == 16) {
    TRTX_WGMMA("16", TRTX_R8, "8", "9", TRTX_D8(0))
  } else if constexpr (T == 32) {
    TRTX_WGMMA("32", TRTX_R16, "16", "17", TRTX_D16(0))
  } else if constexpr (T == 64) {
    TRTX_WGMMA("64", TRTX_R32, "32", "33", TRTX_D32(0))
  } else if constexpr (T == 96) {
    TRTX_WGMMA("96", TRTX_R48, "48", "49", TRTX_D32(0), TRTX_D16(32))
  } else {
    TRTX_WGMMA("128", TRTX_R64, "64", "65", TRTX_D32(0), TRTX_D32(32))
  }
}

}  // namespace trtx
