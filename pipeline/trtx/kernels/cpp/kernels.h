// What the operators ask of a level: the same kernels, compiled once for every instruction set of the library.
//
// Legend: M tokens, N output rows, K input columns, B sequences, W blocks of a table, S tokens of a block, P blocks of a
// pool, H query heads, G key-value heads, D channels of a head.
#pragma once

#include <cstdint>

namespace trtx {

enum class Number { f32, bf16, e4m3, i8, i4 };

// Rows `first` to `first + count` of x, which are multiplied with matrix number `matrix`.
struct Share {
  int64_t matrix, first, count;
};

// y[M, N] = x[M, K] · wᵀ, w being [N, K] times its scales. All arrays are contiguous.
//
// With `shares`, w is many such matrices, one after another as their scales are, and only the rows of the shares are
// multiplied, each with the matrix of its share.
struct LinearTask {
  Number number;       // of x and y: f32 or bf16
  const void* x;
  void* y;
  Number weight_number;
  const void* weight;  // i4: bytes [N, K/2], see quant/linear.py
  const float* scale;   // [N], or [N, K/group] for i4; null for 1
  const float* offset;  // i4: [N, K/group], added to number times scale; null for 0
  int64_t M, N, K;
  int64_t group;       // i4: columns that share a scale
  const Share* shares;  // or null: one matrix for all rows
  int64_t num_shares;
};

// y[M, N] = (int8(x · pre_quant_scale[K] / input_scale) · wᵀ) · (input_scale · scale[N]), sums in int32, rounding to even.
struct W8a8Task {
  Number number;  // of x and y: f32 or bf16
  const void* x;
  void* y;
  const int8_t* weight;          // [N, K]
  const float* scale;            // [N]
  const float* input_scale;      // one number; null for a scale of its own for every token, its largest magnitude / 127
  const float* pre_quant_scale;  // [K] or null
  int64_t M, N, K;
};

// Attention over a paged pool; see paged_attention in ops.py.
struct AttentionTask {
  Number number;       // of q and y: f32 or bf16
  const void* q;       // [M, H, D]
  void* y;
  Number pool_number;  // f32, bf16, e4m3 or i8
  const void* k_pool;  // [P, S, G, D]
  const void* v_pool;
  const int32_t* block_tables;  // [B, W]
  const int32_t* query_starts;  // [B + 1]
  const int32_t* context_lens;  // [B]
  int64_t B, W, S, H, G, D;
  float scale, softcap, k_scale, v_scale;
  int64_t window;
};

// `has_bf16_products` says that bfloat16 is multiplied as such.
struct Level {
  const char* name;
  bool (*is_supported)();
  bool has_bf16_products;
  void (*linear)(const LinearTask&);
  void (*w8a8)(const W8a8Task&);
  // The two ends of w8a8, for a matrix product between them that is not ours: x [M, K] as int8 with a scale for every
  // token, and y from the sums [M, N].
  void (*quantize)(const W8a8Task&, int8_t* x, float* scales);
  void (*scale_sums)(const W8a8Task&, const int32_t* sums, const float* scales);
  void (*attention)(const AttentionTask&);
};

}  // namespace trtx
