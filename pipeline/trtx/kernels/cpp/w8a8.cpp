// int8 activations times int8 weights, summed in int32.

#include "kernels.h"
#include "tiles.h"

namespace trtx {
namespace TRTX_LEVEL {
namespace {

constexpr int64_t TILE_COLUMNS = 2048;

// A vector of x from column k, smoothed.
template <Number number>
inline Floats read_smoothed(const W8a8Task& task, const void* x, int64_t k) {
  const Floats values = widen<number>(static_cast<const char*>(x) + k * SIZE<number>);
  return task.pre_quant_scale ? values * load<Floats>(task.pre_quant_scale + k) : values;
}

template <Number number>
inline float read_smoothed_one(const W8a8Task& task, const void* x, int64_t k) {
  const float value = widen_one<number>(x, k);
  return task.pre_quant_scale ? value * task.pre_quant_scale[k] : value;
}

inline float magnitude(float value) { return value < 0 ? -value : value; }

// The scale of a token without one: its largest magnitude is 127.
template <Number number>
float find_scale(const W8a8Task& task, const void* x) {
  Floats most = {};
  int64_t k = 0;
  for (; k + LANES <= task.K; k += LANES)
    most = larger(most, (Floats)((Words)read_smoothed<number>(task, x, k) & 0x7fffffffu));
  float found = largest(most);
  for (; k < task.K; ++k) {
    const float value = magnitude(read_smoothed_one<number>(task, x, k));
    found = value > found ? value : found;
  }
  return found > 0 ? found / 127.0f : 1.0f;
}

// To the nearest integer, ties to even, for magnitudes up to 2²²: the sum's low bits are the integer.
inline Ints round(Floats values) { return (Ints)(values + 12582912.0f) - 0x4b400000; }

inline Floats clamp(Floats values) {
  const Floats low = spread(-128), high = spread(127);
  const Floats floor = values > low ? values : low;
  return floor < high ? floor : high;
}

// One token as int8, zeros from K to `padded`. Returns the sum of its numbers.
template <Number number>
int32_t quantize_token(const W8a8Task& task, const void* x, float scale, int8_t* to, int64_t padded) {
  Ints sums = {};
  int64_t k = 0;
  for (; k + LANES <= task.K; k += LANES) {
    const Ints rounded = round(clamp(read_smoothed<number>(task, x, k) / scale));
    sums += rounded;
    store(to + k, __builtin_convertvector(rounded, SignedBytes));
  }
  int32_t sum = 0;
  for (int i = 0; i < LANES; ++i) sum += sums[i];
  for (; k < task.K; ++k) {
    to[k] = int8_t(round(clamp(spread(read_smoothed_one<number>(task, x, k) / scale)))[0]);
    sum += to[k];
  }
  for (; k < padded; ++k) to[k] = 0;
  return sum;
}

struct Tokens {
  int8_t* x;       // [M, padded]
  int32_t* sums;   // [M]
  float* scales;   // [M]
};

void quantize(const W8a8Task& task, int64_t padded, const Tokens& tokens) {
  // Few tokens are done sooner than threads wake up.
  constexpr int64_t SOME = 8;
  for_each((task.M + SOME - 1) / SOME, [&](int64_t item) {
    for (int64_t m = item * SOME; m < task.M && m < (item + 1) * SOME; ++m) {
      int8_t* to = tokens.x + m * padded;
      if (task.number == Number::f32) {
        const auto* row = static_cast<const float*>(task.x) + m * task.K;
        tokens.scales[m] = task.input_scale ? *task.input_scale : find_scale<Number::f32>(task, row);
        tokens.sums[m] = quantize_token<Number::f32>(task, row, tokens.scales[m], to, padded);
      } else {
        const auto* row = static_cast<const uint16_t*>(task.x) + m * task.K;
        tokens.scales[m] = task.input_scale ? *task.input_scale : find_scale<Number::bf16>(task, row);
        tokens.sums[m] = quantize_token<Number::bf16>(task, row, tokens.scales[m], to, padded);
      }
    }
  });
}

// A token's output from row n0 on.
void put(const W8a8Task& task, float scale, int32_t excess, const int32_t* totals, int64_t m, int64_t n0, int64_t n1) {
  float values[MAX_TASK_ROWS];
  for (int64_t n = n0; n < n1; ++n) values[n - n0] = float(totals[n - n0] - excess) * (scale * task.scale[n]);
  if (task.number == Number::f32) {
    std::memcpy(static_cast<float*>(task.y) + m * task.N + n0, values, (n1 - n0) * 4);
  } else {
    auto* y = static_cast<uint16_t*>(task.y) + m * task.N;
    for (int64_t n = n0; n < n1; ++n) y[n] = narrow_bf16(values[n - n0]);
  }
}

}  // namespace

void w8a8(const W8a8Task& task) {
  typedef ByteProducts Products;
  const int64_t padded = (task.K + Products::STEP - 1) / Products::STEP * Products::STEP;
  const bool as_is = padded == task.K;
  const int64_t columns = as_is && task.M > 8 && padded > TILE_COLUMNS ? TILE_COLUMNS : padded;
  auto* sums = static_cast<int32_t*>(scratch<1>(task.M * 8));
  const Tokens tokens{static_cast<int8_t*>(scratch<0>(task.M * padded)), sums, reinterpret_cast<float*>(sums + task.M)};
  quantize(task, padded, tokens);
  const int64_t size = choose_task_rows(task.N);
  for_each((task.N + size - 1) / size, [&](int64_t item) {
    const int64_t n0 = item * size, n1 = n0 + size < task.N ? n0 + size : task.N;
    auto* totals = static_cast<int32_t*>(scratch<2>(task.M * SUMS_STRIDE * 4));
    auto* tile = as_is ? nullptr : static_cast<char*>(scratch<3>(TILE_ROWS * padded));
    for (int64_t n = n0; n < n1; n += TILE_ROWS) {
      const int64_t num_rows = n1 - n < TILE_ROWS ? n1 - n : TILE_ROWS;
      const char* weight = reinterpret_cast<const char*>(task.weight) + n * task.K;
      for (int64_t r = 0; !as_is && r < num_rows; ++r) {
        std::memcpy(tile + r * padded, weight + r * task.K, task.K);
        std::memset(tile + r * padded + task.K, 0, padded - task.K);
      }
      for (int64_t k = 0; k < padded; k += columns) {
        const int64_t count = padded - k < columns ? padded - k : columns;
        const PlainRows<Products, Number::i8, true> rows{as_is ? weight + k : tile, padded, count};
        multiply_tokens(task.M, tokens.x + k, padded, rows, num_rows, totals + (n - n0), k == 0);
      }
    }
    for (int64_t m = 0; m < task.M; ++m)
      put(task, tokens.scales[m], ByteProducts::ADDED * tokens.sums[m], totals + m * SUMS_STRIDE, m, n0, n1);
  });
}

void quantize(const W8a8Task& task, int8_t* x, float* scales) {
  quantize(task, task.K, Tokens{x, static_cast<int32_t*>(scratch<1>(task.M * 4)), scales});
}

void scale_sums(const W8a8Task& task, const int32_t* sums, const float* scales) {
  for_each(task.M, [&](int64_t m) {
    for (int64_t n = 0; n < task.N; n += MAX_TASK_ROWS)
      put(task, scales[m], 0, sums + m * task.N + n, m, n, n + MAX_TASK_ROWS < task.N ? n + MAX_TASK_ROWS : task.N);
  });
}

}  // namespace TRTX_LEVEL
}  // namespace trtx
