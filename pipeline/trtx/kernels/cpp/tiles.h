// Blocks of sums in registers: some tokens times some rows of a weight, column after column.
#pragma once

#include "parallel.h"
#include "products.h"

namespace {

constexpr int64_t MAX_TASK_ROWS = 48;
// Rows and columns that are multiplied with all tokens before the next ones: in bfloat16 24 KiB, half a first-level cache.
constexpr int64_t TILE_ROWS = 12, TILE_COLUMNS = 1024;

// Weight rows that are multiplied with `tokens` tokens at once: the sums must fit in the registers.
template <int tokens>
constexpr int ROWS = LANES == 16 ? (tokens == 8 ? 3 : 4) : tokens == 8 ? 1 : tokens > 2 ? 2 : 4;

inline int64_t least_common_multiple(int64_t a, int64_t b) {
  int64_t multiple = a;
  while (multiple % b) multiple += a;
  return multiple;
}

// Rows of a task: some tasks for every thread, in whole tiles.
inline int64_t choose_task_rows(int64_t N) {
  const int64_t rows = (N / (num_threads() * 4) + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  return rows < TILE_ROWS ? TILE_ROWS : rows > MAX_TASK_ROWS ? MAX_TASK_ROWS : rows;
}

// `count` columns of rows that lie `stride` columns apart. `from_memory` asks for the rows after these ahead of time.
template <class Products, trtx::Number number, bool from_memory>
struct PlainRows {
  typedef typename Products::Element Element;
  typedef typename Products::Sums Sums;
  typedef typename Products::Total Total;

  const char* weight;
  int64_t stride, count;

  template <int tokens, int rows>
  void multiply(
      const Element* const (&x)[tokens], const int64_t (&n)[rows], Sums (&sums)[tokens][rows]) const {
    for (int64_t k = 0; k < count; k += Products::STEP) {
      typename Products::Operand w[rows];
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const char* from = weight + (n[r] * stride + k) * SIZE<number>;
        if constexpr (from_memory) __builtin_prefetch(from + rows * stride * SIZE<number>);
        w[r] = Products::template unpack<number>(from);
      }
#pragma GCC unroll 8
      for (int m = 0; m < tokens; ++m) {
        const auto a = Products::read(x[m] + k);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sums[m][r] = Products::add(sums[m][r], a, w[r]);
      }
    }
  }
};

// Where a task keeps its output until it is complete: [M, MAX_TASK_ROWS + some that are written and not used].
constexpr int64_t SUMS_STRIDE = MAX_TASK_ROWS + 4;

// Add the products of `tokens` tokens from `m0` and of `num_rows` rows to `sums`; `is_first` overwrites them. Tokens and
// rows beyond the last one repeat it.
template <int tokens, class Rows>
void multiply_block(
    int64_t M, int64_t m0, const typename Rows::Element* x, int64_t stride, const Rows& rows, int64_t num_rows,
    typename Rows::Total* sums, bool is_first) {
  constexpr int count = ROWS<tokens>;
  const typename Rows::Element* x_of[tokens];
  for (int m = 0; m < tokens; ++m) x_of[m] = x + (m0 + m < M ? m0 + m : M - 1) * stride;
  for (int64_t n = 0; n < num_rows; n += count) {
    int64_t indices[count];
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) indices[r] = n + r < num_rows ? n + r : num_rows - 1;
    typename Rows::Sums parts[tokens][count] = {};
    rows.template multiply<tokens, count>(x_of, indices, parts);
#pragma GCC unroll 8
    for (int m = 0; m < tokens; ++m) {
      if (m0 + m >= M) break;
      typename Rows::Total found[count];
      sum_each(parts[m], found);
      auto* to = sums + (m0 + m) * SUMS_STRIDE + n;
      for (int r = 0; r < count; ++r) to[r] = is_first ? found[r] : to[r] + found[r];
    }
  }
}

template <class Rows>
void multiply_tokens(
    int64_t M, const typename Rows::Element* x, int64_t stride, const Rows& rows, int64_t num_rows,
    typename Rows::Total* sums, bool is_first) {
  for (int64_t m = 0; m < M;) {
    const int64_t left = M - m;
    if (left > 8 || left == 6 || left == 5) multiply_block<6>(M, m, x, stride, rows, num_rows, sums, is_first), m += 6;
    else if (left > 6) multiply_block<8>(M, m, x, stride, rows, num_rows, sums, is_first), m += 8;
    else if (left > 2) multiply_block<4>(M, m, x, stride, rows, num_rows, sums, is_first), m += 4;
    else if (left > 1) multiply_block<2>(M, m, x, stride, rows, num_rows, sums, is_first), m += 2;
    else multiply_block<1>(M, m, x, stride, rows, num_rows, sums, is_first), m += 1;
  }
}

}  // namespace
