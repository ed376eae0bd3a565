// Vectors of floats as wide as the level's registers, in GCC's vector extensions, and the number formats they are read from.
// Conversions are exact; all that is specific to one instruction set stands under its macro.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "kernels.h"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));
typedef int8_t SignedBytes __attribute__((vector_size(LANES)));

template <class Vector>
inline Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class Vector>
inline void store(void* to, Vector vector) {
  std::memcpy(to, &vector, sizeof vector);
}

inline Floats spread(float value) { return Floats{} + value; }

inline float sum(Floats vector) {
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += vector[i];
  return total;
}

#if defined(__AVX512F__)
// Lane i of each quarter has a partial sum of vector i: the shuffles of four vectors at once.
template <int count, class Vector, class Add>
inline __m512 sum_quads(const Vector (&vectors)[count], const Add& add) {
  static_assert(count <= 4);
  const __m512 zero = _mm512_setzero_ps();
  const __m512 a = (__m512)vectors[0], b = count > 1 ? (__m512)vectors[count > 1 ? 1 : 0] : zero;
  const __m512 c = count > 2 ? (__m512)vectors[count > 2 ? 2 : 0] : zero;
  const __m512 d = count > 3 ? (__m512)vectors[count > 3 ? 3 : 0] : zero;
  const __m512 ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 quads = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m512 pairs = add(quads, _mm512_shuffle_f32x4(quads, quads, 0x4e));
  return add(pairs, _mm512_shuffle_f32x4(pairs, pairs, 0xb1));
}

#endif

// The sum of each of up to four vectors.
template <int count>
inline void sum_each(const Floats (&vectors)[count], float* to) {
#if defined(__AVX512F__)
  float sums[4];
  _mm_storeu_ps(sums, _mm512_castps512_ps128(sum_quads(vectors, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); })));
  for (int i = 0; i < count; ++i) to[i] = sums[i];
#else
  for (int i = 0; i < count; ++i) to[i] = sum(vectors[i]);
#endif
}

template <class Integers, int count>
inline void sum_each(const Integers (&vectors)[count], int32_t* to) {
#if defined(__AVX512F__)
  const auto add = [](__m512 a, __m512 b) { return (__m512)_mm512_add_epi32((__m512i)a, (__m512i)b); };
  int32_t sums[4];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), _mm512_castsi512_si128((__m512i)sum_quads(vectors, add)));
  for (int i = 0; i < count; ++i) to[i] = sums[i];
#else
  for (int i = 0; i < count; ++i) {
    to[i] = 0;
    for (int lane = 0; lane < LANES; ++lane) to[i] += vectors[i][lane];
  }
#endif
}

inline float largest(Floats vector) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)vector);
#else
  float most = vector[0];
  for (int i = 1; i < LANES; ++i) most = vector[i] > most ? vector[i] : most;
  return most;
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// bfloat16 is the upper half of a float.
inline Floats widen_bf16(const void* from) { return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16); }

inline float widen_bf16(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// To the nearest bfloat16, ties to even; a NaN stays one.
inline uint16_t narrow_bf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline Halves narrow_bf16(Floats values) {
  const Words words = (Words)values;
  const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const Words is_nan = (Words)((words & 0x7fffffffu) > 0x7f800000u);
  return __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), Halves);
}

// e4m3: a sign, 4 bits of exponent with bias 7, 3 bits of mantissa (OCP 8-bit floating point, arXiv:2209.05433). Below 8
// the magnitude is a subnormal, a multiple of 2⁻⁹. 0x7f is NaN.
inline Floats widen_e4m3(const void* from) {
  const Words bits = __builtin_convertvector(load<Bytes>(from), Words);
  const Words magnitude = bits & 0x7f, sign = (bits & 0x80) << 24;
  const Words normal = (magnitude << 20) + (120u << 23);
  const Words subnormal = (Words)(__builtin_convertvector((Ints)magnitude, Floats) * 0x1p-9f);
  const Words is_small = (Words)(magnitude < 8), is_nan = (Words)(magnitude == 0x7f);
  return (Floats)(sign | (is_small & subnormal) | (~is_small & normal) | (is_nan & 0x7fc00000u));
}

inline float widen_e4m3(uint8_t bits) {
  uint8_t row[LANES] = {bits};
  return widen_e4m3(row)[0];
}

inline Floats widen_i8(const void* from) {
  return __builtin_convertvector(__builtin_convertvector(load<SignedBytes>(from), Ints), Floats);
}

template <trtx::Number number>
inline Floats widen(const void* from) {
  using trtx::Number;
  if constexpr (number == Number::f32) return load<Floats>(from);
  if constexpr (number == Number::bf16) return widen_bf16(from);
  if constexpr (number == Number::e4m3) return widen_e4m3(from);
  if constexpr (number == Number::i8) return widen_i8(from);
  return Floats{};
}

// Bytes of one number.
template <trtx::Number number>
constexpr int64_t SIZE = number == trtx::Number::f32 ? 4 : number == trtx::Number::bf16 ? 2 : 1;

inline int64_t bytes_of(trtx::Number number) {
  return number == trtx::Number::f32 ? SIZE<trtx::Number::f32> : number == trtx::Number::bf16 ? SIZE<trtx::Number::bf16> : 1;
}

// Element `index` of an array.
template <trtx::Number number>
inline float widen_one(const void* array, int64_t index) {
  using trtx::Number;
  if constexpr (number == Number::f32) return static_cast<const float*>(array)[index];
  if constexpr (number == Number::bf16) return widen_bf16(static_cast<const uint16_t*>(array)[index]);
  if constexpr (number == Number::e4m3) return widen_e4m3(static_cast<const uint8_t*>(array)[index]);
  if constexpr (number == Number::i8) return float(static_cast<const int8_t*>(array)[index]);
  return 0;
}

// `count` numbers from any place, then zeros up to `padded`.
template <trtx::Number number>
inline void widen_row(const void* from, float* to, int64_t count, int64_t padded) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, widen<number>(static_cast<const char*>(from) + i * SIZE<number>));
  for (; i < count; ++i) to[i] = widen_one<number>(from, i);
  for (; i < padded; ++i) to[i] = 0;
}

// eˣ for x ≤ 0, relative error below 2e-7; 0 below −87. Range reduction by ln 2 in two parts, then the Taylor series.
inline Floats exp_nonpositive(Floats x) {
  const Floats clamped = larger(x, spread(-87.0f));
  const Floats shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 · 2²³: rounds to an integer in the low bits
  const Floats n = shifted - 12582912.0f;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = spread(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Words exponent = (Words)((Ints)shifted << 23) + (127u << 23);
  const Words is_zero = (Words)(x < -87.0f);
  return (Floats)((Words)(p * (Floats)exponent) & ~is_zero);
}

// (1 − e) / (1 + e) with e = exp(−2·|x|) and the sign of x; absolute error below 1e-7.
inline Floats tanh_of(Floats x) {
  const Words sign = (Words)x & 0x80000000u;
  const Floats e = exp_nonpositive((Floats)((Words)x | 0x80000000u) * 2.0f);
  return (Floats)((Words)((1.0f - e) / (1.0f + e)) | sign);
}

}  // namespace
