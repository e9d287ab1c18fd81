// The depthwise convolutions of a block of CAMixerSR and what lies between them, forward and backward, for training.
//
// Features are channels-last, as torch's products want them: a vector is 16 channels of a pixel. Each image is gone
// through once for each 16 channels, row by row; of what lies between input and output the few rows are kept that later
// rows read, and the backward pass computes them again: nothing but the input is kept for it. Gradients of weights are
// added up image by image, so that they do not depend on the number of threads.
//
// B images, H rows, W columns, C channels.
#pragma once
#include "maps.h"
#include "threads.h"

namespace {

enum { LANES = 16, TAPS = 9, REACH = 2 };  // REACH: columns beside a row that convolutions see

// y = a·GELU(dilated(depthwise(x))) + x, the mixer's end before its projection.
struct MixerConvolutions {
  int64_t images, height, width, channels, threads, backward;
  const float *input, *attention;  // x: B·H·W·C; a: B·C, null for ones
  const float *depthwise_weight, *depthwise_bias, *dilated_weight, *dilated_bias;
  float *output;                   // y; of the backward pass the gradient of x
  const float *grad;               // of y, read by the backward pass alone, which writes what follows
  float *attention_grad, *depthwise_weight_grad, *depthwise_bias_grad, *dilated_weight_grad, *dilated_bias_grad;
  void *workspace;
};

// y = GELU(d(e)₁)·d(e)₂ for the two halves of the channels, d the FFN's convolution.
struct GatedConvolution {
  int64_t images, height, width, channels, threads, backward;  // `channels` of y, half of those of e
  const float *input, *weight;                       // e: B·H·W·2C
  float *output;                                     // y; of the backward pass the gradient of e
  const float *grad;
  float *weight_grad;
  void *workspace;
};

// Rows of pixels of 16 channels, zeros beside them: a ring of the latest ones of an image.
struct RowRing {
  float *data;
  const float *zero;
  long count, pitch, height;
  INLINE float *row(long row) const { return data + row % count * pitch + REACH * LANES; }
  INLINE const float *read(long at) const { return at < 0 || at >= height ? zero + REACH * LANES : row(at); }
};

// One 3×3 filter for each of 16 channels.
struct Filter {
  v16 taps[TAPS];
  INLINE void read(const float *weight, long channels) {
    for (int tap = 0; tap < TAPS; tap++)
      for (long lane = 0; lane < LANES; lane++) taps[tap][lane] = lane < channels ? weight[lane * TAPS + tap] : 0;
  }
  INLINE Filter turned() const {
    Filter other;
    for (int tap = 0; tap < TAPS; tap++) other.taps[tap] = taps[TAPS - 1 - tap];
    return other;
  }
};

// finish(column, sum) for the convolution of row `at`.
template <int DILATION, typename Finish>
INLINE void convolve_row(const RowRing &from, long at, long width, const Filter &filter, Finish finish) {
  const float *top = from.read(at - DILATION), *middle = from.read(at), *bottom = from.read(at + DILATION);
  const long beside = DILATION * LANES;
  for (long column = 0; column < width; column++) {
    const float *a = top + column * LANES, *b = middle + column * LANES, *c = bottom + column * LANES;
    v16 sum_0 = load(a - beside) * filter.taps[0] + load(a) * filter.taps[1] + load(a + beside) * filter.taps[2];
    v16 sum_1 = load(b - beside) * filter.taps[3] + load(b) * filter.taps[4] + load(b + beside) * filter.taps[5];
    v16 sum_2 = load(c - beside) * filter.taps[6] + load(c) * filter.taps[7] + load(c + beside) * filter.taps[8];
    finish(column, sum_0 + sum_1 + sum_2);
  }
}

// Add to the gradient of a filter what row `at` of the gradient of its output gives.
template <int DILATION>
INLINE void add_filter_grad(const float *grad, const RowRing &input, long at, long width, Filter &sums) {
  const float *top = input.read(at - DILATION), *middle = input.read(at), *bottom = input.read(at + DILATION);
  const long beside = DILATION * LANES;
  v16 taps[TAPS];
#pragma unroll
  for (int tap = 0; tap < TAPS; tap++) taps[tap] = sums.taps[tap];
  for (long column = 0; column < width; column++) {
    v16 factor = load(grad + column * LANES);
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
      const float *row = tap < 3 ? top : tap < 6 ? middle : bottom;
      taps[tap] += factor * load(row + column * LANES + (tap % 3 - 1) * beside);
    }
  }
#pragma unroll
  for (int tap = 0; tap < TAPS; tap++) sums.taps[tap] = taps[tap];
}

// What both have in common: channels in parts of 16, rings, and the sums of each image and part.
template <typename Convolutions>
struct TrainingWork {
  const Convolutions &p;
  long H, W, C, parts, pitch, threads;
  float *rows;

  explicit TrainingWork(const Convolutions &convolutions) : p(convolutions) {
    H = p.height, W = p.width, C = p.channels;
    parts = (C + LANES - 1) / LANES;
    pitch = (W + 2 * REACH) * LANES;
    threads = p.threads < MOST_THREADS ? p.threads : MOST_THREADS;
  }

  INLINE long lanes_of(long part) const { return C - part * LANES < LANES ? C - part * LANES : LANES; }

  // Rows of each thread, of which a work has ROWS, and a row of zeros behind them.
  float *take_rows(Arena &arena, long count) const { return arena.take<float>(threads * (count + 1) * pitch); }

  // Let a work go through all images, part by part, and add up what it has found in each of them.
  template <typename Work>
  static void go_through_all(Work &work) {
    const long own_size = (Work::ROWS + 1) * work.pitch;
    memset(work.rows, 0, work.threads * own_size * sizeof(float));
    share_out(work.p.images * work.parts, work.threads, [&work, own_size](long task, long thread) {
      float *own = work.rows + thread * own_size;
      if (work.p.backward)
        work.template go_through<true>(task / work.parts, task % work.parts, own);
      else
        work.template go_through<false>(task / work.parts, task % work.parts, own);
    });
    if (work.p.backward) work.add_up();
  }

  INLINE void read_row(float *to, const float *from, long channels, long lanes) const {
    if (lanes == LANES)
      for (long column = 0; column < W; column++) store(to + column * LANES, load(from + column * channels));
    else
      for (long column = 0; column < W; column++) store(to + column * LANES, load_first(from + column * channels, lanes));
  }
};

struct MixerConvolutionsWork : TrainingWork<MixerConvolutions> {
  enum { INPUT_ROWS = 7, INNER_ROWS = 5, OUTER_GRADS = 5, INNER_GRADS = 3, GRAD_ROWS = 1 };
  enum { ROWS = INPUT_ROWS + INNER_ROWS + OUTER_GRADS + INNER_GRADS + GRAD_ROWS };
  // The gradients of 16 channels in an image.
  struct Sums {
    Filter depthwise, dilated;
    v16 depthwise_bias, dilated_bias, attention;
  };
  Sums *sums;

  using TrainingWork::TrainingWork;

  uintptr_t divide(void *memory) {
    Arena arena = {(uintptr_t)memory};
    rows = take_rows(arena, ROWS);
    sums = arena.take<Sums>(p.backward ? p.images * parts : 0);
    return arena.at;
  }

  void run() { go_through_all(*this); }

  template <bool BACKWARD>
  void go_through(long image, long part, float *own) {
    long lanes = lanes_of(part), first = part * LANES;
    const float *zero = own + ROWS * pitch;
    RowRing input = {own, zero, INPUT_ROWS, pitch, H};
    RowRing inner = {input.data + INPUT_ROWS * pitch, zero, INNER_ROWS, pitch, H};
    RowRing outer_grads = {inner.data + INNER_ROWS * pitch, zero, OUTER_GRADS, pitch, H};
    RowRing inner_grads = {outer_grads.data + OUTER_GRADS * pitch, zero, INNER_GRADS, pitch, H};
    float *grad_row = inner_grads.data + INNER_GRADS * pitch;
    Filter depthwise, dilated;
    depthwise.read(p.depthwise_weight + first * TAPS, lanes), dilated.read(p.dilated_weight + first * TAPS, lanes);
    Filter depthwise_turned = depthwise.turned(), dilated_turned = dilated.turned();
    v16 depthwise_bias = load_first(p.depthwise_bias + first, lanes);
    v16 dilated_bias = load_first(p.dilated_bias + first, lanes);
    v16 attention = p.attention ? load_first(p.attention + image * C + first, lanes) : splat(1);
    Sums total = {};
    for (long step = 0; step < H + (BACKWARD ? 6 : 3); step++) {
      if (step < H) read_row(input.row(step), p.input + (image * H + step) * W * C + first, C, lanes);
      long at = step - 1;
      if (at >= 0 && at < H) {
        float *to = inner.row(at);
        convolve_row<1>(input, at, W, depthwise,
                        TILE(long column, v16 sum) { store(to + column * LANES, sum + depthwise_bias); });
      }
      at = step - 3;
      if (at >= 0 && at < H) {
        if constexpr (BACKWARD) {
          float *to = outer_grads.row(at);
          read_row(grad_row, p.grad + (image * H + at) * W * C + first, C, lanes);
          v16 bias_sum = zeros(), attention_sum = zeros();
          convolve_row<2>(inner, at, W, dilated, TILE(long column, v16 sum) {
            v16 value, slope = gelu_slope_of(sum + dilated_bias, value), grad = load(grad_row + column * LANES);
            v16 outer = grad * attention * slope;
            attention_sum += grad * value;
            bias_sum += outer;
            store(to + column * LANES, outer);
          });
          total.attention += attention_sum, total.dilated_bias += bias_sum;
          add_filter_grad<2>(to, inner, at, W, total.dilated);
        } else {
          const float *own_row = input.row(at);
          float *to = p.output + (image * H + at) * W * C + first;
          convolve_row<2>(inner, at, W, dilated, TILE(long column, v16 sum) {
            v16 value = gelu_of(sum + dilated_bias) * attention + load(own_row + column * LANES);
            store_first(to + column * C, value, lanes);
          });
        }
      }
      if constexpr (BACKWARD) {
        at = step - 5;
        if (at >= 0 && at < H) {
          float *to = inner_grads.row(at);
          v16 bias_sum = zeros();
          convolve_row<2>(outer_grads, at, W, dilated_turned, TILE(long column, v16 sum) {
            bias_sum += sum;
            store(to + column * LANES, sum);
          });
          total.depthwise_bias += bias_sum;
          add_filter_grad<1>(to, input, at, W, total.depthwise);
        }
        at = step - 6;
        if (at >= 0 && at < H) {
          const float *grad = p.grad + (image * H + at) * W * C + first;
          float *to = p.output + (image * H + at) * W * C + first;
          convolve_row<1>(inner_grads, at, W, depthwise_turned, TILE(long column, v16 sum) {
            store_first(to + column * C, sum + load_first(grad + column * C, lanes), lanes);
          });
        }
      }
    }
    if constexpr (BACKWARD) sums[image * parts + part] = total;
  }

  void add_up() {
    for (long channel = 0; channel < C; channel++) {
      long part = channel / LANES, lane = channel % LANES;
      double taps[2 * TAPS] = {}, depthwise_bias = 0, dilated_bias = 0;
      for (long image = 0; image < p.images; image++) {
        const Sums &of = sums[image * parts + part];
        for (int tap = 0; tap < TAPS; tap++)
          taps[tap] += of.depthwise.taps[tap][lane], taps[TAPS + tap] += of.dilated.taps[tap][lane];
        depthwise_bias += of.depthwise_bias[lane], dilated_bias += of.dilated_bias[lane];
        if (p.attention_grad) p.attention_grad[image * C + channel] = of.attention[lane];
      }
      for (int tap = 0; tap < TAPS; tap++) {
        p.depthwise_weight_grad[channel * TAPS + tap] = (float)taps[tap];
        p.dilated_weight_grad[channel * TAPS + tap] = (float)taps[TAPS + tap];
      }
      p.depthwise_bias_grad[channel] = (float)depthwise_bias, p.dilated_bias_grad[channel] = (float)dilated_bias;
    }
  }
};

struct GatedConvolutionWork : TrainingWork<GatedConvolution> {
  enum { KEPT = 3, ROWS = 4 * KEPT + 1 };  // of both halves of the input, of both gradients, and one more
  Filter *sums;  // of both halves of each image and part

  using TrainingWork::TrainingWork;

  uintptr_t divide(void *memory) {
    Arena arena = {(uintptr_t)memory};
    rows = take_rows(arena, ROWS);
    sums = arena.take<Filter>(p.backward ? 2 * p.images * parts : 0);
    return arena.at;
  }

  void run() { go_through_all(*this); }

  template <bool BACKWARD>
  void go_through(long image, long part, float *own) {
    long lanes = lanes_of(part), first = part * LANES;
    const float *zero = own + ROWS * pitch;
    RowRing input[2], grads[2];
    Filter filter[2], turned[2], total[2] = {};
    for (int half = 0; half < 2; half++) {
      input[half] = {own + half * KEPT * pitch, zero, KEPT, pitch, H};
      grads[half] = {own + (2 + half) * KEPT * pitch, zero, KEPT, pitch, H};
      filter[half].read(p.weight + (half * C + first) * TAPS, lanes);
      turned[half] = filter[half].turned();
    }
    float *second = own + 4 * KEPT * pitch + REACH * LANES;
    for (long step = 0; step < H + (BACKWARD ? 2 : 1); step++) {
      for (int half = 0; half < 2 && step < H; half++)
        read_row(input[half].row(step), p.input + (image * H + step) * W * 2 * C + half * C + first, 2 * C, lanes);
      long at = step - 1;
      if (at >= 0 && at < H) {
        convolve_row<1>(input[1], at, W, filter[1],
                        TILE(long column, v16 sum) { store(second + column * LANES, sum); });
        if constexpr (BACKWARD) {
          const float *grad_row = p.grad + (image * H + at) * W * C + first;
          float *to[2] = {grads[0].row(at), grads[1].row(at)};
          convolve_row<1>(input[0], at, W, filter[0], TILE(long column, v16 sum) {
            v16 value, slope = gelu_slope_of(sum, value), grad = load_first(grad_row + column * C, lanes);
            store(to[0] + column * LANES, grad * slope * load(second + column * LANES));
            store(to[1] + column * LANES, grad * value);
          });
          for (int half = 0; half < 2; half++) add_filter_grad<1>(to[half], input[half], at, W, total[half]);
        } else {
          float *to = p.output + (image * H + at) * W * C + first;
          convolve_row<1>(input[0], at, W, filter[0], TILE(long column, v16 sum) {
            store_first(to + column * C, gelu_of(sum) * load(second + column * LANES), lanes);
          });
        }
      }
      if constexpr (BACKWARD) {
        at = step - 2;
        for (int half = 0; half < 2 && at >= 0 && at < H; half++) {
          float *to = p.output + (image * H + at) * W * 2 * C + half * C + first;
          convolve_row<1>(grads[half], at, W, turned[half],
                          TILE(long column, v16 sum) { store_first(to + column * 2 * C, sum, lanes); });
        }
      }
    }
    if constexpr (BACKWARD)
      for (int half = 0; half < 2; half++) sums[2 * (image * parts + part) + half] = total[half];
  }

  void add_up() {
    for (long channel = 0; channel < 2 * C; channel++) {
      long half = channel / C, part = channel % C / LANES, lane = channel % C % LANES;
      double taps[TAPS] = {};
      for (long image = 0; image < p.images; image++)
        for (int tap = 0; tap < TAPS; tap++) taps[tap] += sums[2 * (image * parts + part) + half].taps[tap][lane];
      for (int tap = 0; tap < TAPS; tap++) p.weight_grad[channel * TAPS + tap] = (float)taps[tap];
    }
  }
};

}  // namespace
