// Linear layers of channels-last features, forward and backward, for training.
//
// A vector is 16 outputs of a pixel in the forward pass, 16 inputs in the backward one; a tile of pixels × vectors (of
// rows of the weight × vectors, for its gradient) stays in registers. The gradients of weights are added up span by span
// of pixels, so that they do not depend on the number of threads.
//
// P pixels, I inputs, O outputs.
#pragma once
#include "maps.h"
#include "threads.h"

namespace {

enum { SPAN = 2048, SPAN_BLOCK = 96 };  // pixels that gradients are summed over at once, and that lie in the cache

// y = x·Wᵀ + b.
struct Projection {
  int64_t pixels, inputs, outputs, threads, backward;
  const float *input, *weight, *bias;  // P·I, O·I, and O or null
  float *output;                       // y; of the backward pass the gradient of x, or null where it is not wanted
  const float *grad;                   // of y, read by the backward pass alone, which writes what follows
  float *weight_grad, *bias_grad;      // the latter is null without a bias
  void *workspace;
};

// sums[i][n] += Σ_k a[i·row_a + k·step_a]·b[k·pitch_b + 16·n].
template <int ROWS, int WIDE>
INLINE void multiply_rows(v16 (&sums)[ROWS][WIDE], long depth, const float *a, long row_a, long step_a, const float *b,
                          long pitch_b) {
  for (long k = 0; k < depth; k++, a += step_a, b += pitch_b) {
    v16 columns[WIDE];
#pragma unroll
    for (int n = 0; n < WIDE; n++) columns[n] = load(b + 16 * n);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int n = 0; n < WIDE; n++) sums[i][n] += splat(a[i * row_a]) * columns[n];
  }
}

#if defined(__AVX512F__)
enum { WIDEST = 4, SUMS = 24 };  // vectors of a tile, and registers for sums
#else
enum { WIDEST = 1, SUMS = 6 };
#endif

struct ProjectionWork {
  const Projection &p;
  long I, O, input_pitch, output_pitch, spans, threads;
  float *weight;  // as vectors: I × output_pitch in the forward pass, O × input_pitch in the backward one
  float *inputs, *grads;  // blocks of each thread, pixels padded to vectors
  float *weight_sums, *bias_sums;  // of each span
  float *bias;

  explicit ProjectionWork(const Projection &projection) : p(projection) {
    I = p.inputs, O = p.outputs;
    input_pitch = round_up(I, 16), output_pitch = round_up(O, 16);
    spans = (p.pixels + SPAN - 1) / SPAN;
    threads = p.threads < MOST_THREADS ? p.threads : MOST_THREADS;
  }

  uintptr_t divide(void *memory) {
    Arena arena = {(uintptr_t)memory};
    weight = arena.take<float>(p.backward ? O * input_pitch : I * output_pitch);
    bias = arena.take<float>(output_pitch);
    inputs = arena.take<float>(p.backward ? threads * SPAN_BLOCK * input_pitch : 0);
    grads = arena.take<float>(p.backward ? threads * (SPAN_BLOCK * output_pitch + SUMS) : 0);
    weight_sums = arena.take<float>(p.backward ? spans * (O + SUMS) * input_pitch : 0);
    bias_sums = arena.take<float>(p.backward ? spans * output_pitch : 0);
    return arena.at;
  }

  void run() {
    if (p.backward)
      for (long o = 0; o < O; o++)
        for (long i = 0; i < input_pitch; i++) weight[o * input_pitch + i] = i < I ? p.weight[o * I + i] : 0;
    else
      for (long i = 0; i < I; i++)
        for (long o = 0; o < output_pitch; o++) weight[i * output_pitch + o] = o < O ? p.weight[o * I + i] : 0;
    for (long o = 0; o < output_pitch; o++) bias[o] = p.bias && o < O ? p.bias[o] : 0;
    share_out(spans, threads, [this](long span, long thread) {
      long first = span * SPAN, last = first + SPAN < p.pixels ? first + SPAN : p.pixels;
      if (!p.backward) {
        transform(p.input, I, weight, O, bias, first, last);
        return;
      }
      memset(weight_sums + span * (O + SUMS) * input_pitch, 0, (O + SUMS) * input_pitch * sizeof(float));
      memset(bias_sums + span * output_pitch, 0, output_pitch * sizeof(float));
      for (long pixel = first; pixel < last; pixel += SPAN_BLOCK) {
        long end = pixel + SPAN_BLOCK < last ? pixel + SPAN_BLOCK : last;
        if (p.output) transform(p.grad, O, weight, I, nullptr, pixel, end);
        add_grads(span, thread, pixel, end);
      }
    });
    if (p.backward) add_up();
  }

  // Products of pixels first..last of `from`, `depth` numbers each, with `weight`: `width` numbers each, into `output`.
  void transform(const float *from, long depth, const float *by, long width, const float *add, long first, long last) {
    long pitch = round_up(width, 16), vectors = pitch / 16;
    for (long pixel = first; pixel < last;) {
      long left = last - pixel, step = 0;
      for (long vector = 0; vector < vectors; vector += WIDEST) {
        long wide = vectors - vector < WIDEST ? vectors - vector : WIDEST;
        auto run = [&](auto rows, auto columns) __attribute__((always_inline)) {
          enum { ROWS = decltype(rows)::VALUE, WIDE = decltype(columns)::VALUE };
          v16 sums[ROWS][WIDE];
#pragma unroll
          for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int n = 0; n < WIDE; n++) sums[i][n] = add ? load(add + 16 * (vector + n)) : zeros();
          multiply_rows(sums, depth, from + pixel * depth, depth, 1, by + 16 * vector, pitch);
          float *to = p.output + pixel * width + 16 * vector;
#pragma unroll
          for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int n = 0; n < WIDE; n++) store_first(to + i * width + 16 * n, sums[i][n], width - 16 * (vector + n));
        };
        step = for_size(left, wide, run);
      }
      pixel += step;
    }
  }

  template <int SIZE>
  struct Size {
    enum { VALUE = SIZE };
  };

  // Call run with a size of tiles, and return how many of `left` rows it has. All tiles of the same row have as many.
  template <typename Run>
  INLINE long for_size(long left, long wide, Run run) {
    enum { ROWS = SUMS / WIDEST };
    if (left < ROWS) {
#if defined(__AVX512F__)
      if (wide == 4) run(Size<1>(), Size<4>());
      if (wide == 3) run(Size<1>(), Size<3>());
      if (wide == 2) run(Size<1>(), Size<2>());
#endif
      if (wide == 1) run(Size<1>(), Size<1>());
      return 1;
    }
#if defined(__AVX512F__)
    if (wide == 4) run(Size<ROWS>(), Size<4>());
    if (wide == 3) run(Size<ROWS>(), Size<3>());
    if (wide == 2) run(Size<ROWS>(), Size<2>());
#endif
    if (wide == 1) run(Size<ROWS>(), Size<1>());
    return ROWS;
  }

  void add_grads(long span, long thread, long first, long last) {
    float *input_block = inputs + thread * SPAN_BLOCK * input_pitch;
    float *grad_block = grads + thread * (SPAN_BLOCK * output_pitch + SUMS);
    copy_block(input_block, p.input, I, first, last), copy_block(grad_block, p.grad, O, first, last);
    long count = last - first, vectors = input_pitch / 16;
    float *sums_of = weight_sums + span * (O + SUMS) * input_pitch;
    for (long vector = 0; vector < vectors; vector += WIDEST) {
      long wide = vectors - vector < WIDEST ? vectors - vector : WIDEST;
      for (long row = 0; row < O;) {
        auto run = [&](auto rows, auto columns) __attribute__((always_inline)) {
          enum { ROWS = decltype(rows)::VALUE, WIDE = decltype(columns)::VALUE };
          v16 sums[ROWS][WIDE];
          float *to = sums_of + row * input_pitch + 16 * vector;
#pragma unroll
          for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int n = 0; n < WIDE; n++) sums[i][n] = load(to + i * input_pitch + 16 * n);
          multiply_rows(sums, count, grad_block + row, 1, output_pitch, input_block + 16 * vector, input_pitch);
#pragma unroll
          for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int n = 0; n < WIDE; n++) store(to + i * input_pitch + 16 * n, sums[i][n]);
        };
        row += for_size(SUMS, wide, run);
      }
    }
    float *bias_sum = bias_sums + span * output_pitch;
    for (long vector = 0; vector < output_pitch; vector += 16) {
      v16 sum = load(bias_sum + vector);
      for (long pixel = 0; pixel < count; pixel++) sum += load(grad_block + pixel * output_pitch + vector);
      store(bias_sum + vector, sum);
    }
  }

  INLINE void copy_block(float *to, const float *from, long width, long first, long last) const {
    long pitch = round_up(width, 16);
    for (long pixel = first; pixel < last; pixel++, to += pitch)
      for (long at = 0; at < width; at += 16) store(to + at, load_first(from + pixel * width + at, width - at));
  }

  void add_up() {
    for (long o = 0; o < O; o++) {
      for (long i = 0; i < I; i++) {
        float sum = 0;
        for (long span = 0; span < spans; span++) sum += weight_sums[(span * (O + SUMS) + o) * input_pitch + i];
        p.weight_grad[o * I + i] = sum;
      }
      if (!p.bias_grad) continue;
      float sum = 0;
      for (long span = 0; span < spans; span++) sum += bias_sums[span * output_pitch + o];
      p.bias_grad[o] = sum;
    }
  }
};

}  // namespace
