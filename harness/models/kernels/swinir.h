// One layer of SwinIR without gradients: window after window from its LayerNorm to its result, all of it in the cache.
//
// x = x + attention(LN(x)); x = x + MLP(LN(x)), in place, for windows do not overlap. Scores are kept as powers of two.
// HALF rounds the operands of products to bfloat16; all else is float32.
//
// H rows, W columns, C channels, M window side, L = M² tokens, A heads of d channels of queries and keys and e of values
// (C / A of both unless the layer is pruned), F hidden features.
#pragma once
#include "maps.h"
#include "stopwatch.h"
#include "threads.h"

namespace {

struct SwinLayer {
  int64_t images, height, width, channels, window, heads, query, value, hidden, shift, threads, half;
  float *x;           // a map, replaced by the result
  void *workspace;    // swinir_workspace bytes
  const float *norm1_weight, *norm1_bias, *qkv_weight, *qkv_bias;
  const float *score_bias;  // · log2(e): heads × kinds × keys × queries, queries padded to blocks; kinds of windows:
                            // inside, beyond the right edge, beyond the bottom edge, beyond both (inside alone: shift 0)
  const float *proj_weight, *proj_bias, *norm2_weight, *norm2_bias;
  const float *hidden_weight, *hidden_bias, *out_weight, *out_bias;
  int64_t *ticks;     // of each component, added to what is there; null where nobody asks
  float eps;
};

template <bool HALF>
struct SwinWork {
  typedef typename Operand<HALF>::Element Element;
  const SwinLayer &p;
  long H, W, C, M, L, A, d, e, F, tokens, key_pitch, value_pitch, threads;
  long queries, values;  // of all heads: A·d, A·e
  Map x;
  Weights<HALF> qkv, proj, hidden, out;
  float *qkv_bias;
  struct Own {
    uint32_t *pairs;
    float *features, *block, *queries, *keys, *values, *value_tokens, *scores, *attended, *expanded;
    Element *query_pairs, *key_pairs, *value_pairs, *weights;
    Stopwatch watch;
  } own[MOST_THREADS];

  explicit SwinWork(const SwinLayer &layer) : p(layer) {
    H = p.height, W = p.width, C = p.channels, M = p.window, L = M * M, A = p.heads, F = p.hidden;
    d = p.query, e = p.value, queries = A * d, values = A * e;
    x = map_of(p.x, H, C, W);
    tokens = round_up(L, BLOCK), key_pitch = tokens + 16, value_pitch = round_up(values, 16);
    threads = p.threads < MOST_THREADS ? p.threads : MOST_THREADS;
  }

  uintptr_t divide(void *memory) {
    Arena arena = {(uintptr_t)memory};
    qkv.data = arena.take<Element>(padded_rows(2 * queries + values) * C);
    proj.data = arena.take<Element>(padded_rows(C) * values);
    hidden.data = arena.take<Element>(padded_rows(F) * C);
    out.data = arena.take<Element>(padded_rows(C) * F);
    qkv_bias = arena.take<float>(2 * queries + values);
    long most = C > F ? C : F;
    if (values > most) most = values;
    reset(own, threads, p.ticks);
    for (long thread = 0; thread < threads; thread++) {
      Own &o = own[thread];
      o.pairs = arena.take<uint32_t>((most + 2) * BLOCK);
      o.features = arena.take<float>(C * tokens);
      o.block = arena.take<float>(C * BLOCK);
      o.queries = arena.take<float>(queries * tokens);
      o.keys = arena.take<float>(queries * key_pitch + 64);
      o.values = arena.take<float>(values * BLOCK);
      o.value_tokens = arena.take<float>((tokens + 1) * value_pitch + 64);
      o.scores = arena.take<float>((L + 16) * BLOCK);
      o.attended = arena.take<float>(values * BLOCK);
      o.expanded = arena.take<float>(F * BLOCK);
      o.query_pairs = arena.take<Element>(HALF ? depth_of<HALF>(d) * BLOCK : 0);
      o.key_pairs = arena.take<Element>(HALF ? A * depth_of<HALF>(d) * key_pitch + 64 : 0);
      o.value_pairs = arena.take<Element>(HALF ? (tokens / 2 + 1) * value_pitch + 64 : 0);
      o.weights = HALF ? arena.take<Element>(depth_of<HALF>(L) * BLOCK) : (Element *)o.scores;
    }
    return arena.at;
  }

  void derive() {
    float scale = 1.44269504f / __builtin_sqrtf((float)d);  // of the queries; in powers of two
    auto scaled = [&](long i) { return i < queries ? scale : 1.0f; };
    long rows = 2 * queries + values;
    qkv = lay_out<HALF>(rows, C, (Element *)qkv.data,
                        [&](long i, long k) { return scaled(i) * p.qkv_weight[i * C + k]; });
    for (long i = 0; i < rows; i++) qkv_bias[i] = scaled(i) * p.qkv_bias[i];
    proj = lay_out<HALF>(C, values, (Element *)proj.data,
                         [&](long i, long k) { return p.proj_weight[i * values + k]; });
    hidden = lay_out<HALF>(F, C, (Element *)hidden.data, [&](long i, long k) { return p.hidden_weight[i * C + k]; });
    out = lay_out<HALF>(C, F, (Element *)out.data, [&](long i, long k) { return p.out_weight[i * F + k]; });
  }

  // Copy a window between the map and blocks of tokens (block, channel, token); shifted ones wrap around the edges.
  template <bool WRITTEN>
  void move(long image, long row, long column, float *blocks) const {
    for (long token = 0; token < L;) {
      long m = token / M, n = token % M;
      long from_row = (row + m + p.shift) % H, from_column = (column + n + p.shift) % W;
      long run = M - n;
      if (run > W - from_column) run = W - from_column;
      if (run > BLOCK - token % BLOCK) run = BLOCK - token % BLOCK;
      float *line = x.line(image, from_row, 0) + from_column;
      float *place = blocks + token / BLOCK * C * BLOCK + token % BLOCK;
      if (WRITTEN)
        copy_run(line, x.pitch, place, BLOCK, C, run);
      else
        copy_run(place, BLOCK, line, x.pitch, C, run);
      token += run;
    }
  }

  void transform(long task, Own &o) {
    long columns = W / M, windows = (H / M) * columns;
    long image = task / windows, window = task % windows, across = window % columns, down = window / columns;
    o.watch.start();
    long kind = p.shift ? (across == columns - 1) + 2 * (down == H / M - 1) : 0, kinds = p.shift ? 4 : 1;
    if (tokens > L) memset(o.features, 0, C * tokens * sizeof(float));
    move<false>(image, down * M, across * M, o.features);
    o.watch.stop(REST);
    for (long first = 0; first < tokens; first += BLOCK) project_tokens(first, o);
    if constexpr (HALF) pair_keys_and_values(o);
    for (long first = 0; first < tokens; first += BLOCK) {
      float *features = o.features + first * C;
      for (long head = 0; head < A; head++) attend(head, p.score_bias + (head * kinds + kind) * L * tokens, first, o);
      multiply_block<HALF>(proj, values, o.attended, BLOCK, o.pairs, BLOCK, TILE(long c, int n, v16 sum) {
        float *at = features + c * BLOCK + 16 * n;
        store(at, load(at) + sum + splat(p.proj_bias[c]));
      });
      o.watch.stop(ATTENTION);
      normalise<1>(features, C, p.norm2_weight, p.norm2_bias, p.eps, TILE(long c, int n, const v16 *normal) {
        store(o.block + c * BLOCK + 16 * n, normal[0]);
      });
      o.watch.stop(NORMS);
      multiply_block<HALF>(hidden, C, o.block, BLOCK, o.pairs, BLOCK, TILE(long f, int n, v16 sum) {
        store(o.expanded + f * BLOCK + 16 * n, sum + splat(p.hidden_bias[f]));
      });
      for (long at = 0; at < F * BLOCK; at += 16) store(o.expanded + at, gelu_of<HALF>(load(o.expanded + at)));
      multiply_block<HALF>(out, F, o.expanded, BLOCK, o.pairs, BLOCK, TILE(long c, int n, v16 sum) {
        float *at = features + c * BLOCK + 16 * n;
        store(at, load(at) + sum + splat(p.out_bias[c]));
      });
      o.watch.stop(FFN);
    }
    move<true>(image, down * M, across * M, o.features);
    o.watch.stop(REST);
  }

  // Queries, keys and values of a block of tokens.
  void project_tokens(long first, Own &o) {
    normalise<1>(o.features + first * C, C, p.norm1_weight, p.norm1_bias, p.eps, TILE(long c, int n, const v16 *normal) {
      store(o.block + c * BLOCK + 16 * n, normal[0]);
    });
    o.watch.stop(NORMS);
    float *to = o.queries + first * queries;
    multiply_block<HALF>(qkv, C, o.block, BLOCK, o.pairs, BLOCK, TILE(long i, int n, v16 sum) {
      v16 value = sum + splat(qkv_bias[i]);
      if (i < queries)
        store(to + i * BLOCK + 16 * n, value);
      else if (i < 2 * queries)
        store(o.keys + (i - queries) * key_pitch + first + 16 * n, value);
      else
        store(o.values + (i - 2 * queries) * BLOCK + 16 * n, value);
    });
    store_tokens(o.values, values, BLOCK, o.value_tokens + first * value_pitch, value_pitch);
    o.watch.stop(ATTENTION);
  }

  void pair_keys_and_values(Own &o) {
    long steps = depth_of<HALF>(d);
    for (long head = 0; head < A; head++)
      for (long k = 0; k < steps; k++)
        for (long token = 0; token < tokens; token += 16) {
          const float *low = o.keys + (head * d + 2 * k) * key_pitch + token;
          v16 high = 2 * k + 1 < d ? load(low + key_pitch) : zeros();
          *(u16_unaligned *)(o.key_pairs + (head * steps + k) * key_pitch + token) = as_pairs(load(low), high);
        }
    for (long token = 0; token < L; token += 2)
      for (long c = 0; c < value_pitch; c += 16) {
        const float *low = o.value_tokens + token * value_pitch + c;
        v16 high = token + 1 < L ? load(low + value_pitch) : zeros();
        *(u16_unaligned *)(o.value_pairs + token / 2 * value_pitch + c) = as_pairs(load(low), high);
      }
  }

  // One head of a block of queries, into its channels of `attended`.
  void attend(long head, const float *bias, long first, Own &o) {
    const float *asking = o.queries + first * queries + head * d * BLOCK;
    v16 most[VECTORS];
    for (int n = 0; n < VECTORS; n++) most[n] = splat(-__builtin_inff());
    auto keep = TILE(long key, int n, v16 score) {
      v16 biased = score + load(bias + key * tokens + first + 16 * n);
      store(o.scores + key * BLOCK + 16 * n, biased);
      most[n] = larger(biased, most[n]);
    };
    const Element *given;
    long steps = depth_of<HALF>(d);
    if constexpr (HALF) {
      pair_block(d, asking, BLOCK, o.query_pairs);
      const Element *keys = o.key_pairs + head * steps * key_pitch;
      for_tiles(L, TILE(auto &sums, long key, int n) {
        multiply(sums, steps, keys + key, key_pitch, o.query_pairs + 16 * n, BLOCK);
      }, keep);
      given = o.value_pairs + head * e;
    } else {
      const float *keys = o.keys + head * d * key_pitch;
      for_tiles(L, TILE(auto &sums, long key, int n) {
        multiply(sums, steps, keys + key, key_pitch, asking + 16 * n, BLOCK);
      }, keep);
      given = o.value_tokens + head * e;
    }
    v16 share[VECTORS];
    weigh_scores<HALF>(o.scores, L, most, o.weights, share);
    float *to = o.attended + head * e * BLOCK;
    auto sum_up = TILE(auto &sums, long i, int n) {
      multiply(sums, depth_of<HALF>(L), given + i, value_pitch, o.weights + 16 * n, BLOCK);
    };
    auto finish = TILE(long i, int n, v16 sum) { store(to + i * BLOCK + 16 * n, sum * share[n]); };
#if defined(__AVX512F__)
    ByRow<decltype(finish)> by_row = {finish};  // tiles that fit SwinIR-light's 10 and what pruning leaves of them
    if (e == 9 || e == 10) return run_tile<10, TILE_VECTORS>(0, e, 0, sum_up, by_row);
    if (e == 5 || e == 6) return run_tile<6, TILE_VECTORS>(0, e, 0, sum_up, by_row);
#endif
    for_tiles(e, sum_up, finish);
  }

  void run() {
    derive();
    share_out(p.images * (H / M) * (W / M), threads, [this](long task, long thread) { transform(task, own[thread]); });
    collect(own, threads, p.ticks);
  }
};

// LayerNorm over the channels of a map.
struct Normalisation {
  int64_t images, height, width, channels, threads;
  const float *weight, *bias, *input;
  float *output;
  void *workspace;  // normalisation_workspace bytes
  float eps;
};

INLINE uintptr_t measure(const Normalisation &p) { return (uintptr_t)(p.threads * p.channels * BLOCK) * sizeof(float) + 64; }

inline void run(const Normalisation &p) {
  Map input = map_of((float *)p.input, p.height, p.channels, p.width);
  Map output = map_of(p.output, p.height, p.channels, p.width);
  share_out(p.images * p.height, p.threads, [&](long task, long thread) {
    long image = task / p.height, row = task % p.height;
    float *block = (float *)p.workspace + thread * p.channels * BLOCK;
    for (long column = 0; column < p.width; column += BLOCK) {
      copy_run(block, BLOCK, input.line(image, row, 0) + column, input.pitch, p.channels, 16);
      copy_run(block + 16, BLOCK, input.line(image, row, 0) + column + 16, input.pitch, p.channels, 16);
      float *to = output.line(image, row, 0) + column;
      normalise<1>(block, p.channels, p.weight, p.bias, p.eps, TILE(long c, int n, const v16 *normal) {
        long left = p.width - column - 16 * n;
        if (left > 0) store_first(to + c * output.pitch + 16 * n, normal[0], left);
      });
    }
  });
}

}  // namespace
