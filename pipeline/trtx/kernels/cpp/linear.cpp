// x · wᵀ with weights in any number format: every weight is read from memory once per call, in its stored format.
//
// For few tokens, weights are widened in registers on their way from memory into the products. For more tokens a task
// widens some rows at a time into its thread's cache first, so that the work of widening does not grow with the tokens.
// Columns that do not divide into vectors always go that second way, padded with zeros.

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
  switch (task.weight_number) {
    case Number::f32: return;
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

// Cut the output into tasks; `compute(n0, n1, sums)` fills the sums of some rows.
template <class Compute>
void run_tasks(const LinearTask& task, const Compute& compute) {
  const float* scale = task.weight_number == Number::i4 ? nullptr : task.scale;
  const int64_t size = choose_task_rows(task.N);
  for_each((task.N + size - 1) / size, [&](int64_t item) {
    const int64_t n0 = item * size, n1 = n0 + size < task.N ? n0 + size : task.N;
    auto* sums = static_cast<float*>(scratch<1>(task.M * SUMS_STRIDE * sizeof(float)));
    compute(n0, n1, sums);
    for (int64_t m = 0; m < task.M; ++m) put(task, sums + m * SUMS_STRIDE, scale, m, n0, n1);
  });
}

// Weights go from memory into the products; `make_rows(n0)` reads them from row n0 on.
template <class Products, class MakeRows>
void run_fused(const LinearTask& task, const MakeRows& make_rows) {
  const auto* x = prepare_tokens<Products>(task, task.K);
  run_tasks(task, [&](int64_t n0, int64_t n1, float* sums) {
    multiply_tokens(task.M, x, task.K, make_rows(n0), n1 - n0, sums, true);
  });
}

// Tile after tile, widened into the cache unless the weights are what the products take.
template <class Products>
void run_tiled(const LinearTask& task) {
  typedef typename Products::Element Element;
  constexpr Number wide = sizeof(Element) == 4 ? Number::f32 : Number::bf16;
  const int64_t padded = (task.K + Products::STEP - 1) / Products::STEP * Products::STEP;
  const bool as_is = task.weight_number == wide && padded == task.K;
  const int64_t unit = least_common_multiple(task.weight_number == Number::i4 ? task.group : 1, Products::STEP);
  const int64_t columns = padded > TILE_COLUMNS + unit ? (TILE_COLUMNS + unit - 1) / unit * unit : padded;
  const auto* x = prepare_tokens<Products>(task, padded);
  run_tasks(task, [&](int64_t n0, int64_t n1, float* sums) {
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
  });
}

template <class Products, Number number>
void run_fused_plain(const LinearTask& task) {
  run_fused<Products>(task, [&](int64_t n0) {
    return PlainRows<Products, number, true>{static_cast<const char*>(task.weight) + n0 * task.K * SIZE<number>, task.K, task.K};
  });
}

template <class Products>
void run(const LinearTask& task) {
  if (task.M > FUSED_TOKENS || task.K % Products::STEP) return run_tiled<Products>(task);
  if (task.weight_number == Number::bf16) return run_fused_plain<Products, Number::bf16>(task);
  if (task.weight_number == Number::i8) return run_fused_plain<Products, Number::i8>(task);
  if (task.weight_number == Number::e4m3) return run_fused_plain<Products, Number::e4m3>(task);
  if (task.group / 2 % Products::STEP) return run_tiled<Products>(task);
  run_fused<Products>(task, [&](int64_t n0) {
    const int64_t groups = task.K / task.group;
    const auto* weight = static_cast<const uint8_t*>(task.weight) + n0 * task.K / 2;
    return Int4Rows<Products>{weight, task.scale + n0 * groups, task.offset ? task.offset + n0 * groups : nullptr, groups, task.group};
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
