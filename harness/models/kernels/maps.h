// Feature maps as rows of lines: map[image][row][channel][column], so that vectors run along the columns.
//
// A line has 16 zeros before its first column and at least 16 behind its last one, so that what lies beside a pixel can
// be read without asking where the image ends. A map has 64 floats more than its lines. A map of cells (products.h) in
// bfloat16 has a line for two channels; all others are float32, and have one for each.
#pragma once
#include "products.h"

namespace {

enum { MARGIN = 16 };

INLINE long line_pitch(long columns) { return MARGIN + round_up(columns, 16) + MARGIN; }

struct Map {
  float *data;
  long rows, lines, columns, pitch;  // `lines` of each row
  INLINE float *line(long image, long row, long line) const {
    return data + ((image * rows + row) * lines + line) * pitch + MARGIN;
  }
};

// Ask for BLOCK columns of all lines of a row ahead of time, to be read or written; rows that are not there are let be.
template <bool WRITTEN>
INLINE void prefetch(const Map &map, long image, long row, long column) {
  if (row >= map.rows) return;
  const float *line = map.line(image, row, 0) + column;
  for (long c = 0; c < map.lines; c++, line += map.pitch) {
    __builtin_prefetch(line, WRITTEN, 2);
    __builtin_prefetch(line + 16, WRITTEN, 2);
  }
}

INLINE Map map_of(float *data, long rows, long lines, long columns) {
  return {data, rows, lines, columns, line_pitch(columns)};
}

// Copy `count` columns of lines.
INLINE void copy_run(float *to, long to_pitch, const float *from, long from_pitch, long lines, long count) {
  if (count == 16)
    for (long c = 0; c < lines; c++) store(to + c * to_pitch, load(from + c * from_pitch));
  else if (count == 8)
    for (long c = 0; c < lines; c++)
      *(v8_unaligned *)(to + c * to_pitch) = *(const v8_unaligned *)(from + c * from_pitch);
  else
    for (long c = 0; c < lines; c++) memcpy(to + c * to_pitch, from + c * from_pitch, count * sizeof(float));
}

// A 3×3 convolution of one part of a line of cells with itself and the lines above and below, `dilation` columns apart
// (`top` and `bottom` are as many rows away): finish(vector, value) for each vector of 16 columns from the given one on.
template <int DILATION, bool HALF, int PART, typename Finish>
INLINE void convolve_part(const float *top, const float *middle, const float *bottom, const float *weights,
                          long vectors, Finish finish) {
  v16 w[9];
#pragma unroll
  for (int tap = 0; tap < 9; tap++) w[tap] = splat(weights[tap]);
  auto sum = TILE(long vector, int column) {
    return load_cells<HALF>(top + 16 * vector, PART) * w[column] +
           load_cells<HALF>(middle + 16 * vector, PART) * w[3 + column] +
           load_cells<HALF>(bottom + 16 * vector, PART) * w[6 + column];
  };
  v16 left_before = sum(-1, 0), left = sum(0, 0), centre = sum(0, 1), right = sum(0, 2);
  for (long vector = 0; vector < vectors; vector++) {
    v16 next_left = sum(vector + 1, 0), next_centre = sum(vector + 1, 1), next_right = sum(vector + 1, 2);
    v16 from_left, from_right;
    if constexpr (DILATION == 1) {
      from_left = __builtin_shufflevector(left_before, left, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
      from_right = __builtin_shufflevector(right, next_right, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
    } else {
      from_left = __builtin_shufflevector(left_before, left, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29);
      from_right = __builtin_shufflevector(right, next_right, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17);
    }
    finish(vector, (from_left + from_right) + centre);
    left_before = left, left = next_left, centre = next_centre, right = next_right;
  }
}

// The same of a whole line: `weights` of its channels one after the other, finish(vector, values) with those of each
// part. With HALF, `scratch` has room for the sums of the first part.
template <int DILATION, bool HALF, typename Finish>
INLINE void convolve_line(const float *top, const float *middle, const float *bottom, const float *weights,
                          long vectors, float *scratch, Finish finish) {
  if constexpr (HALF) {
    convolve_part<DILATION, true, 0>(top, middle, bottom, weights, vectors,
                                     TILE(long v, v16 sum) { store(scratch + 16 * v, sum); });
    convolve_part<DILATION, true, 1>(top, middle, bottom, weights + 9, vectors, TILE(long v, v16 sum) {
      const v16 sums[2] = {load(scratch + 16 * v), sum};
      finish(v, sums);
    });
  } else {
    convolve_part<DILATION, false, 0>(top, middle, bottom, weights, vectors, TILE(long v, v16 sum) {
      const v16 sums[1] = {sum};
      finish(v, sums);
    });
  }
}

// LayerNorm over the channels of a block (channels × BLOCK): finish(first channel, vector, values) for each STEP
// channels, zeros behind the last.
template <int STEP, typename Finish>
INLINE void normalise(const float *block, long channels, const float *weight, const float *bias, float eps,
                      Finish finish) {
#pragma unroll
  for (int n = 0; n < VECTORS; n++) {
    const float *column = block + 16 * n;
    v16 sum_0 = zeros(), sum_1 = zeros();
    long c = 0;
    for (; c + 2 <= channels; c += 2) sum_0 += load(column + c * BLOCK), sum_1 += load(column + (c + 1) * BLOCK);
    if (c < channels) sum_0 += load(column + c * BLOCK);
    v16 mean = (sum_0 + sum_1) * splat(1.0f / (float)channels);
    v16 square_0 = zeros(), square_1 = zeros();
    for (c = 0; c + 2 <= channels; c += 2) {
      v16 off_0 = load(column + c * BLOCK) - mean, off_1 = load(column + (c + 1) * BLOCK) - mean;
      square_0 += off_0 * off_0, square_1 += off_1 * off_1;
    }
    if (c < channels) {
      v16 off = load(column + c * BLOCK) - mean;
      square_0 += off * off;
    }
    v16 variance = (square_0 + square_1) * splat(1.0f / (float)channels) + splat(eps);
    v16 scale = splat(1.0f) / __builtin_elementwise_sqrt(variance);
    auto normal = TILE(long channel) {
      return (load(column + channel * BLOCK) - mean) * (scale * splat(weight[channel])) + splat(bias[channel]);
    };
    for (c = 0; c < channels; c += STEP) {
      const v16 values[2] = {normal(c), STEP > 1 && c + 1 < channels ? normal(c + 1) : zeros()};
      finish(c, n, values);
    }
  }
}

// Write a block (lines × BLOCK) as tokens: `count` pixels of `pitch` ≥ lines floats or cells, zeros behind the lines.
INLINE void store_tokens(const float *block, long lines, long count, float *tokens, long pitch) {
  for (long first = 0; first < pitch; first += 16)
    for (long pixel = 0; pixel < count; pixel += 16) {
      v16 rows[16];
#pragma unroll
      for (int i = 0; i < 16; i++) rows[i] = first + i < lines ? load(block + (first + i) * BLOCK + pixel) : zeros();
      transpose_16(rows);
      if (pixel + 16 <= count) {
#pragma unroll
        for (int i = 0; i < 16; i++) store(tokens + (pixel + i) * pitch + first, rows[i]);
      } else {
#pragma unroll
        for (int i = 0; i < 16; i++)
          if (pixel + i < count) store(tokens + (pixel + i) * pitch + first, rows[i]);
      }
    }
}

// A bump allocator over memory that the caller owns; from null it counts what it would take.
struct Arena {
  uintptr_t at;
  template <typename T>
  INLINE T *take(long count) {
    at = (at + 63) & ~(uintptr_t)63;
    T *taken = (T *)at;
    at += (uintptr_t)count * sizeof(T);
    return taken;
  }
};

}  // namespace
