// Tasks of the GPU kernels: pointers and sizes, checked by ops.cpp. All pointers are of the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace trtx {

enum class Weight { bf16, e4m3, int8, int4 };
enum class PoolNumber { bf16, e4m3, int8 };

// y[M, N] in bf16 = x[M, K] · weight[N, K]ᵀ, times *factor. x is e4m3 beside a weight of e4m3, else bf16.
struct FewTokensTask {
  Weight weight_number;
  const void* x;
  const void* weight;
  void* y;
  const float* scale;   // int8: [N]; int4: [N, Z]
  const float* factor;  // or null
  int M, N, Z;
  int64_t x_bytes, row_bytes;  // of one token, of one row of the weight: a multiple of 64
  int64_t group_bytes;         // int4: half a group, a multiple of 64
  bool is_new;                 // the weight comes from the kernel before: it is not read ahead
};

constexpr int MAX_FEW_TOKENS = 8;

void run_few_tokens(const FewTokensTask& task, cudaStream_t stream);

// The same product of up to MAX_STREAMED_TOKENS tokens, by blocks of R rows (128 or 256), of which S (1 to 8)
// share the columns. y is [M, N]; of a gated product [M, N / 2]: silu(gates) · ups, whose weights are the upper and the lower half
// of the rows. Sums are multiplied by *factor and scale[N]; with y_scale y is e4m3, numbers divided by it.
struct StreamedTask {
  const void* x;       // [M, K], bf16 or e4m3, as the weight is
  const void* weight;  // [N, K]
  void* y;
  const float* factor;   // or null
  const float* scale;    // [N], or null
  const float* y_scale;  // or null: y is bf16
  bool is_e4m3, is_gated;
  bool is_new;  // the weight comes from the kernel before: it is not read ahead
  int M, N, K, R, S;
};

constexpr int MAX_STREAMED_TOKENS = 128;

// False when the device does not take it.
bool run_streamed_product(const StreamedTask& task, cudaStream_t stream);

// Attention of a step's tokens over the pools: see ops.py. `counters` are zero, and are left zero. y is [M, H, D] in bf16,
// or with y_scale in e4m3, numbers divided by it.
struct AttentionTask {
  const void* q;
  void* y;
  const void* k_pool;
  const void* v_pool;
  PoolNumber pool_number;
  const int32_t* block_tables;  // [B, W]
  const int32_t* query_starts;  // [B + 1]
  const int32_t* context_lens;  // [B]
  const float* k_scale;         // or null
  const float* v_scale;
  const float* y_scale;         // or null
  float scale, softcap;
  int window;
  int M, B, W, S, H, G, D;
  int splits;       // of a sequence's context, when every sequence has one token
  float* partials;  // [B, H, splits, D + 4]
  int32_t* counters;  // [B, H]
};

// Whether there is a kernel for heads of this size.
bool has_attention(int head_dim, int heads_per_kv_head);
void run_decode_attention(const AttentionTask& task, cudaStream_t stream);
void run_prompt_attention(const AttentionTask& task, cudaStream_t stream);

// sum[M, E] = x + addend · addend_scale[E] where there is one; y = sum / rms(sum) · weight[E] (or · (1 + weight)), in bf16, or with y_scale
// in e4m3, numbers divided by it. E is a multiple of 8.
struct NormTask {
  const void* x;
  const void* addend;  // or null, and then sum is not written
  const float* addend_scale;  // or null
  const void* weight;
  void* sum;
  void* y;
  const float* y_scale;  // or null
  float epsilon;
  bool is_plus_one;
  int M, E;
};

constexpr int MAX_NORM_CHANNELS = 16384;

void run_norm(const NormTask& task, cudaStream_t stream);

// q[M, H, D] = the first H heads of qkv[M, H + 2 G, D] (times scale[(H + 2 G) D]), their first 2 · pairs channels rotated; the next G, rotated too, go
// to k_pool and the last G to v_pool, at slots[M]. D and pairs are multiples of 8.
struct RotateTask {
  const void* qkv;
  const float* scale;  // or null
  const float* cos;  // [M, pairs]
  const float* sin;
  const int64_t* slots;
  void* q;
  void* k_pool;
  void* v_pool;
  PoolNumber pool_number;
  const float* k_scale;  // or null
  const float* v_scale;
  int M, H, G, D, pairs;
};

void run_rotate(const RotateTask& task, cudaStream_t stream);

// y[M, F] = silu(gates) · ups of x[M, 2 F] · scale[2 F], in bf16, or with y_scale in e4m3, numbers divided by it. F is a multiple of 8.
struct GateTask {
  const void* x;
  const float* scale;  // or null
  void* y;
  const float* y_scale;  // or null
  int64_t M;
  int F;
};

void run_gate(const GateTask& task, cudaStream_t stream);

// places[count] = where the largest number of each row of bf16 or float is, -1 where it is not finite. `best` are zeros, and are left so.
void run_argmax(const void* rows, bool is_bf16, int64_t columns, int count, unsigned long long* best, int64_t* places,
                cudaStream_t stream);

// y[N, K] in bf16 = weight[N, K] (int8, or int4 in bytes [N, K / 2]) times its scales; see FewTokensTask.
void run_widen(const void* weight, const float* scale, void* y, int N, int K, int group, cudaStream_t stream);

}  // namespace trtx
