// Products of a matrix and a block of columns, in float32 or from operands rounded to bfloat16.
//
// out[i][n] = Σ_k A[i][k]·B[k][n] for all rows i and a block of 32 columns n. A lies as columns, A[k·pitch + i], and B
// as rows of vectors, so that a tile of rows × vectors stays in registers while k runs: one number of A is spread over
// a register and multiplied with the vectors of B. With bfloat16 a word holds two k, and a step takes both.
#pragma once
#include "vectors.h"

enum { BLOCK = 32, VECTORS = BLOCK / 16 };  // columns of a block
enum { PANEL = 12 };                        // rows side by side where a matrix is laid out for one product
#if defined(__AVX512F__)
enum { TILE_ROWS = 12, TILE_VECTORS = 2 };  // 24 of 32 registers hold sums
#else
enum { TILE_ROWS = 4, TILE_VECTORS = 1 };  // a vector is 2 registers of AVX, 4 of SSE and NEON
#endif

namespace {

// Where a row of A is read, up to 3 more may be: matrices are padded to a multiple of 4 rows.
INLINE long padded_rows(long rows) { return round_up(rows, 4); }

// `next_vector`: how far the vectors of a row of B are apart.
template <int ROWS, int WIDE>
INLINE void multiply(v16 (&sums)[ROWS][WIDE], long depth, const float *a, long pitch_a, const float *b, long pitch_b,
                     long next_vector = 16) {
  for (long k = 0; k < depth; k++, a += pitch_a, b += pitch_b) {
    v16 columns[WIDE];
#pragma unroll
    for (int n = 0; n < WIDE; n++) columns[n] = load(b + next_vector * n);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int n = 0; n < WIDE; n++) sums[i][n] += splat(a[i]) * columns[n];
  }
}

template <int ROWS, int WIDE>
INLINE void multiply(v16 (&sums)[ROWS][WIDE], long depth, const uint32_t *a, long pitch_a, const uint32_t *b,
                     long pitch_b, long next_vector = 16) {
  for (long k = 0; k < depth; k++, a += pitch_a, b += pitch_b) {
#if defined(__AVX512BF16__)
    __m512i columns[WIDE];
#pragma unroll
    for (int n = 0; n < WIDE; n++) columns[n] = _mm512_loadu_si512(b + next_vector * n);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      __m512bh factor = (__m512bh)_mm512_set1_epi32((int)a[i]);
#pragma unroll
      for (int n = 0; n < WIDE; n++)
        sums[i][n] = (v16)_mm512_dpbf16_ps((__m512)sums[i][n], factor, (__m512bh)columns[n]);
    }
#else
#pragma unroll
    for (int n = 0; n < WIDE; n++) {
      u16 pair = *(const u16_unaligned *)(b + next_vector * n);
      u16 upper = pair & (u16)(0xFFFF0000u), lower = pair << 16;
      v16 low = __builtin_bit_cast(v16, lower), high = __builtin_bit_cast(v16, upper);
#pragma unroll
      for (int i = 0; i < ROWS; i++)
        sums[i][n] += splat(__builtin_bit_cast(float, a[i] << 16)) * low +
                      splat(__builtin_bit_cast(float, a[i] & 0xFFFF0000u)) * high;
    }
#endif
  }
}

template <int ROWS, int WIDE, typename Sum, typename Finish>
INLINE void run_tile(long row, long rows, int n, Sum &sum, Finish &finish) {
  v16 sums[ROWS][WIDE];
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int m = 0; m < WIDE; m++) sums[i][m] = zeros();
  sum(sums, row, n);
#pragma unroll
  for (int i = 0; i < ROWS; i += Finish::STEP)
    if (row + i < rows) {
#pragma unroll
      for (int m = 0; m < WIDE; m++) finish(row + i, n + m, sums[i][m], sums[i + Finish::STEP - 1][m]);
    }
}

// Go through all rows in tiles: `sum(sums, row, vector)` adds products to the sums of a tile, `finish` takes each result.
template <int WIDE, typename Sum, typename Finish>
INLINE void for_rows(long rows, int n, Sum &sum, Finish &finish) {
  long row = 0;
  for (; row + TILE_ROWS <= rows; row += TILE_ROWS) run_tile<TILE_ROWS, WIDE>(row, rows, n, sum, finish);
#if defined(__AVX512F__)
  if (rows - row > 4) {
    run_tile<8, WIDE>(row, rows, n, sum, finish);
    row += 8;
  }
#endif
  for (; row < rows; row += 4) run_tile<4, WIDE>(row, rows, n, sum, finish);
}

// What takes results row by row, as take(row, vector, value).
template <typename Take>
struct ByRow {
  enum { STEP = 1 };
  Take &take;
  INLINE void operator()(long row, int n, v16 value, v16) { take(row, n, value); }
};

// What takes results line by line of cells (below), as take(line, vector, values): one row's or, of bfloat16, two's.
template <bool HALF, typename Take>
struct ByLine {
  enum { STEP = HALF ? 2 : 1 };
  Take &take;
  INLINE void operator()(long row, int n, v16 value, v16 next) {
    const v16 values[2] = {value, next};
    take(row / STEP, n, values);
  }
};

template <typename Sum, typename Finish>
INLINE void for_tiles_by(long rows, Sum &sum, Finish finish) {
#pragma unroll
  for (int n = 0; n < VECTORS; n += TILE_VECTORS) for_rows<TILE_VECTORS>(rows, n, sum, finish);
}

// The same of as many columns of the block as are wanted.
template <typename Sum, typename Finish>
INLINE void for_tiles_by(long rows, long columns, Sum &sum, Finish finish) {
  if (columns > BLOCK - 16)
    for_tiles_by(rows, sum, finish);
  else
    for_rows<1>(rows, 0, sum, finish);
}

template <typename Sum, typename Take>
INLINE void for_tiles(long rows, Sum sum, Take take) {
  for_tiles_by(rows, sum, ByRow<Take>{take});
}
template <typename Sum, typename Take>
INLINE void for_tiles(long rows, long columns, Sum sum, Take take) {
  for_tiles_by(rows, columns, sum, ByRow<Take>{take});
}
#define TILE(...) [&](__VA_ARGS__) __attribute__((always_inline))

// What products of a precision read: numbers, or pairs of bfloat16.
template <bool HALF>
struct Operand {
  typedef float Element;
};
template <>
struct Operand<true> {
  typedef uint32_t Element;
};
template <bool HALF>
INLINE long depth_of(long depth) {
  return HALF ? (depth + 1) / 2 : depth;
}

// Lines of cells hold features as products read them: a cell is one number or, of bfloat16, two channels in a word. Both
// have the size of a float, and are moved about as such.
template <bool HALF>
INLINE v16 load_cells(const float *from, int part) {
  if constexpr (HALF) {
    u16 word = *(const u16_unaligned *)from;
    return __builtin_bit_cast(v16, part ? word & (u16)(0xFFFF0000u) : word << 16);
  } else {
    return load(from);
  }
}

// Store the numbers of `number(part)` for each part of 16 cells.
template <bool HALF, typename Number>
INLINE void store_cells(float *to, Number number) {
  if constexpr (HALF)
    *(u16_unaligned *)to = as_pairs(number(0), number(1));
  else
    store(to, number(0));
}

// Weights as columns: A[k·pitch + i].
template <bool HALF>
struct Weights {
  const typename Operand<HALF>::Element *data;
  long rows, depth, pitch;
};

// Lay out rows × depth numbers, `number(row, k)`, as columns at `to`.
template <bool HALF, typename Number>
INLINE Weights<HALF> lay_out(long rows, long depth, typename Operand<HALF>::Element *to, Number number) {
  long pitch = padded_rows(rows), steps = depth_of<HALF>(depth);
  for (long k = 0; k < steps; k++)
    for (long row = 0; row < pitch; row++) {
      bool there = row < rows;
      if constexpr (HALF) {
        float low = there ? number(row, 2 * k) : 0, high = there && 2 * k + 1 < depth ? number(row, 2 * k + 1) : 0;
        to[k * pitch + row] = pair_of(low, high);
      } else {
        to[k * pitch + row] = there ? number(row, k) : 0;
      }
    }
  return {to, rows, steps, pitch};
}

// Round a block of columns to pairs of bfloat16, k and k + 1 in a word (zeros behind the last).
INLINE void pair_block(long depth, const float *b, long pitch_b, uint32_t *to) {
  for (long k = 0; k < depth; k += 2)
#pragma unroll
    for (int n = 0; n < VECTORS; n++) {
      v16 high = k + 1 < depth ? load(b + (k + 1) * pitch_b + 16 * n) : zeros();
      *(u16_unaligned *)(to + k / 2 * BLOCK + 16 * n) = as_pairs(load(b + k * pitch_b + 16 * n), high);
    }
}

// Multiply weights with a block of columns of `depth` numbers; `pairs` has room for depth / 2 · BLOCK words.
template <bool HALF, typename Take>
INLINE void multiply_block(const Weights<HALF> &a, long depth, const float *b, long pitch_b, uint32_t *pairs,
                           long columns, Take take) {
  if constexpr (HALF) {
    pair_block(depth, b, pitch_b, pairs);
    for_tiles(a.rows, columns,
              TILE(auto &sums, long row, int n) { multiply(sums, a.depth, a.data + row, a.pitch, pairs + 16 * n, BLOCK); },
              take);
  } else {
    for_tiles(a.rows, columns,
              TILE(auto &sums, long row, int n) { multiply(sums, a.depth, a.data + row, a.pitch, b + 16 * n, pitch_b); },
              take);
  }
}

// Multiply weights with a block of columns of cells, whose vectors are `next_vector` apart: take(line, vector, values).
template <bool HALF, typename Take>
INLINE void multiply_cells(const Weights<HALF> &a, const float *b, long pitch_b, long next_vector, long columns,
                           Take take) {
  const auto *cells = (const typename Operand<HALF>::Element *)b;
  auto sum = TILE(auto &sums, long row, int n) {
    multiply(sums, a.depth, a.data + row, a.pitch, cells + next_vector * n, pitch_b, next_vector);
  };
  for_tiles_by(a.rows, columns, sum, ByLine<HALF, Take>{take});
}

// Softmax over the keys of a block of queries: scores (keys × BLOCK, powers of two) become 2^(score − `most`), never so
// small that it is slow to multiply with, in `weights` (`scores` themselves in float32); `share`: 1 over their sum.
template <bool HALF>
INLINE void weigh_scores(float *scores, long keys, const v16 (&most)[VECTORS], typename Operand<HALF>::Element *weights,
                         v16 (&share)[VECTORS]) {
  auto weigh = TILE(long key, int n) {
    v16 off = load(scores + key * BLOCK + 16 * n) - most[n];
    return exp2_of<HALF>(off < splat(-100) ? splat(-100) : off);
  };
  v16 total[VECTORS] = {};
  for (long key = 0; key < keys; key += HALF ? 2 : 1)
#pragma unroll
    for (int n = 0; n < VECTORS; n++) {
      v16 weight = weigh(key, n);
      if constexpr (HALF) {
        v16 other = key + 1 < keys ? weigh(key + 1, n) : zeros();
        *(u16_unaligned *)(weights + key / 2 * BLOCK + 16 * n) = as_pairs(weight, other);
        total[n] += weight + other;
      } else {
        store(weights + key * BLOCK + 16 * n, weight);
        total[n] += weight;
      }
    }
  for (int n = 0; n < VECTORS; n++) share[n] = splat(1) / total[n];
}

}  // namespace
