// Attention over a paged pool for a ragged batch: prompt chunks and single tokens in one call.
//
// An item is some tokens of one sequence with all query heads that share one key-value head: its rows. It walks over its
// keys in tiles, each read from the pool once for all rows, with a running softmax (Milakov and Gimelshein,
// arXiv:1805.02867). Keys of a sequence with few tokens are cut into pieces at fixed places, so that one long sequence has
// work for many threads and results depend on neither threads nor batch.

#include "few_rows.h"
#include "kernels.h"
#include "parallel.h"
#include "transpose.h"

namespace trtx {
namespace TRTX_LEVEL {
namespace {

constexpr int64_t TILE_KEYS = 64, MAX_ROWS = 32, PIECE_KEYS = 512;
// A score that nobody sees: finite, so that no difference of two is NaN, and its exponential is 0.
constexpr float MASKED = -1e30f;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

struct Item {
  int64_t sequence, head;          // head: key-value head
  int64_t first_token, num_tokens;  // rows of q
  int64_t first_position;          // of the first token in its sequence
  int64_t keys_begin, keys_end;
  int64_t piece, num_pieces;       // of those that share these rows; 0 of 1 where keys are not cut
};

// Scratch of one item. Rows are tokens times heads: row = token · R + head.
struct Workspace {
  float* q;       // [rows, width], scaled
  float* scores;  // [rows, TILE_KEYS]
  float* keys;    // [width, TILE_KEYS], transposed
  float* values;  // [TILE_KEYS, width]
};

// Where the keys and values of a tile are in the pools.
struct Tile {
  const char* keys[TILE_KEYS];
  const char* values[TILE_KEYS];
};

// What rows have seen so far: y is the sum of exp(score − most) · value, and `total` that of exp(score − most).
struct Running {
  float* y;      // [rows, width]
  float* most;   // [rows]
  float* total;  // [rows]
};

// c[rows, columns] (+)= a[rows, depth] · b[depth, columns]
template <int rows, int vectors>
inline void multiply_block(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t depth, bool adds) {
  Floats sums[rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Floats right[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) right[v] = load<Floats>(b + k * b_stride + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Floats left = spread(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      float* to = c + r * c_stride + v * LANES;
      store(to, adds ? load<Floats>(to) + sums[r][v] : sums[r][v]);
    }
}

// `columns` is a multiple of LANES.
inline void multiply(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t rows,
    int64_t columns, int64_t depth, bool adds) {
  constexpr int WIDE = LANES == 16 ? 4 : 2;
  for (int64_t n = 0; n < columns;) {
    const bool is_wide = n + WIDE * LANES <= columns;
    for (int64_t r = 0; r < rows;) {
      const float* left = a + r * a_stride;
      float* to = c + r * c_stride + n;
      const int64_t more = rows - r;
      if (is_wide && more >= 4) multiply_block<4, WIDE>(left, a_stride, b + n, b_stride, to, c_stride, depth, adds), r += 4;
      else if (is_wide && more >= 2) multiply_block<2, WIDE>(left, a_stride, b + n, b_stride, to, c_stride, depth, adds), r += 2;
      else if (is_wide) multiply_block<1, WIDE>(left, a_stride, b + n, b_stride, to, c_stride, depth, adds), r += 1;
      else if (more >= 4) multiply_block<4, 1>(left, a_stride, b + n, b_stride, to, c_stride, depth, adds), r += 4;
      else multiply_block<1, 1>(left, a_stride, b + n, b_stride, to, c_stride, depth, adds), r += 1;
    }
    n += is_wide ? WIDE * LANES : LANES;
  }
}

// Find `count` keys from key `first` on, and ask for them: a key's numbers lie together, but its neighbours do not follow.
template <Number number>
void find_tile(const AttentionTask& task, const Item& item, int64_t first, int64_t count, Tile& tile) {
  const int32_t* table = task.block_tables + item.sequence * task.W;
  const int64_t size = task.D * SIZE<number>;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t key = first + j, slot = table[key / task.S] * task.S + key % task.S;
    const int64_t offset = (slot * task.G + item.head) * size;
    tile.keys[j] = static_cast<const char*>(task.k_pool) + offset;
    tile.values[j] = static_cast<const char*>(task.v_pool) + offset;
    for (int64_t line = 0; line < size; line += 64) {
      __builtin_prefetch(tile.keys[j] + line);
      __builtin_prefetch(tile.values[j] + line);
    }
  }
}

// Keys as columns, so that scores are vectors over keys; zeros beyond `count`.
template <Number number>
void read_keys(const AttentionTask& task, const Tile& tile, int64_t count, Workspace& work) {
  const int64_t whole = task.D / LANES * LANES;
  for (int64_t j = 0; j < round_up(count, LANES); j += LANES) {
    for (int64_t d = 0; d < task.D; d += LANES) {
      Floats block[LANES];
      for (int i = 0; i < LANES; ++i) {
        if (j + i >= count) {
          block[i] = Floats{};
        } else if (d < whole) {
          block[i] = widen<number>(tile.keys[j + i] + d * SIZE<number>);
        } else {
          float row[LANES];
          widen_row<number>(tile.keys[j + i] + d * SIZE<number>, row, task.D - d, LANES);
          block[i] = load<Floats>(row);
        }
      }
      transpose(block);
      for (int i = 0; i < LANES; ++i) store(work.keys + (d + i) * TILE_KEYS + j, block[i]);
    }
  }
}

// Rows of one tile: from scores to probabilities that are not yet divided by their total.
void update_row(const AttentionTask& task, float* scores, int64_t begin, int64_t end, int64_t columns, float* y, int64_t width,
                float& most, float& total) {
  if (end <= begin) {
    for (int64_t j = 0; j < columns; ++j) scores[j] = 0;
    return;
  }
  if (task.softcap > 0)
    for (int64_t j = 0; j < columns; j += LANES)
      store(scores + j, task.softcap * tanh_of(load<Floats>(scores + j) * (1 / task.softcap)));
  for (int64_t j = 0; j < begin; ++j) scores[j] = MASKED;
  for (int64_t j = end; j < columns; ++j) scores[j] = MASKED;
  Floats highest = spread(most);
  for (int64_t j = 0; j < columns; j += LANES) highest = larger(highest, load<Floats>(scores + j));
  const float now = largest(highest);
  Floats sums = {};
  for (int64_t j = 0; j < columns; j += LANES) {
    const Floats p = exp_nonpositive(load<Floats>(scores + j) - now);
    sums += p;
    store(scores + j, p);
  }
  const float before = exp_nonpositive(spread(most - now))[0];
  total = total * before + sum(sums);
  most = now;
  if (before != 1)
    for (int64_t d = 0; d < width; d += LANES) store(y + d, load<Floats>(y + d) * before);
}

// Scores of an item's rows and a tile's keys, to work.scores.
template <Number number>
void score(
    const AttentionTask& task, const Item& item, const Tile& tile, int64_t count, int64_t width, Workspace& work, bool is_direct) {
  const int64_t R = task.H / task.G, rows = item.num_tokens * R;
#ifdef __AVX512BF16__
  if (is_direct && number != Number::f32 && task.number == Number::bf16 && task.D % Bf16Products::STEP == 0) {
    const auto* q = static_cast<const uint16_t*>(task.q);
    for (int64_t t = 0; t < item.num_tokens; ++t) {
      const auto* from = q + ((item.first_token + t) * task.H + item.head * R) * task.D;
      float* to = work.scores + t * R * TILE_KEYS;
      score_few<Bf16Products, number>(from, task.D, R, tile.keys, count, task.D, task.scale * task.k_scale, to, TILE_KEYS);
    }
    return;
  }
#endif
  if (is_direct)
    return score_few<FloatProducts, number>(work.q, width, rows, tile.keys, count, task.D, 1, work.scores, TILE_KEYS);
  read_keys<number>(task, tile, count, work);
  multiply(work.q, width, work.keys, TILE_KEYS, work.scores, TILE_KEYS, rows, round_up(count, LANES), task.D, false);
}

template <Number number>
void run_item(const AttentionTask& task, const Item& item, int64_t width, Workspace& work, const Running& running) {
  const int64_t R = task.H / task.G, rows = item.num_tokens * R;
  const float q_scale = task.scale * task.k_scale;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t from = ((item.first_token + row / R) * task.H + item.head * R + row % R) * task.D;
    if (task.number == Number::f32) widen_row<Number::f32>(static_cast<const float*>(task.q) + from, work.q + row * width, task.D, width);
    else widen_row<Number::bf16>(static_cast<const uint16_t*>(task.q) + from, work.q + row * width, task.D, width);
    for (int64_t d = 0; d < task.D; ++d) work.q[row * width + d] *= q_scale;
    for (int64_t d = 0; d < width; ++d) running.y[row * width + d] = 0;
    running.most[row] = MASKED;
    running.total[row] = 0;
  }
  Tile tiles[2];
  const auto size_of = [&](int64_t first) { return smaller(TILE_KEYS, item.keys_end - first); };
  find_tile<number>(task, item, item.keys_begin, size_of(item.keys_begin), tiles[0]);
  int64_t turn = 0;
  for (int64_t first = item.keys_begin; first < item.keys_end; first += TILE_KEYS, ++turn) {
    const int64_t count = size_of(first), columns = round_up(count, LANES), next = first + TILE_KEYS;
    const Tile& tile = tiles[turn % 2];
    if (next < item.keys_end) find_tile<number>(task, item, next, size_of(next), tiles[(turn + 1) % 2]);
    const bool is_direct = rows <= FEW_ROWS && task.D % LANES == 0;
    score<number>(task, item, tile, count, width, work, is_direct);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t position = item.first_position + row / R;
      const int64_t begin = task.window > 0 ? greater(0, position - task.window + 1 - first) : 0;
      const int64_t end = smaller(count, position + 1 - first);
      update_row(task, work.scores + row * TILE_KEYS, begin, end, columns, running.y + row * width, width, running.most[row],
                 running.total[row]);
    }
    if (is_direct) {
      add_values<number>(work.scores, TILE_KEYS, rows, tile.values, count, task.D, running.y, width);
      continue;
    }
    for (int64_t j = 0; j < count; ++j) widen_row<number>(tile.values[j], work.values + j * width, task.D, width);
    multiply(work.scores, TILE_KEYS, work.values, width, running.y, width, rows, width, count, true);
  }
}

// Divide the rows of an item by their totals and write them as its tokens' output.
void finish(const AttentionTask& task, const Item& item, int64_t width, const Running& running) {
  const int64_t R = task.H / task.G;
  for (int64_t row = 0; row < item.num_tokens * R; ++row) {
    const int64_t to = ((item.first_token + row / R) * task.H + item.head * R + row % R) * task.D;
    const float total = running.total[row];
    const float factor = total > 0 ? task.v_scale / total : 0;  // padding before a sequence's start sees nothing
    for (int64_t d = 0; d < task.D; ++d) {
      const float value = running.y[row * width + d] * factor;
      if (task.number == Number::f32) static_cast<float*>(task.y)[to + d] = value;
      else static_cast<uint16_t*>(task.y)[to + d] = narrow_bf16(value);
    }
  }
}

// Add what a later piece has seen to what `first` has.
void merge(int64_t rows, int64_t width, const Running& first, const Running& other) {
  for (int64_t row = 0; row < rows; ++row) {
    const float most = first.most[row] > other.most[row] ? first.most[row] : other.most[row];
    const float a = exp_nonpositive(spread(first.most[row] - most))[0], b = exp_nonpositive(spread(other.most[row] - most))[0];
    first.most[row] = most;
    first.total[row] = first.total[row] * a + other.total[row] * b;
    for (int64_t d = 0; d < width; ++d) first.y[row * width + d] = first.y[row * width + d] * a + other.y[row * width + d] * b;
  }
}

// The items of a sequence for one key-value head; `put` takes each. Returns how many.
template <class Put>
int64_t cut_sequence(const AttentionTask& task, int64_t sequence, int64_t head, const Put& put) {
  const int64_t start = task.query_starts[sequence], tokens = task.query_starts[sequence + 1] - start;
  const int64_t before = task.context_lens[sequence] - tokens;
  const int64_t size = greater(1, MAX_ROWS / (task.H / task.G));
  int64_t count = 0;
  for (int64_t t = 0; t < tokens; t += size) {
    Item item{sequence, head, start + t, smaller(size, tokens - t), before + t, 0, 0, 0, 1};
    const int64_t begin = task.window > 0 ? greater(0, item.first_position - task.window + 1) : 0;
    const int64_t end = item.first_position + item.num_tokens;
    item.num_pieces = tokens <= size ? greater(1, ceil_div(end, PIECE_KEYS) - begin / PIECE_KEYS) : 1;
    for (; item.piece < item.num_pieces; ++item.piece, ++count) {
      const int64_t place = (begin / PIECE_KEYS + item.piece) * PIECE_KEYS;
      item.keys_begin = item.num_pieces == 1 ? begin : greater(begin, place);
      item.keys_end = item.num_pieces == 1 ? end : smaller(end, place + PIECE_KEYS);
      put(count, item);
    }
  }
  return count;
}

template <Number number>
void run(const AttentionTask& task) {
  int64_t num_items = 0;
  for (int64_t b = 0; b < task.B; ++b) num_items += task.G * cut_sequence(task, b, 0, [](int64_t, const Item&) {});
  auto* items = static_cast<Item*>(scratch<0>(num_items * sizeof(Item)));
  for (int64_t b = 0, next = 0; b < task.B; ++b)
    for (int64_t g = 0; g < task.G; ++g) next += cut_sequence(task, b, g, [&](int64_t i, const Item& item) { items[next + i] = item; });

  const int64_t R = task.H / task.G, rows = greater(MAX_ROWS, R), width = round_up(task.D, LANES);
  // Pieces keep what they have seen until all are done: y, most and total of the rows of one item.
  const int64_t piece_size = rows * (width + 2);
  bool has_pieces = false;
  for (int64_t i = 0; i < num_items; ++i) has_pieces = has_pieces || items[i].num_pieces > 1;
  auto* pieces = has_pieces ? static_cast<float*>(scratch<1>(num_items * piece_size * sizeof(float))) : nullptr;
  const auto piece_of = [&](int64_t i) {
    float* y = pieces + i * piece_size;
    return Running{y, y + rows * width, y + rows * width + rows};
  };

  for_each(num_items, [&](int64_t i) {
    Workspace work;
    auto* memory = static_cast<float*>(scratch<2>((rows * (2 * width + TILE_KEYS + 2) + 2 * TILE_KEYS * width) * sizeof(float)));
    work.q = memory;
    work.scores = work.q + rows * width;
    work.keys = work.scores + rows * TILE_KEYS;
    work.values = work.keys + TILE_KEYS * width;
    float* y = work.values + TILE_KEYS * width;
    const bool is_piece = items[i].num_pieces > 1;
    const Running running = is_piece ? piece_of(i) : Running{y, y + rows * width, y + rows * width + rows};
    run_item<number>(task, items[i], width, work, running);
    if (!is_piece) finish(task, items[i], width, running);
  });
  for (int64_t i = 0; i < num_items; ++i) {
    if (items[i].num_pieces == 1 || items[i].piece > 0) continue;
    for (int64_t other = 1; other < items[i].num_pieces; ++other)
      merge(items[i].num_tokens * R, width, piece_of(i), piece_of(i + other));
    finish(task, items[i], width, piece_of(i));
  }
}

}  // namespace

void attention(const AttentionTask& task) {
  switch (task.pool_number) {
    case Number::f32: return run<Number::f32>(task);
    case Number::bf16: return run<Number::bf16>(task);
    case Number::e4m3: return run<Number::e4m3>(task);
    case Number::i8: return run<Number::i8>(task);
    case Number::i4: return;
  }
}

}  // namespace TRTX_LEVEL
}  // namespace trtx
