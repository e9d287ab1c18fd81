// Vectors of 16 floats, whatever the registers are, and the functions of them that the networks need.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

typedef float v16 __attribute__((ext_vector_type(16)));
typedef int32_t i16 __attribute__((ext_vector_type(16)));
typedef uint32_t u16 __attribute__((ext_vector_type(16)));
typedef float v16_unaligned __attribute__((ext_vector_type(16), aligned(4)));
typedef int32_t i16_unaligned __attribute__((ext_vector_type(16), aligned(4)));
typedef uint32_t u16_unaligned __attribute__((ext_vector_type(16), aligned(4)));
typedef uint16_t h16_unaligned __attribute__((ext_vector_type(16), aligned(2)));
typedef float v8_unaligned __attribute__((ext_vector_type(8), aligned(4)));

#define INLINE inline __attribute__((always_inline))

INLINE v16 load(const float *from) { return *(const v16_unaligned *)from; }
INLINE void store(float *to, v16 value) { *(v16_unaligned *)to = value; }
INLINE v16 splat(float value) { return (v16)(value); }
INLINE v16 zeros() { return (v16)(0.0f); }
INLINE v16 smaller(v16 one, v16 other) { return one < other ? one : other; }  // `other` where one is NaN
INLINE v16 larger(v16 one, v16 other) { return one > other ? one : other; }   // likewise
INLINE i16 bits(v16 value) { return __builtin_bit_cast(i16, value); }
INLINE v16 from_bits(i16 value) { return __builtin_bit_cast(v16, value); }

INLINE long round_up(long value, long multiple) { return (value + multiple - 1) / multiple * multiple; }

INLINE float sum_of(v16 value) {
  float total = 0;
  for (int lane = 0; lane < 16; lane++) total += value[lane];
  return total;
}

// Keep the first `count` lanes, zeros behind them.
INLINE v16 first_lanes(v16 value, long count) {
  const i16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane < (i16)((int)count) ? value : zeros();
}

#if defined(__AVX512F__)
INLINE __mmask16 mask_of(long count) { return (__mmask16)(count > 0 ? (1u << count) - 1 : 0); }  // count ≤ 16
#endif

// Load or store the first `count` lanes, none if it is negative, and nothing behind them; zeros in the others.
INLINE v16 load_first(const float *from, long count) {
  if (count >= 16) return load(from);
#if defined(__AVX512F__)
  return (v16)_mm512_maskz_loadu_ps(mask_of(count), from);
#else
  float lanes[16] = {};
  for (long lane = 0; lane < count; lane++) lanes[lane] = from[lane];
  return load(lanes);
#endif
}
INLINE void store_first(float *to, v16 value, long count) {
  if (count >= 16)
    store(to, value);
  else
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, mask_of(count), (__m512)value);
#else
    for (long lane = 0; lane < count; lane++) to[lane] = value[lane];
#endif
}

// 2^x for x in [-126, 127]: x = n + f, a polynomial through the Chebyshev points of [-1/2, 1/2] for 2^f. Of degree 5,
// 1e-7 of the value off at most; ROUGH, for what is rounded to bfloat16 next, of degree 3 and 1e-4. NaN stays NaN.
template <bool ROUGH = false>
INLINE v16 exp2_of(v16 x) {
  const v16 magic = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer, kept in the low bits
  v16 shifted = x + magic;
  v16 f = x - (shifted - magic);
  v16 p;
  if constexpr (ROUGH) {
    p = splat(0.0558382829f) * f + splat(0.242639479f);
    p = p * f + splat(0.693136734f);
    p = p * f + splat(0.999924557f);
  } else {
    p = splat(0.00133908634f) * f + splat(0.00967603192f);
    p = p * f + splat(0.0555035711f);
    p = p * f + splat(0.240221075f);
    p = p * f + splat(0.693147188f);
    p = p * f + splat(1.00000008f);
  }
  return p * from_bits((bits(shifted) << 23) + (i16)(0x3F800000));
}

INLINE v16 exp_of(v16 x) {
  v16 y = x * splat(1.44269504f);
  y = y > splat(-126.0f) ? y : (y <= splat(-126.0f) ? splat(-126.0f) : y);
  y = y < splat(127.0f) ? y : (y >= splat(127.0f) ? splat(127.0f) : y);
  return exp2_of(y);
}

INLINE v16 sigmoid_of(v16 x) { return splat(1.0f) / (splat(1.0f) + exp_of(-x)); }
INLINE v16 tanh_of(v16 x) { return splat(1.0f) - splat(2.0f) / (splat(1.0f) + exp_of(x + x)); }
INLINE v16 leaky_relu_of(v16 x, float slope) { return x > zeros() ? x : x * splat(slope); }

#if defined(__AVX512F__)
// Φ(t) − 1/2 = slope·t + start on the segment of 1/8 around i/8, through its Chebyshev points; 1/2 on the last one.
alignas(64) const float GELU_SLOPES[32] = {
    0.398812454f,   0.395710883f,   0.386550147f,   0.371751095f,  0.351979391f,  0.328095882f,   0.301094545f,
    0.272034234f,   0.241970709f,   0.211894946f,   0.182682507f,  0.155057183f,  0.129570274f,   0.106595146f,
    0.0863352278f,  0.0688425916f,  0.0540436835f,  0.0417687262f, 0.0317816235f, 0.0238078119f,  0.0175582586f,
    0.0127485842f,  0.00911299273f, 0.006413257f,   0.00444339391f, 0.00303088555f, 0.00203536737f, 0.00134565777f,
    0.000875880762f, 0.000561272669f, 0.000354096265f, 0};
alignas(64) const float GELU_STARTS[32] = {
    0,            0.000226067834f, 0.00197443257f, 0.00662699193f, 0.0153009359f, 0.0287543364f, 0.0473312667f,
    0.0709507085f, 0.0991378143f,  0.13109096f,    0.165774185f,   0.202022543f,  0.238647688f,  0.274532551f,
    0.308706746f, 0.340397817f,    0.369057033f,   0.39436155f,    0.416197111f,  0.434626813f,  0.449851872f,
    0.462169879f, 0.471935067f,    0.47952377f,    0.485306924f,   0.489630224f,  0.492801583f,  0.4950849f,
    0.496698801f, 0.497818923f,    0.498582428f,   0.5f};

// x·Φ(x) = x/2 + |x|·(Φ(|x|) − 1/2) by a table of 32 lines in registers, 4e-4 off at most. NaN stays NaN.
INLINE v16 gelu_by_table(v16 x) {
  v16 size = __builtin_elementwise_abs(x), t = smaller(size, splat(3.93f));
  __m512i segment = (__m512i)(t + splat(1572864.0f));  // 1.5 · 2^20: eighths are the low bits, of which 5 are looked at
  v16 slope = (v16)_mm512_permutex2var_ps(_mm512_load_ps(GELU_SLOPES), segment, _mm512_load_ps(GELU_SLOPES + 16));
  v16 start = (v16)_mm512_permutex2var_ps(_mm512_load_ps(GELU_STARTS), segment, _mm512_load_ps(GELU_STARTS + 16));
  return size * (slope * t + start) + x * splat(0.5f);
}
#endif

// Φ(x), the share of the normal distribution below x: Φ(x) − 1/2 = x·P(x²) with P through the Chebyshev points of [0, t²], written in u = 2x²/t² − 1; beyond |x| = t
// the factor is that of ±t. Of degree 12 for t = 5, 2e-6 off at most for |x| ≤ 8, even and odd powers apart so that
// no long chain of operations has to be waited for; ROUGH, for what is rounded to bfloat16 next, of degree 7 for t = 4
// and 5e-4. (The figures are those of x·Φ(x).) NaN stays NaN.
template <bool ROUGH = false>
INLINE v16 normal_below(v16 x) {
  const v16 limit = splat(ROUGH ? 4.0f : 5.0f);
  v16 c = x < limit ? x : limit;
  c = c > -limit ? c : -limit;
  v16 u = c * c * splat(ROUGH ? 0.125f : 0.08f) - splat(1.0f), square = u * u, even, odd;
  if constexpr (ROUGH) {
    even = splat(0.00902627419f) * square + splat(0.0206800307f);
    odd = splat(-0.0038433845f) * square + splat(-0.0118044835f);
    even = even * square + splat(0.0563095257f);
    odd = odd * square + splat(-0.037005298f);
    even = even * square + splat(0.175938007f);
    odd = odd * square + splat(-0.0843171859f);
  } else {
    even = splat(0.000705952991f) * square + splat(0.00146263157f);
    odd = splat(-0.00167403098f) * square + splat(-0.00253432234f);
    even = even * square + splat(0.00666780895f);
    odd = odd * square + splat(-0.0112997434f);
    even = even * square + splat(0.0162870702f);
    odd = odd * square + splat(-0.0232163442f);
    even = even * square + splat(0.031464872f);
    odd = odd * square + splat(-0.0404507113f);
    even = even * square + splat(0.0515189416f);
    odd = odd * square + splat(-0.0702959372f);
    even = even * square + splat(0.141363805f);
  }
  return c * (odd * u + even) + splat(0.5f);
}

// x·Φ(x); ROUGH by the table above where there is one.
template <bool ROUGH = false>
INLINE v16 gelu_of(v16 x) {
#if defined(__AVX512F__)
  if constexpr (ROUGH) return gelu_by_table(x);
#endif
  return x * normal_below<ROUGH>(x);
}

// The same and its derivative, Φ(x) + x·φ(x).
INLINE v16 gelu_slope_of(v16 x, v16 &value) {
  v16 below = normal_below(x);
  value = x * below;
  return below + x * splat(0.398942280f) * exp_of(x * x * splat(-0.5f));
}

// Two values as bfloat16, rounded to nearest even, in one word: `low` in its lower half.
INLINE u16 as_pairs(v16 low, v16 high) {
#if defined(__AVX512BF16__)
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                              21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (u16)_mm512_permutexvar_epi16(interleave, both);
#else
  const v16 nan = from_bits((i16)(0x7FC00000));  // of whatever payload: rounding would carry it into the sign
  u16 a = __builtin_bit_cast(u16, low == low ? low : nan), b = __builtin_bit_cast(u16, high == high ? high : nan);
  a = (a + (u16)(0x7FFF) + ((a >> 16) & (u16)(1))) >> 16;
  b = (b + (u16)(0x7FFF) + ((b >> 16) & (u16)(1))) & (u16)(0xFFFF0000u);
  return a | b;
#endif
}

// The same of two numbers.
INLINE uint32_t pair_of(float low, float high) { return as_pairs(splat(low), splat(high))[0]; }

// 16 numbers of bfloat16 as the lower halves of words.
INLINE u16 load_halves(const void *from) { return __builtin_convertvector(*(const h16_unaligned *)from, u16); }

// Transpose 16 vectors of 16 in registers.
INLINE void transpose_16(v16 (&r)[16]) {
  v16 t[16];
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
#pragma unroll
  for (int i = 0; i < 16; i += 4) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      r[i + j] = __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      r[i + j + 2] =
          __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  }
#pragma unroll
  for (int i = 0; i < 16; i += 8) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      t[i + j] = __builtin_shufflevector(r[i + j], r[i + j + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
      t[i + j + 4] =
          __builtin_shufflevector(r[i + j], r[i + j + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
  }
#pragma unroll
  for (int j = 0; j < 8; j++) {
    r[j] = __builtin_shufflevector(t[j], t[j + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    r[j + 8] = __builtin_shufflevector(t[j], t[j + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
}

}  // namespace
