// How a level multiplies: vectors of `STEP` columns of x and of a weight, summed up into Floats.
//
// `FloatProducts` works everywhere. `Bf16Products` uses vdpbf16ps, which takes 32 pairs of bfloat16 at once; int8 and e4m3 are
// exact in bfloat16 and have their scale applied to the sums, int4 is rounded to bfloat16 with its scale.
#pragma once

#include "simd.h"

namespace {

struct FloatProducts {
  typedef float Element;
  typedef Floats Operand;
  typedef Floats Sums;
  typedef float Total;
  static constexpr int STEP = LANES;

  static Floats add(Floats sum, Operand a, Operand b) { return sum + a * b; }
  static Operand read(const Element* from) { return load<Floats>(from); }
  static void write(Element* to, Operand operand) { store(to, operand); }
  static Element narrow(float value) { return value; }
  static Operand zero() { return Floats{}; }

  template <trtx::Number number>
  static Operand unpack(const void* from) {
    return widen<number>(from);
  }

  // int4 with one scale and offset: of STEP bytes, the columns of their low nibbles and those of their high ones.
  struct Nibbles {
    Nibbles(float scale, float offset) : scale(scale), offset(offset) {}
    void unpack(const uint8_t* from, Operand& low, Operand& high) const {
      const Ints bytes = __builtin_convertvector(load<Bytes>(from), Ints);
      low = __builtin_convertvector((bytes & 15) - 8, Floats) * scale + offset;
      high = __builtin_convertvector((bytes >> 4) - 8, Floats) * scale + offset;
    }
    float scale, offset;
  };
};

#ifdef __AVX512BF16__
struct Bf16Products {
  typedef uint16_t Element;
  typedef __m512i Operand;
  typedef Floats Sums;
  typedef float Total;
  static constexpr int STEP = 32;

  static Floats add(Floats sum, Operand a, Operand b) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
  static Operand read(const Element* from) { return _mm512_loadu_si512(from); }
  static void write(Element* to, Operand operand) { _mm512_storeu_si512(to, operand); }
  static Element narrow(float value) { return narrow_bf16(value); }
  static Operand zero() { return _mm512_setzero_si512(); }

  static Operand join(__m512 low, __m512 high) { return (Operand)_mm512_cvtne2ps_pbh(high, low); }

  template <trtx::Number number>
  static Operand unpack(const void* from) {
    using trtx::Number;
    if constexpr (number == Number::bf16) return _mm512_loadu_si512(from);
    const __m256i bytes = _mm256_loadu_si256(static_cast<const __m256i*>(from));
    if constexpr (number == Number::i8) {
      const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
      const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
      return join(low, high);
    }
    return unpack_e4m3(bytes);
  }

  // Normal numbers by moving the bits and the exponent's bias, from 7 to 127; subnormals, magnitudes 0 … 7 times 2⁻⁹,
  // and NaN from a table.
  static Operand unpack_e4m3(__m256i bytes) {
    const __m512i words = _mm512_cvtepu8_epi16(bytes);
    const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7f));
    const __m512i subnormals = _mm512_broadcast_i32x4(_mm_setr_epi16(
        0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    const __mmask32 is_small = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
    const __m512i finite = _mm512_mask_permutexvar_epi16(normal, is_small, magnitude, subnormals);
    const __mmask32 is_nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    const __m512i value = _mm512_mask_mov_epi16(finite, is_nan, _mm512_set1_epi16(0x7fc0));
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(words, _mm512_set1_epi16(0x80)), 8);
    return _mm512_or_si512(value, sign);
  }

  // A table of what the 16 numbers stand for, rounded to bfloat16. The permutation looks at 5 bits of an index, and
  // the fifth may be anything: all is there twice.
  struct Nibbles {
    Nibbles(float scale, float offset) {
      const __m512 numbers = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
      const __m512 values = _mm512_fmadd_ps(numbers, _mm512_set1_ps(scale), _mm512_set1_ps(offset));
      table = _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(values));
    }
    void unpack(const uint8_t* from, Operand& low, Operand& high) const {
      const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      low = _mm512_permutexvar_epi16(words, table);
      high = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
    }
    __m512i table;
  };
};
#endif

// int8 times int8, summed in int32.
#ifdef __AVX512VNNI__
// vpdpbusd takes 64 pairs of an unsigned and a signed byte. Weights are made unsigned by adding 128, so that the sums are
// too large by 128 times the sum of x.
struct ByteProducts {
  typedef int8_t Element;
  typedef __m512i Operand;
  typedef __m512i Sums;
  typedef int32_t Total;
  static constexpr int STEP = 64;
  static constexpr int32_t ADDED = 128;

  static Sums add(Sums sum, Operand a, Operand b) { return _mm512_dpbusd_epi32(sum, b, a); }
  static Operand read(const Element* from) { return _mm512_loadu_si512(from); }

  template <trtx::Number number>
  static Operand unpack(const void* from) {
    return _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(char(0x80)));
  }
};
#else
// Pairs of neighbours, widened to 16 bits.
struct ByteProducts {
  typedef int8_t Element;
  typedef int16_t Operand __attribute__((vector_size(LANES * 4)));
  typedef int8_t Narrow __attribute__((vector_size(LANES * 2)));
  typedef Ints Sums;
  typedef int32_t Total;
  static constexpr int STEP = 2 * LANES;
  static constexpr int32_t ADDED = 0;

  static Sums add(Sums sum, Operand a, Operand b) {
#if defined(__AVX512BW__)
    return sum + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const Ints low = ((Ints)a << 16 >> 16) * ((Ints)b << 16 >> 16);
    return sum + low + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
  }
  static Operand read(const Element* from) { return __builtin_convertvector(load<Narrow>(from), Operand); }

  template <trtx::Number number>
  static Operand unpack(const void* from) {
    return read(static_cast<const Element*>(from));
  }
};
#endif

}  // namespace
