// One block of CAMixerSR (algorithm 1 of the supplementary) without gradients, in three sweeps:
//
// 1. `predict_row`: the predictor's features T of every pixel.
// 2. `mix_window`: attention for hard windows and its value projection, spatial attention for the others' values.
//    q·k = (W_kᵀ(W_q x + b_q))·(x + X̃) plus what is the same for all keys of a query, which softmax drops. The value
//    projection is linear and softmax sums to one, so that attention may work on x and one product with W_v come after.
//    Where pruning has left so few queries or values that it is less work, they are made first.
// 3. `finish_rows`: convolutions, projection, norm, FFN and norm, over bands of rows and tiles of columns whose
//    intermediate lines stay in the cache; rows and columns that two tiles need are computed twice.
//
// Between 1 and 2 the caller picks the hard windows. With HALF features are kept as cells of bfloat16 (products.h), the
// operands of products; sums, norms, softmax, warp, T and all that picks windows are float32.
//
// B images, H rows, W columns, C channels, M window side, L = M² tokens, X conditions. What differs from block to block:
// V values, Q queries, E features of the predictor, O of its hidden offsets, F of each half of the FFN's expansion.
// Unless the block is pruned, V, Q and F are C. None of them has to be even, or less than another.
#pragma once
#include "maps.h"
#include "stopwatch.h"
#include "threads.h"

namespace {

enum {
  MIXER_REACH = 3,    // rows and columns that the mixer's two convolutions see beside a pixel
  DILATED_REACH = 2,  // of which the dilated one
  FFN_REACH = 1,
  INNER_LINES = 5,  // rows of the first convolution that the dilated one spans
  KEPT_ROWS = 3,    // rows that the FFN's convolution spans
  MOST_COLUMNS = 94,  // of a tile
  FEWEST_BAND_ROWS = 12
};

// The widths of a block and its parameters as torch keeps them; null where an ablation leaves them out.
struct CAMixerBlock {
  int64_t mixer, query, predictor, offsets, ffn;  // V, Q, E, O, F
  const float *value_weight, *value_bias, *query_weight, *query_bias, *key_weight;
  const float *depthwise_weight, *depthwise_bias, *dilated_weight, *dilated_bias, *out_weight, *out_bias;
  const float *trunk_weight, *trunk_bias, *trunk_norm_weight, *trunk_norm_bias;
  const float *offsets_hidden_weight, *offsets_hidden_bias, *offsets_out_weight, *offsets_out_bias;
  const float *channel_weight, *channel_bias, *spatial_weight, *spatial_bias;
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
  const float *expand_weight, *ffn_depthwise_weight, *project_weight;
};

struct CAMixerPass {
  int64_t images, height, width, channels, window, conditions, threads, half;
  int64_t keep_tokens;  // whether `next_tokens` are wanted
  float attention_scale, max_offset, slope, eps;
  float *x, *next, *mixed;   // features; those after the block; mixed values (V, in a map with room for the most)
  float *tokens, *next_tokens;  // x and next once more, pixel by pixel, cells padded to a multiple of 16
  float *predicted;          // T (E, in a map with room for the most)
  const float *condition;    // X lines a row
  float *mean;               // of T over its channels: B·H·W, without margins
  float *feature_sums;       // of T over the pixels of each row: B·H·E
  void *workspace;           // camixersr_workspace bytes, of any block to begin with or to finish a group
  const int32_t *windows;    // all windows (image · N + window), the hard ones first
  int64_t hard;
  int64_t *ticks;            // of each component, added to what is there; null where nobody asks
};

// What is derived of a block's parameters, and what the threads work with.
template <bool HALF>
struct CAMixerWork {
  typedef typename Operand<HALF>::Element Element;
  enum { STEP = HALF ? 2 : 1 };  // channels of a line
  const CAMixerPass &p;
  const CAMixerBlock &w;
  long H, W, C, M, L, V, Q, E, O, F, token_pitch, tokens, key_pitch, threads;
  long lines, value_lines, hidden_lines;           // of C, V and F channels
  long channels, value_channels, hidden_channels;  // of all lines, which is one more than C, V or F now and then
  bool makes_keys, makes_values;  // before attention, which works on x and x + X̃ otherwise
  long compared, compared_lines;  // channels of queries and of what they are compared with: Q or C
  Map x, next, mixed, predicted, condition;
  // Derived.
  Weights<HALF> trunk, value, query, key, out, expand, project;
  Weights<false> trunk_condition;
  float *composed;  // products of two weights: E × C, C × C
  float *trunk_bias, *query_bias, *channel;  // `channel`: channel attention of each image
  // Parameters of each channel, and zeros for those that fill up the last line.
  float *value_bias, *out_bias, *depthwise_weight, *depthwise_bias, *dilated_weight, *dilated_bias, *gate_weight;
  float *zero_line, *token_columns, *token_rows;  // and where in its window each token lies
  // Of each thread.
  struct Own {
    float *block, *other_block, *cells, *spatial, *keys, *fewer_keys, *rows, *scores, *queries, *attended;
    Element *value_panels, *weights;
    float *dilated, *gated, *gate, *scratch;
    Stopwatch watch;
  } own[MOST_THREADS];
  // Lines that the rows of a tile have in common, row modulo their number: of each thread or, in a stream, of each tile.
  struct Rings {
    float *inner, *normed, *expanded;
  };
  float *rings;
  long ring_size;
  // Where a tile has come to: the next row of its features, and of the first convolution.
  struct Progress {
    long row, convolved;
  } *progress;
  uint8_t *is_hard;  // of each window
  bool is_stream;    // one thread: mixed rows are used up as soon as they are there, and few of them kept
  long kept_rows;
  long inner_pitch, line_pitch_;
  long tile_columns, tiles, band_rows, bands;
  int unbounded;  // whether an offset was not finite

  CAMixerWork(const CAMixerPass &pass, const CAMixerBlock &block) : p(pass), w(block), unbounded(0) {
    H = p.height, W = p.width, C = p.channels, M = p.window, L = M * M;
    V = w.mixer, Q = w.query, E = w.predictor, O = w.offsets, F = w.ffn;
    lines = depth_of<HALF>(C), value_lines = depth_of<HALF>(V), hidden_lines = depth_of<HALF>(F);
    channels = STEP * lines, value_channels = STEP * value_lines, hidden_channels = STEP * hidden_lines;
    makes_keys = Q * (L + 2 * C) < C * (L + C), makes_values = V < C;  // of products for each token
    compared = makes_keys ? Q : C, compared_lines = depth_of<HALF>(compared);
    x = map_of(p.x, H, lines, W), next = map_of(p.next, H, lines, W), mixed = map_of(p.mixed, H, value_lines, W);
    predicted = map_of(p.predicted, H, E, W);
    condition = map_of((float *)p.condition, H, p.conditions, W);
    token_pitch = round_up(lines, 16);
    tokens = round_up(L, BLOCK);
    key_pitch = tokens + 16;  // not a multiple of the distance at which lines share a set of the cache
    threads = p.threads < MOST_THREADS ? p.threads : MOST_THREADS;
    tiles = (W + MOST_COLUMNS - 1) / MOST_COLUMNS;
    tile_columns = tiles == 1 ? W : round_up((W + tiles - 1) / tiles + 2, 16) - 2;  // with the columns beside: vectors
    is_stream = threads == 1;
    kept_rows = is_stream ? round_up(M + MIXER_REACH, M) : H;
    bands = is_stream ? 1 : 2 * threads;
    band_rows = (H + bands - 1) / bands;
    if (band_rows < FEWEST_BAND_ROWS) band_rows = H < FEWEST_BAND_ROWS ? H : FEWEST_BAND_ROWS;
    bands = (H + band_rows - 1) / band_rows;
    inner_pitch = MARGIN + round_up(tile_columns + 2 * MIXER_REACH, BLOCK) + MARGIN;
    line_pitch_ = MARGIN + round_up(tile_columns + 2 * FFN_REACH, BLOCK) + MARGIN;
    long expanded_lines = lines + 2 * hidden_lines;  // and the normed ones
    ring_size = INNER_LINES * value_lines * inner_pitch + KEPT_ROWS * expanded_lines * line_pitch_ + 64;
    ring_size = round_up(ring_size, 16);
  }

  uintptr_t divide(void *memory) {
    Arena arena = {(uintptr_t)memory};
    zero_line = arena.take<float>(inner_pitch);
    token_columns = arena.take<float>(tokens);
    token_rows = arena.take<float>(tokens);
    trunk.data = arena.take<Element>(padded_rows(E) * C);
    trunk_condition.data = arena.take<float>(padded_rows(E) * (p.conditions + 1));
    value.data = arena.take<Element>(padded_rows(V) * C);
    query.data = arena.take<Element>(padded_rows(C) * C);
    key.data = arena.take<Element>(makes_keys ? padded_rows(Q) * C : 0);
    out.data = arena.take<Element>(padded_rows(C) * V);
    expand.data = arena.take<Element>(padded_rows(2 * hidden_channels) * C);
    project.data = arena.take<Element>(padded_rows(C) * F);
    composed = arena.take<float>((C > E ? C : E) * C);
    trunk_bias = arena.take<float>(E);
    query_bias = arena.take<float>(channels);
    channel = arena.take<float>(p.images * value_channels);
    value_bias = arena.take<float>(value_channels), out_bias = arena.take<float>(channels);
    depthwise_weight = arena.take<float>(9 * value_channels), depthwise_bias = arena.take<float>(value_channels);
    dilated_weight = arena.take<float>(9 * value_channels), dilated_bias = arena.take<float>(value_channels);
    gate_weight = arena.take<float>(2 * 9 * hidden_channels);
    rings = arena.take<float>(ring_size * (is_stream ? tiles : threads));
    progress = arena.take<Progress>(tiles);
    is_hard = arena.take<uint8_t>(p.images * (H / M) * (W / M));
    long most = C > V ? C : V;
    if (E > most) most = E;
    reset(own, threads, p.ticks);
    for (long thread = 0; thread < threads; thread++) {
      Own &o = own[thread];
      o.block = arena.take<float>((C + E + 16) * BLOCK);
      o.other_block = arena.take<float>((most + 16) * BLOCK);
      o.cells = arena.take<float>(lines * BLOCK);
      o.spatial = arena.take<float>(tokens + 16);
      o.keys = arena.take<float>(lines * key_pitch + 16);
      o.fewer_keys = arena.take<float>(makes_keys ? compared_lines * key_pitch + 16 : 0);
      o.rows = arena.take<float>(16 * token_pitch);
      o.scores = arena.take<float>((L + 16) * BLOCK);
      o.queries = arena.take<float>(lines * BLOCK);
      o.attended = arena.take<float>(lines * BLOCK);
      o.value_panels = arena.take<Element>((round_up(C, PANEL)) * depth_of<HALF>(L) + 16);
      o.weights = HALF ? arena.take<Element>(depth_of<HALF>(L) * BLOCK) : (Element *)o.scores;
      o.dilated = arena.take<float>(value_lines * line_pitch_ + 64);
      o.gated = arena.take<float>(hidden_lines * line_pitch_ + 64);
      o.gate = arena.take<float>(STEP * inner_pitch);
      o.scratch = arena.take<float>(inner_pitch);
    }
    return arena.at;
  }

  // ---- 1: the predictor ----

  void derive_trunk() {
    long D = V + p.conditions;
    const float *read = w.trunk_weight;
    float *rows = composed;  // W_t·W_v
    for (long e = 0; e < E; e++) {
      float *row = rows + e * C;
      for (long c = 0; c < C; c++) row[c] = 0;
      float bias = w.trunk_bias[e];
      for (long j = 0; j < V; j++) {
        float factor = read[e * D + j];
        const float *value_row = w.value_weight + j * C;
        for (long c = 0; c < C; c++) row[c] += factor * value_row[c];
        bias += factor * w.value_bias[j];
      }
      trunk_bias[e] = bias;
    }
    trunk = lay_out<HALF>(E, C, (Element *)trunk.data, [&](long e, long c) { return rows[e * C + c]; });
    trunk_condition = lay_out<false>(E, p.conditions, (float *)trunk_condition.data,
                                     [&](long e, long k) { return read[e * D + V + k]; });
  }

  void predict_row(long image, long row, Own &o) {
    o.watch.start();
    float *raw = o.block;
    v16 *totals = (v16 *)o.other_block;  // E of them
    for (long e = 0; e < E; e++) totals[e] = zeros();
    for (long column = 0; column < W; column += BLOCK) {
      const float *from = x.line(image, row, 0) + column, *conditions = condition.line(image, row, 0) + column;
      prefetch<false>(x, image, row + 1, column);
      auto take = TILE(long e, int n, v16 value) { store(raw + e * BLOCK + 16 * n, value + splat(trunk_bias[e])); };
      for_tiles(E, TILE(auto &sums, long e, int n) {
        multiply(sums, trunk.depth, trunk.data + e, trunk.pitch, (const Element *)from + 16 * n, x.pitch);
        multiply(sums, trunk_condition.depth, trunk_condition.data + e, trunk_condition.pitch, conditions + 16 * n,
                 condition.pitch);
      }, take);
      v16 sum[VECTORS] = {};
      float *to = predicted.line(image, row, 0) + column;
      normalise<1>(raw, E, w.trunk_norm_weight, w.trunk_norm_bias, p.eps, TILE(long e, int n, const v16 *normal) {
        long left = W - column - 16 * n;
        v16 value = leaky_relu_of(normal[0], p.slope);
        if (left < 16) value = first_lanes(value, left);
        if (left > 0) store(to + e * predicted.pitch + 16 * n, value);  // zeros in the margin
        totals[e] += value;
        sum[n] += value;
      });
      float *mean = p.mean + (image * H + row) * W + column;
      for (int n = 0; n < VECTORS; n++) store_first(mean + 16 * n, sum[n] * splat(1.0f / (float)E), W - column - 16 * n);
    }
    o.watch.stop(PREDICTOR);
    for (long e = 0; e < E; e++) p.feature_sums[(image * H + row) * E + e] = sum_of(totals[e]);
  }

  // ---- 2: attention ----

  void derive() {
    value = lay_out<HALF>(V, C, (Element *)value.data, [&](long i, long k) { return w.value_weight[i * C + k]; });
    out = lay_out<HALF>(C, V, (Element *)out.data, [&](long i, long k) { return w.out_weight[i * V + k]; });
    expand = lay_out<HALF>(2 * hidden_channels, C, (Element *)expand.data, [&](long i, long k) {
      bool is_second = i >= hidden_channels;  // half of the expanded channels, which begins with a line
      long row = is_second ? i - hidden_channels : i;
      return row < F ? w.expand_weight[((is_second ? F : 0) + row) * C + k] : 0;
    });
    project = lay_out<HALF>(C, F, (Element *)project.data, [&](long i, long k) { return w.project_weight[i * F + k]; });
    copy_channels(out_bias, w.out_bias, C, 1), copy_channels(value_bias, w.value_bias, V, 1);
    copy_channels(depthwise_weight, w.depthwise_weight, V, 9), copy_channels(depthwise_bias, w.depthwise_bias, V, 1);
    copy_channels(dilated_weight, w.dilated_weight, V, 9), copy_channels(dilated_bias, w.dilated_bias, V, 1);
    copy_channels(gate_weight, w.ffn_depthwise_weight, F, 9);
    copy_channels(gate_weight + 9 * hidden_channels, w.ffn_depthwise_weight + 9 * F, F, 9);
    memset(zero_line, 0, inner_pitch * sizeof(float));
    for (long token = 0; token < tokens; token++) {
      token_columns[token] = token < L ? (float)(token % M) : 0;
      token_rows[token] = token < L ? (float)(token / M) : 0;
    }
    if (p.hard) derive_query();
    attend_channels();
  }

  // Copy so many numbers of each of `count` channels, and zeros for one that fills up the last line.
  void copy_channels(float *to, const float *from, long count, long each) const {
    for (long i = 0; i < round_up(count, STEP) * each; i++) to[i] = i < count * each ? from[i] : 0;
  }

  void derive_query() {
    float scale = p.attention_scale * 1.44269504f;  // of powers of two
    if (makes_keys) {
      auto scaled = [&](long i, long k) { return scale * w.query_weight[i * C + k]; };
      query = lay_out<HALF>(Q, C, (Element *)query.data, scaled);
      key = lay_out<HALF>(Q, C, (Element *)key.data, [&](long i, long k) { return w.key_weight[i * C + k]; });
      copy_channels(query_bias, w.query_bias, Q, 1);
      for (long i = 0; i < Q; i++) query_bias[i] *= scale;
      return;
    }
    float *rows = composed;  // W_kᵀ W_q
    for (long i = 0; i < C; i++) {
      float *row = rows + i * C, bias = 0;
      for (long c = 0; c < C; c++) row[c] = 0;
      for (long j = 0; j < Q; j++) {
        float factor = scale * w.key_weight[j * C + i];
        const float *query_row = w.query_weight + j * C;
        for (long c = 0; c < C; c++) row[c] += factor * query_row[c];
        bias += factor * w.query_bias[j];
      }
      query_bias[i] = bias;
    }
    for (long i = C; i < channels; i++) query_bias[i] = 0;
    query = lay_out<HALF>(C, C, (Element *)query.data, [&](long i, long k) { return rows[i * C + k]; });
  }

  void attend_channels() {
    for (long image = 0; image < p.images; image++) {
      float *attention = channel + image * value_channels;
      for (long c = 0; c < value_channels; c++) {
        if (!w.channel_weight || c >= V) {
          attention[c] = 1;
          continue;
        }
        if (c == 0) {
          float *mean = own[0].block;
          for (long e = 0; e < E; e++) {
            double total = 0;
            for (long row = 0; row < H; row++) total += p.feature_sums[(image * H + row) * E + e];
            mean[e] = (float)(total / ((double)H * W));
          }
        }
        float sum = w.channel_bias[c];
        for (long e = 0; e < E; e++) sum += w.channel_weight[c * E + e] * own[0].block[e];
        attention[c] = sigmoid_of(splat(sum))[0];
      }
    }
  }

  struct Place {
    long image, row, column;  // of the window's first pixel
  };
  Place place_of(long index) const {
    long columns = W / M, windows = (H / M) * columns;
    long window = index % windows;
    return {index / windows, window / columns * M, window % columns * M};
  }

  // Where the two vectors of a block of tokens lie, behind the first line of a map's row 0 of the window: whole vectors
  // where windows are a multiple of 16 wide.
  INLINE bool is_whole() const { return M % 16 == 0; }
  INLINE long offset_of(const Map &map, const Place &at, long token) const {
    return (at.row + token / M) * map.lines * map.pitch + at.column + token % M;
  }

  // Call run(token, offset, count) for runs of `count` tokens from `first` on that lie side by side in a map.
  template <typename Run>
  INLINE void for_runs(const Map &map, const Place &at, long first, long last, Run run) const {
    for (long token = first; token < last;) {
      long column = token % M, count = M - column < last - token ? M - column : last - token;
      run(token, offset_of(map, at, token), count);
      token += count;
    }
  }

  // Copy tokens of a window, `first` to `last`, to lines × pitch; zeros behind the last of the window.
  void gather(const Map &map, const Place &at, long first, long last, float *to, long pitch) const {
    const float *image = map.line(at.image, 0, 0);
    for_runs(map, at, first, last < L ? last : L, TILE(long token, long offset, long count) {
      copy_run(to + token - first, pitch, image + offset, map.pitch, map.lines, count);
    });
    if (last > L)
      for (long line = 0; line < map.lines; line++) memset(to + line * pitch + L - first, 0, (last - L) * sizeof(float));
  }

  // Mixed values lie where their pixels do or, in a stream, in the few rows that are kept.
  INLINE Place mixed_place(const Place &at) const {
    return is_stream ? Place{0, at.row % kept_rows, at.column} : at;
  }
  INLINE const float *mixed_line(long image, long row, long line) const {
    return is_stream ? mixed.line(0, row % kept_rows, line) : mixed.line(image, row, line);
  }

  // Write a block of tokens (lines × BLOCK, from token `first` on) into the mixed map.
  void scatter(const Place &at, long first, const float *block) const {
    Place place = mixed_place(at);
    float *image = mixed.line(place.image, 0, 0);
    for_runs(mixed, place, first, first + BLOCK < L ? first + BLOCK : L, TILE(long token, long offset, long count) {
      copy_run(image + offset, mixed.pitch, block + token - first, BLOCK, value_lines, count);
    });
  }

  // Write the mixed values of a block of tokens: make(write) calls write(line, vector, number of each part).
  template <typename Make>
  INLINE void write_values(const Place &at, long first, Own &o, Make make) const {
    float *to[VECTORS];
    bool there = is_whole();
    long to_pitch = there ? mixed.pitch : BLOCK;
    Place place = mixed_place(at);
    for (int n = 0; n < VECTORS; n++)
      to[n] = there ? mixed.line(place.image, 0, 0) + offset_of(mixed, place, first + 16 * n) : o.other_block + 16 * n;
    make(TILE(long line, int n, auto number) { store_cells<HALF>(to[n] + line * to_pitch, number); });
    if (!there) scatter(at, first, o.other_block);
  }

  // Project a block of cells, and write what `mix(channel, vector, product)` makes of it as mixed values.
  template <typename Mix>
  INLINE void project_values(const Place &at, long first, const float *cells, long pitch, long next_vector, Own &o,
                             Mix mix) const {
    write_values(at, first, o, TILE(auto write) {
      multiply_cells<HALF>(value, cells, pitch, next_vector, BLOCK, TILE(long line, int n, const v16 *sums) {
        write(line, n, TILE(int part) { return mix(STEP * line + part, n, sums[part]); });
      });
    });
  }

  // The cells of a pixel, and of a token of a window.
  INLINE const float *token_at(long image, long row, long column) const {
    return p.tokens + ((image * H + row) * W + column) * token_pitch;
  }
  INLINE const float *token_of(const Place &at, long token) const {
    return token_at(at.image, at.row + token / M, at.column + token % M);
  }

  // Ask for the lines and tokens of a window that comes next, a share of its rows at a time.
  void prefetch_window(long window, long share, long shares) const {
    if (window >= p.images * (H / M) * (W / M)) return;
    Place at = place_of(window);
    for (long m = M * share / shares; m < M * (share + 1) / shares; m++) {
      const float *line = x.line(at.image, at.row + m, 0) + at.column;
      for (long c = 0; c < lines; c++, line += x.pitch) __builtin_prefetch(line, 0, 2);
      if (!is_hard[window]) continue;
      const float *token = token_at(at.image, at.row + m, at.column);
      for (long part = 0; part < M * token_pitch; part += 16) __builtin_prefetch(token + part, 0, 2);
    }
  }

  // The 3×3 convolution of T to one channel, and its sigmoid, at the tokens of a window.
  void attend_space(const Place &at, float *spatial) const {
    for (long m = 0; m < M; m++)
      for (long column = 0; column < M; column += 16) {
        v16 sum_0 = splat(w.spatial_bias[0]), sum_1 = zeros(), sum_2 = zeros();
        for (long tap = 0; tap < 3; tap++) {
          long row = at.row + m + tap - 1;
          if (row < 0 || row >= H) continue;
          const float *line = predicted.line(at.image, row, 0) + at.column + column;
          for (long e = 0; e < E; e++, line += predicted.pitch) {
            const float *taps = w.spatial_weight + e * 9 + tap * 3;
            sum_0 += load(line - 1) * splat(taps[0]);
            sum_1 += load(line) * splat(taps[1]);
            sum_2 += load(line + 1) * splat(taps[2]);
          }
        }
        store_first(spatial + m * M + column, sigmoid_of(sum_0 + sum_1 + sum_2), M - column);
      }
    for (long token = L; token < tokens; token++) spatial[token] = 0;
  }

  // V·(s·x) + s·b = s·(V·x + b) for the spatial attention s of a token.
  void mix_plainly(const Place &at, Own &o) {
    if (w.spatial_weight) attend_space(at, o.spatial);
    o.watch.stop(PREDICTOR);
    for (long first = 0; first < L; first += BLOCK) {
      v16 weight[VECTORS];
      for (int n = 0; n < VECTORS; n++) weight[n] = w.spatial_weight ? load(o.spatial + first + 16 * n) : splat(1);
      const Cells cells = cells_of(at, first, o.cells);
      project_values(at, first, cells.data, cells.pitch, cells.next_vector, o, TILE(long c, int n, v16 sum) {
        return (sum + splat(value_bias[c])) * weight[n];
      });
    }
  }

  // x at a block of a window's tokens: where it lies or, where tokens are not side by side, in `block`.
  struct Cells {
    const float *data;
    long pitch, next_vector;
  };
  INLINE Cells cells_of(const Place &at, long first, float *block) const {
    if (is_whole()) {
      long offset = offset_of(x, at, first);
      return {x.line(at.image, 0, 0) + offset, x.pitch, offset_of(x, at, first + 16) - offset};
    }
    gather(x, at, first, first + BLOCK, block, BLOCK);
    return {block, BLOCK, 16};
  }

  // Keys of a hard window, lines × tokens: x + X̃, the pixel itself and the four that lie around where its offset
  // points, each by its weight (bilinear, border padding).
  void make_keys(const Place &at, Own &o) {
    v16 odd = zeros();  // not a number where an offset is not finite; what is behind the last token is finite
    for (long first = 0; first < L; first += BLOCK) {
      gather(predicted, at, first, first + BLOCK, o.block, BLOCK);
      v16 offsets[2][VECTORS];
      for (int axis = 0; axis < 2; axis++)
        for (int n = 0; n < VECTORS; n++) offsets[axis][n] = splat(w.offsets_out_bias[axis]);
      for (long h = 0; h < O; h++)
        for (int n = 0; n < VECTORS; n++) {
          v16 sum = splat(w.offsets_hidden_bias[h]);
          for (long e = 0; e < E; e++)
            sum += splat(w.offsets_hidden_weight[h * E + e]) * load(o.block + e * BLOCK + 16 * n);
          sum = leaky_relu_of(sum, p.slope);
          offsets[0][n] += splat(w.offsets_out_weight[h]) * sum;
          offsets[1][n] += splat(w.offsets_out_weight[O + h]) * sum;
        }
      int32_t corners[BLOCK], beside[BLOCK], beneath[BLOCK];
      float weights[4][BLOCK];
      for (int n = 0; n < VECTORS; n++) {
        v16 column = load(token_columns + first + 16 * n) + splat((float)at.column);
        v16 row = load(token_rows + first + 16 * n) + splat((float)at.row);
        v16 dx = tanh_of(offsets[0][n]) * splat(p.max_offset), dy = tanh_of(offsets[1][n]) * splat(p.max_offset);
        odd += dx * splat(0) + dy * splat(0);
        v16 px = smaller(larger(column + dx, zeros()), splat((float)(W - 1)));
        v16 py = smaller(larger(row + dy, zeros()), splat((float)(H - 1)));
        i16 left = __builtin_convertvector(px, i16), top = __builtin_convertvector(py, i16);
        v16 right = px - __builtin_convertvector(left, v16), below = py - __builtin_convertvector(top, v16);
        v16 not_right = splat(1) - right, not_below = splat(1) - below;
        store(weights[0] + 16 * n, not_right * not_below);
        store(weights[1] + 16 * n, right * not_below);
        store(weights[2] + 16 * n, not_right * below);
        store(weights[3] + 16 * n, right * below);
        i16 last_column = (i16)((int32_t)(W - 1)), last_row = (i16)((int32_t)(H - 1));
        *(i16_unaligned *)(corners + 16 * n) = top * (i16)((int32_t)W) + left;
        *(i16_unaligned *)(beside + 16 * n) = -(left < last_column);  // 1 where there is one
        *(i16_unaligned *)(beneath + 16 * n) = -(top < last_row);
      }
      o.watch.stop(PREDICTOR);
      const float *image = token_at(at.image, 0, 0);
      for (long group = 0; group < BLOCK; group += 16) {
        for (long lane = 0; lane < 16; lane++) {
          long index = group + lane, token = first + index;
          float *key = o.rows + lane * token_pitch;
          if (token >= L) {
            for (long c = 0; c < token_pitch; c += 16) store(key + c, zeros());
            continue;
          }
          const float *self = token_of(at, token);
          const float *here = image + corners[index] * token_pitch;
          long across = beside[index] * token_pitch, down = beneath[index] * W * token_pitch;
          v16 w_0 = splat(weights[0][index]), w_1 = splat(weights[1][index]);
          v16 w_2 = splat(weights[2][index]), w_3 = splat(weights[3][index]);
          for (long c = 0; c < token_pitch; c += 16)
            store_cells<HALF>(key + c, TILE(int part) {
              auto at_corner = TILE(const float *corner) { return load_cells<HALF>(corner + c, part); };
              return at_corner(self) + (at_corner(here) * w_0 + at_corner(here + across) * w_1) +
                     (at_corner(here + down) * w_2 + at_corner(here + down + across) * w_3);
            });
        }
        transpose_rows(o.rows, o.keys + first + group);
      }
      o.watch.stop(ATTENTION);
    }
    if (sum_of(odd) != 0) __atomic_store_n(&unbounded, 1, __ATOMIC_RELAXED);
  }

  // 16 rows of cells become columns of the keys.
  void transpose_rows(const float *rows, float *to) const {
    for (long first = 0; first < lines; first += 16) {
      v16 block[16];
#pragma unroll
      for (int i = 0; i < 16; i++) block[i] = load(rows + i * token_pitch + first);
      transpose_16(block);
#pragma unroll
      for (int i = 0; i < 16; i++)
        if (first + i < lines) store(to + (first + i) * key_pitch, block[i]);
    }
  }

  void attend(long window, const Place &at, Own &o) {
    if (w.offsets_out_bias)  // of weights there are none where D < 8
      make_keys(at, o);
    else
      gather(x, at, 0, tokens, o.keys, key_pitch);
    if (makes_keys) project_keys(o);
    const Element *keys = (const Element *)(makes_keys ? o.fewer_keys : o.keys);
    if (makes_values)
      make_values(at, o);
    else
      lay_out_values(at, o);
    long depth = compared_lines, steps = depth_of<HALF>(L);
    for (long first = 0; first < L; first += BLOCK) {
      const Cells cells = cells_of(at, first, o.cells);
      multiply_cells<HALF>(query, cells.data, cells.pitch, cells.next_vector, BLOCK,
                           TILE(long line, int n, const v16 *sums) {
        store_cells<HALF>(o.queries + line * BLOCK + 16 * n,
                          TILE(int part) { return sums[part] + splat(query_bias[STEP * line + part]); });
      });
      v16 most[VECTORS];
      for (int n = 0; n < VECTORS; n++) most[n] = splat(-__builtin_inff());
      for_tiles(L, TILE(auto &sums, long key, int n) {
        multiply(sums, depth, keys + key, key_pitch, (const Element *)o.queries + 16 * n, BLOCK);
      }, TILE(long key, int n, v16 score) {
        store(o.scores + key * BLOCK + 16 * n, score);
        most[n] = larger(score, most[n]);
      });
      v16 share[VECTORS];
      weigh_scores<HALF>(o.scores, L, most, o.weights, share);
      auto sum_up = TILE(auto &sums, long c, int n) {
        multiply(sums, steps, o.value_panels + c / PANEL * PANEL * steps + c % PANEL, PANEL, o.weights + 16 * n, BLOCK);
      };
      if (makes_values) {
        write_values(at, first, o, TILE(auto write) {
          auto keep = TILE(long line, int n, const v16 *sums) {
            const float *bias = value_bias + STEP * line;
            write(line, n, TILE(int part) { return sums[part] * share[n] + splat(bias[part]); });
          };
          for_tiles_by(V, sum_up, ByLine<HALF, decltype(keep)>{keep});
        });
      } else {
        auto keep = TILE(long line, int n, const v16 *sums) {
          store_cells<HALF>(o.attended + line * BLOCK + 16 * n, TILE(int part) { return sums[part] * share[n]; });
        };
        for_tiles_by(C, sum_up, ByLine<HALF, decltype(keep)>{keep});
        project_values(at, first, o.attended, BLOCK, 16, o,
                       TILE(long c, int, v16 sum) { return sum + splat(value_bias[c]); });
      }
      prefetch_window(window + 1, first / BLOCK, tokens / BLOCK);
    }
  }

  // x of the window's tokens in panels of 12 channels: token by token, or two of them in a word.
  void lay_out_values(const Place &at, Own &o) {
    long steps = depth_of<HALF>(L);
    for (long panel = 0; panel < C; panel += PANEL) {
      Element *to = o.value_panels + panel * steps;
      auto cells = TILE(long token) { return token_of(at, token) + panel / STEP; };
      for (long token = 0; token < L; token += STEP, to += PANEL) {
        if constexpr (HALF) {
          u16 low = load_halves(cells(token)), high = token + 1 < L ? load_halves(cells(token + 1)) : (u16)(0);
          *(u16_unaligned *)to = low | high << 16;
        } else {
          store(to, load(cells(token)));  // four numbers more than the panel's, which the next token overwrites
        }
      }
    }
  }

  // The values of the window's tokens in such panels, without their bias.
  void make_values(const Place &at, Own &o) {
    long steps = depth_of<HALF>(L);
    for (long first = 0; first < L; first += BLOCK) {
      const Cells cells = cells_of(at, first, o.cells);
      multiply_cells<HALF>(value, cells.data, cells.pitch, cells.next_vector, BLOCK,
                           TILE(long line, int n, const v16 *sums) {
        float *to = o.other_block + STEP * line * BLOCK + 16 * n;
        for (int part = 0; part < STEP; part++) store(to + part * BLOCK, sums[part]);
      });
      for (long panel = 0; panel < V; panel += PANEL)
        for (long group = first; group < first + BLOCK && group < L; group += 16) {
          v16 rows[16];  // of which those behind the values' lines are never used
#pragma unroll
          for (int i = 0; i < 16; i++) rows[i] = load(o.other_block + (panel + i) * BLOCK + group - first);
          transpose_16(rows);
          float *to = (float *)o.value_panels + panel * steps + group / STEP * PANEL;
#pragma unroll
          for (int i = 0; i < 16; i += STEP, to += PANEL)
            if (group + i < L) {
              v16 cells_;
              store_cells<HALF>((float *)&cells_, TILE(int part) { return rows[i + part]; });
              store_first(to, cells_, PANEL);  // the next panel may be there
            }
        }
    }
  }

  // The keys of the window, compared_lines × tokens, without their bias.
  void project_keys(Own &o) const {
    for (long first = 0; first < tokens; first += BLOCK)
      multiply_cells<HALF>(key, o.keys + first, key_pitch, 16, BLOCK, TILE(long line, int n, const v16 *sums) {
        store_cells<HALF>(o.fewer_keys + line * key_pitch + first + 16 * n, TILE(int part) { return sums[part]; });
      });
  }

  void mix_window(long window, Own &o) {
    Place at = place_of(window);
    o.watch.start();
    if (is_hard[window]) {
      attend(window, at, o);
    } else {
      mix_plainly(at, o);
      prefetch_window(window + 1, 0, 1);
    }
    o.watch.stop(ATTENTION);
  }

  // ---- 3: convolutions, projections, norms ----

  INLINE Rings ring(long number) const {
    float *inner = rings + number * ring_size, *normed = inner + INNER_LINES * value_lines * inner_pitch;
    return {inner, normed, normed + KEPT_ROWS * lines * line_pitch_};
  }
  INLINE float *inner_line(const Rings &r, long row, long line) const {
    return r.inner + ((row % INNER_LINES) * value_lines + line) * inner_pitch + MARGIN;
  }
  INLINE float *normed_line(const Rings &r, long row, long line) const {
    return r.normed + ((row % KEPT_ROWS) * lines + line) * line_pitch_ + MARGIN;
  }
  INLINE float *expanded_line(const Rings &r, long row, long line) const {
    return r.expanded + ((row % KEPT_ROWS) * 2 * hidden_lines + line) * line_pitch_ + MARGIN;
  }

  // Begin with rows `begin` of a tile: the lines' left margins are zeros from now on, whatever was there before.
  void begin_tile(long begin, const Rings &r, Progress &at) const {
    at.row = begin > 0 ? begin - FFN_REACH : 0;
    at.convolved = at.row > DILATED_REACH ? at.row - DILATED_REACH : 0;
    for (long line = 0; line < INNER_LINES * value_lines; line++) store(r.inner + line * inner_pitch, zeros());
    for (long line = 0; line < KEPT_ROWS * 2 * hidden_lines; line++) store(r.expanded + line * line_pitch_, zeros());
  }

  // Finish rows of a tile, up to `end` or as far as the `available` mixed rows reach.
  void finish_rows(long image, long begin, long end, long from, long to, long available, const Rings &r, Progress &at,
                   Own &o) {
    long expand_from = from > 0 ? from - FFN_REACH : 0, expand_to = to < W ? to + FFN_REACH : W;
    long inner_from = expand_from > DILATED_REACH ? expand_from - DILATED_REACH : 0;
    long inner_to = expand_to + DILATED_REACH < W ? expand_to + DILATED_REACH : W;
    long inner_count = inner_to - inner_from, count = expand_to - expand_from;
    long inner_vectors = (inner_count + 15) / 16, vectors = (count + 15) / 16;
    const float *zero = zero_line + MARGIN;
    long last_row = end < H ? end + FFN_REACH : H;
    const float *attention = channel + image * value_channels;
    o.watch.start();
    for (; at.row <= last_row; at.row++) {
      long row = at.row;
      if (row < last_row) {
        if (available < H && row + MIXER_REACH >= available) return;
        for (; at.convolved < H && at.convolved <= row + DILATED_REACH; at.convolved++) {
          long convolved = at.convolved;
          for (long line = 0; line < value_lines; line++) {
            const float *middle = mixed_line(image, convolved, line) + inner_from;
            const float *top = convolved > 0 ? mixed_line(image, convolved - 1, line) + inner_from : zero;
            const float *bottom = convolved + 1 < H ? mixed_line(image, convolved + 1, line) + inner_from : zero;
            float *inner = inner_line(r, convolved, line);
            const float *bias = depthwise_bias + STEP * line;
            convolve_line<1, HALF>(top, middle, bottom, depthwise_weight + 9 * STEP * line, inner_vectors, o.scratch,
                                   TILE(long v, const v16 *sums) {
              store_cells<HALF>(inner + 16 * v, TILE(int part) { return sums[part] + splat(bias[part]); });
            });
            end_line(inner, inner_count);
          }
        }
        for (long line = 0; line < value_lines; line++) {
          const float *middle = inner_line(r, row, line) + expand_from - inner_from;
          const float *top = row >= 2 ? inner_line(r, row - 2, line) + expand_from - inner_from : zero;
          const float *bottom = row + 2 < H ? inner_line(r, row + 2, line) + expand_from - inner_from : zero;
          const float *own_line = mixed_line(image, row, line) + expand_from;
          float *dilated = o.dilated + line * line_pitch_;
          const float *bias = dilated_bias + STEP * line, *factor = attention + STEP * line;
          convolve_line<2, HALF>(top, middle, bottom, dilated_weight + 9 * STEP * line, vectors, o.scratch,
                                 TILE(long v, const v16 *sums) {
            store_cells<HALF>(dilated + 16 * v, TILE(int part) {
              v16 local = gelu_of<HALF>(sums[part] + splat(bias[part]));
              return local * splat(factor[part]) + load_cells<HALF>(own_line + 16 * v, part);
            });
          });
        }
        o.watch.stop(CONVOLUTION);
        project_mixer(image, row, expand_from, count, r, o);
      }
      if (row > begin && row <= end) finish_row(image, row - 1, from, to, expand_from, r, o);
    }
  }

  INLINE void end_line(float *line, long count) const {
    if (count % 16) {
      long last = count / 16 * 16;
      store(line + last, first_lanes(load(line + last), count - last));
    }
    store(line + round_up(count, 16), zeros());
  }

  // One row: out projection, residual, norm1, and the FFN's expansion.
  void project_mixer(long image, long row, long from, long count, const Rings &r, Own &o) {
    for (long column = 0; column < count; column += BLOCK) {
      const float *residual = x.line(image, row, 0) + from + column;
      prefetch<false>(x, image, row + 1, from + column);
      add_products(out, o.dilated + column, line_pitch_, residual, x.pitch, out_bias, count - column, o.block);
      o.watch.stop(ATTENTION);
      float *kept = normed_line(r, row, 0) + column, *expanded = expanded_line(r, row, 0) + column;
      normalise<STEP>(o.block, C, w.norm1_weight, w.norm1_bias, p.eps, TILE(long c, int n, const v16 *normal) {
        long left = count - column - 16 * n;
        store_cells<HALF>(kept + c / STEP * line_pitch_ + 16 * n, TILE(int part) {
          return left < 16 ? first_lanes(normal[part], left) : normal[part];
        });
      });
      o.watch.stop(NORMS);
      multiply_cells<HALF>(expand, kept, line_pitch_, 16, count - column, TILE(long line, int n, const v16 *sums) {
        store_cells<HALF>(expanded + line * line_pitch_ + 16 * n, TILE(int part) { return sums[part]; });
      });
      o.watch.stop(FFN);
    }
    long behind = round_up(count, 16);
    for (long line = 0; line < 2 * hidden_lines; line++) store(expanded_line(r, row, line) + behind, zeros());
  }

  // Products of a block of cells with a residual and, unless it is null, a bias added, as channels × BLOCK numbers.
  INLINE void add_products(const Weights<HALF> &weights, const float *cells, long pitch, const float *residual,
                           long residual_pitch, const float *bias, long columns, float *block) const {
    multiply_cells<HALF>(weights, cells, pitch, 16, columns, TILE(long line, int n, const v16 *sums) {
      for (int part = 0; part < STEP; part++) {
        v16 sum = sums[part] + load_cells<HALF>(residual + line * residual_pitch + 16 * n, part);
        store(block + (STEP * line + part) * BLOCK + 16 * n, bias ? sum + splat(bias[STEP * line + part]) : sum);
      }
    });
  }

  // One row of the result: the FFN's convolution and gate, projection, residual, norm2.
  void finish_row(long image, long row, long from, long to, long kept_from, const Rings &r, Own &o) {
    long shift = from - kept_from, columns = to - from, vectors = (columns + 15) / 16;
    const float *zero = zero_line + MARGIN;
    auto convolve = TILE(long line, auto finish) {
      const float *middle = expanded_line(r, row, line) + shift;
      const float *top = row > 0 ? expanded_line(r, row - 1, line) + shift : zero;
      const float *bottom = row + 1 < H ? expanded_line(r, row + 1, line) + shift : zero;
      convolve_line<1, HALF>(top, middle, bottom, gate_weight + 9 * STEP * line, vectors, o.scratch, finish);
    };
    for (long line = 0; line < hidden_lines; line++) {
      convolve(line, TILE(long v, const v16 *sums) {
        for (int part = 0; part < STEP; part++) store(o.gate + part * inner_pitch + 16 * v, gelu_of<HALF>(sums[part]));
      });
      convolve(hidden_lines + line, TILE(long v, const v16 *sums) {
        store_cells<HALF>(o.gated + line * line_pitch_ + 16 * v, TILE(int part) {
          return load(o.gate + part * inner_pitch + 16 * v) * sums[part];
        });
      });
    }
    for (long column = 0; column < columns; column += BLOCK) {
      prefetch<true>(next, image, row + 1, from + column);
      if (p.keep_tokens && row + 1 < H) {
        const float *tokens_ = p.next_tokens + ((image * H + row + 1) * W + from + column) * token_pitch;
        for (long part = 0; part < BLOCK * token_pitch; part += 16) __builtin_prefetch(tokens_ + part, 1, 2);
      }
      add_products(project, o.gated + column, line_pitch_, normed_line(r, row, 0) + shift + column, line_pitch_, nullptr,
                   columns - column, o.block);
      o.watch.stop(FFN);
      normalise<STEP>(o.block, C, w.norm2_weight, w.norm2_bias, p.eps, TILE(long c, int n, const v16 *normal) {
        store_cells<HALF>(o.other_block + c / STEP * BLOCK + 16 * n, TILE(int part) { return normal[part]; });
      });
      store_result(image, row, from + column, columns - column, o.other_block);
      o.watch.stop(NORMS);
    }
  }

  // Write the first `count` columns of a block of cells into the next map, and into the tokens where they are wanted.
  INLINE void store_result(long image, long row, long column, long count, const float *block) const {
    if (count > BLOCK) count = BLOCK;
    float *result = next.line(image, row, 0) + column;
    for (long line = 0; line < lines; line++)
      for (int n = 0; n < VECTORS; n++)
        if (count > 16 * n)
          store_first(result + line * next.pitch + 16 * n, load(block + line * BLOCK + 16 * n), count - 16 * n);
    if (p.keep_tokens)
      store_tokens(block, lines, count, p.next_tokens + ((image * H + row) * W + column) * token_pitch, token_pitch);
  }

  // What all begins with: a float32 map becomes cells and tokens.
  void begin(const float *features) {
    Map from = map_of((float *)features, H, C, W);
    share_out(p.images * H, threads, [&, this](long task, long thread) {
      long image = task / H, row = task % H;
      float *block = own[thread].other_block;
      for (long column = 0; column < W; column += BLOCK) {
        const float *line = from.line(image, row, 0) + column;
        for (long c = 0; c < C; c += STEP)
          for (int n = 0; n < VECTORS; n++)
            store_cells<HALF>(block + c / STEP * BLOCK + 16 * n, TILE(int part) {
              return c + part < C ? load(line + (c + part) * from.pitch + 16 * n) : zeros();
            });
        store_result(image, row, column, W - column, block);
      }
    });
  }

  void run_prediction() {
    derive_trunk();
    share_out(p.images * H, threads, [this](long task, long thread) { predict_row(task / H, task % H, own[thread]); });
    collect(own, threads, p.ticks);
  }

  // The end of a group: one product, where a block has its queries, and what the group began with.
  void finish_group(const float *weight, const float *bias, float *start_data) {
    Map start = map_of(start_data, H, lines, W);
    query = lay_out<HALF>(C, C, (Element *)query.data, [&](long i, long k) { return weight[i * C + k]; });
    copy_channels(query_bias, bias, C, 1);
    share_out(p.images * H, threads, [&, this](long task, long thread) {
      long image = task / H, row = task % H;
      float *block = own[thread].other_block;
      for (long column = 0; column < W; column += BLOCK) {
        const float *residual = start.line(image, row, 0) + column;
        multiply_cells<HALF>(query, x.line(image, row, 0) + column, x.pitch, 16, W - column,
                             TILE(long line, int n, const v16 *sums) {
          store_cells<HALF>(block + line * BLOCK + 16 * n, TILE(int part) {
            return sums[part] + splat(query_bias[STEP * line + part]) +
                   load_cells<HALF>(residual + line * start.pitch + 16 * n, part);
          });
        });
        store_result(image, row, column, W - column, block);
      }
    });
  }

  int run_rest() {
    derive();
    long windows = p.images * (H / M) * (W / M);
    memset(is_hard, 0, windows);
    for (long index = 0; index < p.hard; index++) is_hard[p.windows[index]] = 1;
    if (is_stream)
      for (long image = 0; image < p.images; image++) stream(image);
    else
      share_rest(windows);
    collect(own, threads, p.ticks);
    return unbounded;
  }

  // Mix a row of windows, finish the rows that this makes possible in every tile, and so on.
  void stream(long image) {
    for (long tile = 0; tile < tiles; tile++) begin_tile(0, ring(tile), progress[tile]);
    long columns = W / M;
    for (long row = 0; row < H / M; row++) {
      long first = (image * (H / M) + row) * columns;
      for (long window = first; window < first + columns; window++) mix_window(window, own[0]);
      for (long tile = 0; tile < tiles; tile++) {
        long from = tile * tile_columns, to = from + tile_columns < W ? from + tile_columns : W;
        finish_rows(image, 0, H, from, to, (row + 1) * M, ring(tile), progress[tile], own[0]);
      }
    }
  }

  // All windows, the hard ones first, and then bands of rows.
  void share_rest(long windows) {
    share_out(windows, threads, [this](long task, long thread) { mix_window(p.windows[task], own[thread]); });
    share_out(p.images * bands * tiles, threads, [this](long task, long thread) {
      long tile = task % tiles, band = task / tiles % bands, image = task / tiles / bands;
      long begin = band * band_rows, end = begin + band_rows < H ? begin + band_rows : H;
      long from = tile * tile_columns, to = from + tile_columns < W ? from + tile_columns : W;
      Progress at;
      begin_tile(begin, ring(thread), at);
      finish_rows(image, begin, end, from, to, H, ring(thread), at, own[thread]);
    });
  }
};

}  // namespace
