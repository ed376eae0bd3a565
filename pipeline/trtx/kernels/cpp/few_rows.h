// Attention of few rows, as in decoding: keys and values go from the pool into the products, without a copy in the cache.
#pragma once

#include "products.h"

namespace {

// Up to this many rows; for more, a tile that was widened and transposed once pays.
constexpr int64_t FEW_ROWS = 8;

// scores[row, key] = factor · q · k of `rows` rows, for keys in fours; `D` is a multiple of the products' step.
template <class Products, trtx::Number number, int rows>
void score_rows(
    const typename Products::Element* q, int64_t q_stride, const char* const* keys, int64_t num_keys, int64_t D, float factor,
    float* scores, int64_t stride) {
  constexpr int FOUR = 4;
  for (int64_t j = 0; j < num_keys; j += FOUR) {
    const char* from[FOUR];
    for (int i = 0; i < FOUR; ++i) from[i] = keys[j + i < num_keys ? j + i : num_keys - 1];
    typename Products::Sums sums[rows][FOUR] = {};
    for (int64_t d = 0; d < D; d += Products::STEP) {
      typename Products::Operand key[FOUR];
#pragma GCC unroll 8
      for (int i = 0; i < FOUR; ++i) key[i] = Products::template unpack<number>(from[i] + d * SIZE<number>);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto query = Products::read(q + r * q_stride + d);
#pragma GCC unroll 8
        for (int i = 0; i < FOUR; ++i) sums[r][i] = Products::add(sums[r][i], query, key[i]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      float found[FOUR];
      sum_each(sums[r], found);
      for (int i = 0; i < FOUR; ++i) scores[r * stride + j + i] = found[i] * factor;
    }
  }
}

template <class Products, trtx::Number number>
void score_few(
    const typename Products::Element* q, int64_t q_stride, int64_t rows, const char* const* keys, int64_t num_keys, int64_t D,
    float factor, float* scores, int64_t stride) {
  for (int64_t r = 0; r < rows;) {
    const auto* from = q + r * q_stride;
    float* to = scores + r * stride;
    if (rows - r >= 4) score_rows<Products, number, 4>(from, q_stride, keys, num_keys, D, factor, to, stride), r += 4;
    else if (rows - r >= 2) score_rows<Products, number, 2>(from, q_stride, keys, num_keys, D, factor, to, stride), r += 2;
    else score_rows<Products, number, 1>(from, q_stride, keys, num_keys, D, factor, to, stride), r += 1;
  }
}

// y[row, columns] += weights[row, key] · value, `vectors` vectors of columns.
template <trtx::Number number, int rows, int vectors>
void add_value_block(
    const float* weights, int64_t stride, const char* const* values, int64_t num_keys, int64_t column, float* y, int64_t y_stride) {
  Floats sums[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[r][v] = load<Floats>(y + r * y_stride + v * LANES);
  for (int64_t j = 0; j < num_keys; ++j) {
    Floats value[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) value[v] = widen<number>(values[j] + (column + v * LANES) * SIZE<number>);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Floats weight = spread(weights[r * stride + j]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[r][v] += weight * value[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(y + r * y_stride + v * LANES, sums[r][v]);
}

// The same for all rows and D columns, a multiple of LANES.
template <trtx::Number number>
void add_values(
    const float* weights, int64_t stride, int64_t rows, const char* const* values, int64_t num_keys, int64_t D, float* y,
    int64_t y_stride) {
  constexpr int WIDE = LANES == 16 ? 4 : 2;
  for (int64_t r = 0; r < rows;) {
    const int count = rows - r >= 4 ? 4 : rows - r >= 2 ? 2 : 1;
    const float* from = weights + r * stride;
    for (int64_t d = 0; d < D;) {
      float* to = y + r * y_stride + d;
      const bool is_wide = d + WIDE * LANES <= D;
      if (count == 4 && is_wide) add_value_block<number, 4, WIDE>(from, stride, values, num_keys, d, to, y_stride);
      else if (count == 4) add_value_block<number, 4, 1>(from, stride, values, num_keys, d, to, y_stride);
      else if (count == 2 && is_wide) add_value_block<number, 2, WIDE>(from, stride, values, num_keys, d, to, y_stride);
      else if (count == 2) add_value_block<number, 2, 1>(from, stride, values, num_keys, d, to, y_stride);
      else if (is_wide) add_value_block<number, 1, WIDE>(from, stride, values, num_keys, d, to, y_stride);
      else add_value_block<number, 1, 1>(from, stride, values, num_keys, d, to, y_stride);
      d += is_wide ? WIDE * LANES : LANES;
    }
    r += count;
  }
}

}  // namespace
