// A square block of numbers, rows to columns.
#pragma once

#include <utility>

#include "simd.h"

namespace {

// Of two rows `distance` apart, the one that keeps (or the one that takes) every other group of `distance` numbers.
template <int distance, bool upper, int... lane>
inline Floats mix(Floats a, Floats b, std::integer_sequence<int, lane...>) {
  if constexpr (upper) return __builtin_shufflevector(a, b, ((lane & distance) ? LANES + lane : lane + distance)...);
  else return __builtin_shufflevector(a, b, ((lane & distance) ? LANES + lane - distance : lane)...);
}

template <int distance>
inline void exchange(Floats (&rows)[LANES]) {
  if constexpr (distance < LANES) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>{};
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      if (i & distance) continue;
      const Floats a = rows[i], b = rows[i + distance];
      rows[i] = mix<distance, false>(a, b, lanes);
      rows[i + distance] = mix<distance, true>(a, b, lanes);
    }
    exchange<2 * distance>(rows);
  }
}

inline void transpose(Floats (&rows)[LANES]) { exchange<1>(rows); }

}  // namespace
