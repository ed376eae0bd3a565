// x · wᵀ with weights in any number format: every weight is read from memory once per call, in its stored format.
//
// For few tokens, weights are widened in registers on their way from memory into the products. For more tokens a task
// widens some rows at a time into its thread's cache first, so that the work of widening does not grow with the tokens.
// Columns that do not divide into vectors always go that second way, padded with zeros.

#include <type_traits>

#include "kernels.h"
#include "tiles.h"

namespace trtx {
namespace TRTX_LEVEL {
namespace {

// With more tokens than this, weights are widened into the cache.
constexpr int64_t FUSED_TOKENS = 8;

// Whole rows of int4 with a scale for every group.
template <class Products>
struct Int4Rows {
  typedef typename Products::Element Element;
  typedef typename Products::Sums Sums;
  typedef typename Products::Total Total;

  const uint8_t* weight;
  const float* scale;
  const float* offset;
  int64_t groups, group;

  template <int tokens, int rows>
  void multiply(
      const Element* const (&x)[tokens], const int64_t (&n)[rows], Sums (&sums)[tokens][rows]) const {
    const int64_t half = group / 2;
    for (int64_t g = 0; g < groups; ++g)
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const uint8_t* bytes = weight + (n[r] * groups + g) * half;
        const int64_t at = n[r] * groups + g;
        const typename Products::Nibbles nibbles(scale[at], offset ? offset[at] : 0.0f);
        for (int64_t j = 0; j < half; j += Products::STEP) {
          typename Products::Operand low, high;
          __builtin_prefetch(bytes + j + rows * groups * half);
          nibbles.unpack(bytes + j, low, high);
#pragma GCC unroll 8
          for (int m = 0; m < tokens; ++m) {
            const auto* from = x[m] + g * group + j;
            sums[m][r] = Products::add(sums[m][r], Products::read(from), low);
            sums[m][r] = Products::add(sums[m][r], Products::read(from + half), high);
          }
        }
      }
  }
};

// `count` columns of row n from column `first`, as numbers of the products, then zeros up to `padded`.
template <class Products, Number number>
void widen_plain(
    const LinearTask& task, int64_t n, int64_t first, int64_t count, typename Products::Element* to, int64_t padded) {
  const char* from = static_cast<const char*>(task.weight) + (n * task.K + first) * SIZE<number>;
  int64_t k = 0;
  for (; k + Products::STEP <= count; k += Products::STEP) {
    __builtin_prefetch(from + (k + 2 * task.K) * SIZE<number>);
    Products::write(to + k, Products::template unpack<number>(from + k * SIZE<number>));
  }
  for (; k < count; ++k) to[k] = Products::narrow(widen_one<number>(from, k));
  for (; k < padded; ++k) to[k] = 0;
}

// The same for int4, with its scales and offsets; `first` and `count` are whole groups.
template <class Products>
void widen_int4(
    const LinearTask& task, int64_t n, int64_t first, int64_t count, typename Products::Element* to, int64_t padded) {
  const int64_t half = task.group / 2;
  const uint8_t* bytes = static_cast<const uint8_t*>(task.weight) + (n * task.K + first) / 2;
  int64_t at = (n * task.K + first) / task.group;
  for (int64_t k = 0; k < count; k += task.group, bytes += half, ++at) {
    const float scale = task.scale[at], offset = task.offset ? task.offset[at] : 0.0f;
    const typename Products::Nibbles nibbles(scale, offset);
    int64_t j = 0;
    for (; j + Products::STEP <= half; j += Products::STEP) {
      typename Products::Operand low, high;
      __builtin_prefetch(bytes + j + task.K);
      nibbles.unpack(bytes + j, low, high);
      Products::write(to + k + j, low);
      Products::write(to + k + half + j, high);
    }
    for (; j < half; ++j) {
      to[k + j] = Products::narrow(float((bytes[j] & 15) - 8) * scale + offset);
      to[k + half + j] = Products::narrow(float((bytes[j] >> 4) - 8) * scale + offset);
    }
  }
  for (int64_t k = count; k < padded; ++k) to[k] = 0;
}

template <class Products>
void widen_any(
    const LinearTask& task, int64_t n, int64_t first, int64_t count, typename Products::Element* to, int64_t padded) {
  if constexpr (std::is_same_v<Products, FloatProducts>)
    if (task.weight_number == Number::f32) return widen_plain<Products, Number::f32>(task, n, first, count, to, padded);
  switch (task.weight_number) {
    case Number::f32: return;  // never of bfloat16 tokens
    case Number::bf16: return widen_plain<Products, Number::bf16>(task, n, first, count, to, padded);
    case Number::e4m3: return widen_plain<Products, Number::e4m3>(task, n, first, count, to, padded);
    case Number::i8: return widen_plain<Products, Number::i8>(task, n, first, count, to, padded);
    case Number::i4: return widen_int4<Products>(task, n, first, count, to, padded);
  }
}

// All tokens as numbers of the products, in rows of `padded` numbers; x itself where it is that already.
template <class Products>
const typename Products::Element* prepare_tokens(const LinearTask& task, int64_t padded) {
  typedef typename Products::Element Element;
  constexpr Number number = sizeof(Element) == 4 ? Number::f32 : Number::bf16;
  if (task.number == number && padded == task.K) return static_cast<const Element*>(task.x);
  auto* copy = static_cast<Element*>(scratch<0>(task.M * padded * sizeof(Element)));
  for (int64_t m = 0; m < task.M; ++m) {
    if constexpr (sizeof(Element) == 2) {
      std::memcpy(copy + m * padded, static_cast<const uint16_t*>(task.x) + m * task.K, task.K * 2);
      std::memset(copy + m * padded + task.K, 0, (padded - task.K) * 2);
    } else if (task.number == Number::f32) {
      widen_row<Number::f32>(static_cast<const float*>(task.x) + m * task.K, copy + m * padded, task.K, padded);
    } else {
      widen_row<Number::bf16>(static_cast<const uint16_t*>(task.x) + m * task.K, copy + m * padded, task.K, padded);
    }
  }
  return copy;
}

// Numbers of one token's output from row n0 on, scaled.
inline void put(const LinearTask& task, const float* sums, const float* scale, int64_t m, int64_t n0, int64_t n1) {
  const int64_t at = m * task.N;
  int64_t n = n0;
  for (; n + LANES <= n1; n += LANES) {
    const Floats values = scale ? load<Floats>(sums + n - n0) * load<Floats>(scale + n) : load<Floats>(sums + n - n0);
    if (task.number == Number::f32) store(static_cast<float*>(task.y) + at + n, values);
    else store(static_cast<uint16_t*>(task.y) + at + n, narrow_bf16(values));
  }
  for (; n < n1; ++n) {
    const float value = scale ? sums[n - n0] * scale[n] : sums[n - n0];
    if (task.number == Number::f32) static_cast<float*>(task.y)[at + n] = value;
    else static_cast<uint16_t*>(task.y)[at + n] = narrow_bf16(value);
  }
}

// Weights go from memory into the products.
template <class Products, Number number>
void multiply_fused(const LinearTask& task, const typename Products::Element* x, int64_t n0, int64_t n1, float* sums) {
  const char* weight = static_cast<const char*>(task.weight) + n0 * task.K * SIZE<number>;
  multiply_tokens(task.M, x, task.K, PlainRows<Products, number, true>{weight, task.K, task.K}, n1 - n0, sums, true);
}

template <class Products>
void multiply_fused_int4(const LinearTask& task, const typename Products::Element* x, int64_t n0, int64_t n1, float* sums) {
  const int64_t groups = task.K / task.group;
  const auto* weight = static_cast<const uint8_t*>(task.weight) + n0 * task.K / 2;
  const float* offset = task.offset ? task.offset + n0 * groups : nullptr;
  const Int4Rows<Products> rows{weight, task.scale + n0 * groups, offset, groups, task.group};
  multiply_tokens(task.M, x, task.K, rows, n1 - n0, sums, true);
}

// Tile after tile, widened into the cache unless the weights are what the products take.
template <class Products>
void multiply_tiled(
    const LinearTask& task, const typename Products::Element* x, int64_t padded, int64_t n0, int64_t n1, float* sums) {
  typedef typename Products::Element Element;
  constexpr Number wide = sizeof(Element) == 4 ? Number::f32 : Number::bf16;
  const bool as_is = task.weight_number == wide && padded == task.K;
  const int64_t unit = least_common_multiple(task.weight_number == Number::i4 ? task.group : 1, Products::STEP);
  const int64_t columns = padded > TILE_COLUMNS + unit ? (TILE_COLUMNS + unit - 1) / unit * unit : padded;
  auto* tile = static_cast<Element*>(scratch<2>(TILE_ROWS * columns * sizeof(Element)));
  for (int64_t n = n0; n < n1; n += TILE_ROWS) {
    const int64_t num_rows = n1 - n < TILE_ROWS ? n1 - n : TILE_ROWS;
    for (int64_t k = 0; k < padded; k += columns) {
      const int64_t count = padded - k < columns ? padded - k : columns;
      float* to = sums + (n - n0);
      if (as_is) {
        const char* weight = static_cast<const char*>(task.weight) + (n * task.K + k) * SIZE<wide>;
        multiply_tokens(task.M, x + k, padded, PlainRows<Products, wide, true>{weight, task.K, count}, num_rows, to, k == 0);
        continue;
      }
      for (int64_t r = 0; r < num_rows; ++r)
        widen_any<Products>(task, n + r, k, task.K - k < count ? task.K - k : count, tile + r * count, count);
      const PlainRows<Products, wide, false> rows{reinterpret_cast<const char*>(tile), count, count};
      multiply_tokens(task.M, x + k, padded, rows, num_rows, to, k == 0);
    }
  }
}

// The sums of output rows n0 to n1, in the way that pays for so many tokens.
template <class Products>
void multiply(
    const LinearTask& task, const typename Products::Element* x, int64_t padded, int64_t n0, int64_t n1, float* sums) {
  if (task.M > FUSED_TOKENS || task.K % Products::STEP) return multiply_tiled<Products>(task, x, padded, n0, n1, sums);
  switch (task.weight_number) {
    case Number::bf16: return multiply_fused<Products, Number::bf16>(task, x, n0, n1, sums);
    case Number::i8: return multiply_fused<Products, Number::i8>(task, x, n0, n1, sums);
    case Number::e4m3: return multiply_fused<Products, Number::e4m3>(task, x, n0, n1, sums);
    case Number::i4:
      if (task.group / 2 % Products::STEP == 0) return multiply_fused_int4<Products>(task, x, n0, n1, sums);
      [[fallthrough]];
    case Number::f32: return multiply_tiled<Products>(task, x, padded, n0, n1, sums);
  }
}

// The product of one share: its rows, with its matrix and the scales of that.
inline LinearTask select(const LinearTask& task, const Share& share) {
  const bool is_int4 = task.weight_number == Number::i4;
  const int64_t numbers = task.N * task.K;
  const int64_t scales = share.matrix * (is_int4 ? numbers / task.group : task.N);
  const int64_t bytes = is_int4 ? numbers / 2 : numbers * bytes_of(task.weight_number);
  LinearTask part = task;
  part.y = static_cast<char*>(task.y) + share.first * task.N * bytes_of(task.number);
  part.weight = static_cast<const char*>(task.weight) + share.matrix * bytes;
  if (task.scale) part.scale += scales;
  if (task.offset) part.offset += scales;
  part.M = share.count;
  return part;
}

// Cut the output of every share into items of some rows, which threads take one after another.
template <class Products>
void run(const LinearTask& task) {
  const int64_t padded = (task.K + Products::STEP - 1) / Products::STEP * Products::STEP;
  const auto* x = prepare_tokens<Products>(task, padded);
  const int64_t size = choose_task_rows(task.N), items = (task.N + size - 1) / size;
  const Share all{0, 0, task.M};
  const Share* shares = task.shares ? task.shares : &all;
  for_each(items * (task.shares ? task.num_shares : 1), [&](int64_t item) {
    const Share& share = shares[item / items];
    const LinearTask part = select(task, share);
    const int64_t n0 = item % items * size, n1 = n0 + size < task.N ? n0 + size : task.N;
    auto* sums = static_cast<float*>(scratch<1>(part.M * SUMS_STRIDE * sizeof(float)));
    multiply<Products>(part, x + share.first * padded, padded, n0, n1, sums);
    const float* scale = task.weight_number == Number::i4 ? nullptr : part.scale;
    for (int64_t m = 0; m < part.M; ++m) put(part, sums + m * SUMS_STRIDE, scale, m, n0, n1);
  });
}

}  // namespace

void linear(const LinearTask& task) {
#ifdef __AVX512BF16__
  if (task.number == Number::bf16) return run<Bf16Products>(task);
#endif
  run<FloatProducts>(task);
}

}  // namespace TRTX_LEVEL
}  // namespace trtx
