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
};

constexpr int MAX_FEW_TOKENS = 8;

void run_few_tokens(const FewTokensTask& task, cudaStream_t stream);

// Attention of a step's tokens over the pools: see ops.py. `counters` are zero, and are left zero.
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
  float scale, softcap;
  int window;
  int M, B, W, S, H, G, D;
  int splits;       // of a sequence's context, when every sequence has one token
  float* partials;  // [B, H, splits, D + 2]
  int32_t* counters;  // [B, H]
};

// Whether there is a kernel for heads of this size.
bool has_attention(int head_dim, int heads_per_kv_head);
void run_decode_attention(const AttentionTask& task, cudaStream_t stream);
void run_prompt_attention(const AttentionTask& task, cudaStream_t stream);

// places[count] = where the largest number of each row is, -1 where it is not finite. `best` are zeros, and are left so.
void run_argmax(const float* rows, int64_t columns, int count, unsigned long long* best, int64_t* places,
                cudaStream_t stream);

// y[N, K] in bf16 = weight[N, K] (int8, or int4 in bytes [N, K / 2]) times its scales; see FewTokensTask.
void run_widen(const void* weight, const float* scale, void* y, int N, int K, int group, cudaStream_t stream);

}  // namespace trtx
