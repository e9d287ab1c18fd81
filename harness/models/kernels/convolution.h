// 3×3 and 1×1 convolutions of maps, 3×3 ones as nine products with zeros around the image.
#pragma once
#include "maps.h"
#include "threads.h"

namespace {

struct Convolution {
  int64_t images, height, width, inputs, outputs, threads, half;
  int64_t cells;                  // whether the input is a map of cells, of bfloat16 with `half`; all else is float32
  int64_t side;                   // of the kernel: 3 or 1
  int64_t output_channels;        // of the map that the outputs are the first channels of
  int64_t scale;                  // > 0: the output is an image, `scale` times the map's size, by pixel shuffle
  int64_t image_height, image_width;  // of which rows and columns beyond these are left out
  const float *weight, *bias;     // outputs × inputs × side × side, outputs
  const float *input, *residual;  // maps; `residual` is added where there is one
  float *output;                  // a map, or images × outputs / scale² × image_height × image_width
  void *workspace;                // convolution_workspace bytes
  float slope;                    // of the LeakyReLU that follows; 1 for none
};

template <bool HALF>
struct ConvolutionWork {
  typedef typename Operand<HALF>::Element Element;
  const Convolution &p;
  Element *columns;
  uint32_t *pairs[MOST_THREADS];
  float *block[MOST_THREADS];
  long pitch, steps, taps, threads;

  explicit ConvolutionWork(const Convolution &convolution) : p(convolution) {
    pitch = padded_rows(p.outputs), steps = depth_of<HALF>(p.inputs), taps = p.side * p.side;
    threads = p.threads < MOST_THREADS ? p.threads : MOST_THREADS;
  }

  uintptr_t divide(void *memory) {
    Arena arena = {(uintptr_t)memory};
    columns = arena.take<Element>(taps * steps * pitch);
    for (long thread = 0; thread < threads; thread++) {
      pairs[thread] = arena.take<uint32_t>(is_paired() ? taps * steps * BLOCK : 0);
      block[thread] = arena.take<float>(p.scale ? p.outputs * BLOCK : 0);
    }
    return arena.at;
  }

  // Whether numbers are rounded to bfloat16 here.
  INLINE bool is_paired() const { return HALF && !p.cells; }

  void run() {
    for (long tap = 0; tap < taps; tap++)
      lay_out<HALF>(p.outputs, p.inputs, columns + tap * steps * pitch,
                    [&](long i, long k) { return p.weight[(i * p.inputs + k) * taps + tap]; });
    share_out(p.images * p.height, threads,
              [this](long task, long thread) { run_row(task / p.height, task % p.height, thread); });
  }

  void run_row(long image, long row, long thread) {
    uint32_t *pair = pairs[thread];
    float *block_ = block[thread];
    Map input = map_of((float *)p.input, p.height, p.cells ? steps : p.inputs, p.width);
    Map output = map_of(p.output, p.height, p.output_channels, p.width);
    Map residual = map_of((float *)p.residual, p.height, p.outputs, p.width);
    long first = 0, last = taps;
    if (p.side == 3) first = row > 0 ? 0 : 3, last = row + 1 < p.height ? 9 : 6;
    for (long column = 0; column < p.width; column += BLOCK) {
      long left = p.width - column;
      const float *from[9];
      for (long tap = first; tap < last; tap++) {
        from[tap] = p.side == 3 ? input.line(image, row + tap / 3 - 1, 0) + column + tap % 3 - 1
                                : input.line(image, row, 0) + column;
        if (is_paired()) pair_block(p.inputs, from[tap], input.pitch, pair + tap * steps * BLOCK);
      }
      float *to = p.scale ? nullptr : output.line(image, row, 0) + column;
      const float *add = p.residual ? residual.line(image, row, 0) + column : nullptr;
      for_tiles(p.outputs, left, TILE(auto &sums, long i, int n) {
        for (long tap = first; tap < last; tap++) {
          const Element *a = columns + tap * steps * pitch + i;
          const Element *b = is_paired() ? (const Element *)pair + tap * steps * BLOCK : (const Element *)from[tap];
          multiply(sums, steps, a, pitch, b + 16 * n, is_paired() ? BLOCK : input.pitch);
        }
      }, TILE(long i, int n, v16 sum) {
        v16 value = leaky_relu_of(sum + splat(p.bias[i]), p.slope);
        if (add) value += load(add + i * residual.pitch + 16 * n);
        if (p.scale)
          store(block_ + i * BLOCK + 16 * n, value);
        else if (left > 16 * n)
          store_first(to + i * output.pitch + 16 * n, value, left - 16 * n);
      });
      if (p.scale) shuffle(image, row, column, left < BLOCK ? left : BLOCK, block_);
    }
  }

  // Channel c·s² + i·s + j of a pixel is row i and column j of its s × s pixels in channel c.
  INLINE void shuffle(long image, long row, long column, long count, const float *from) const {
    long s = p.scale, channels = p.outputs / (s * s);
    if ((column + count) * s > p.image_width) count = (p.image_width - column * s + s - 1) / s;
    for (long c = 0; c < channels; c++)
      for (long i = 0; i < s && row * s + i < p.image_height; i++) {
        float *to = p.output + ((image * channels + c) * p.image_height + row * s + i) * p.image_width + column * s;
        const float *lines = from + (c * s + i) * s * BLOCK;
        long whole = p.image_width - column * s < count * s ? p.image_width - column * s : count * s;
        if (s == 4 && whole == 4 * BLOCK)
          for (long n = 0; n < BLOCK; n++)
            for (long j = 0; j < 4; j++) to[4 * n + j] = lines[j * BLOCK + n];
        else if (s == 2 && whole == 2 * BLOCK)
          for (long n = 0; n < BLOCK; n++)
            for (long j = 0; j < 2; j++) to[2 * n + j] = lines[j * BLOCK + n];
        else
          for (long x = 0; x < whole; x++) to[x] = lines[x % s * BLOCK + x / s];
      }
  }
};

}  // namespace
