// Paged attention on packed pages of 16 tokens, for units that have included a vec_*.h and dot.h. Anything else is ref's.
// The query vectors of a task (rows * group) go over its tokens together, a block of pages at a time: scores, softmax kept online, weighted sum.
// Scores and sums have no horizontal additions: a page's 16 tokens, then 16 dims of a token pair, are the lanes.
#pragma once

#include <cstring>

#include "cpu/dot.h"
#include "cpu/exp.h"
#include "hetserve/ops.h"

namespace hetserve {
namespace {

constexpr int64_t kTokens = 16;                // of a page
constexpr int64_t kVectors = 32;               // query vectors of a tile, at most
constexpr int64_t kBlockPages = 8;             // pages of a block, when a tile is full
constexpr int64_t kSmallTile = 8;              // query vectors up to which memory, not arithmetic, is the limit
constexpr int64_t kSmallTileBlockPages = 16;   // a longer block then spreads the softmax's cost
constexpr int64_t kMaxDim = 256;
constexpr int kTokenVectors = kTokens / kWidth;                    // vectors across a page's tokens, or across 16 dims
constexpr int kAhead = 4;                                          // half pages (K or V) fetched ahead
constexpr int kTile = (kRegisters - 4) / kTokenVectors;            // accumulators that leave room for operands
constexpr int kMaxRows = kRegisters == 32 ? 6 : 4;                 // query vectors per pass
constexpr int kScorePages = kRegisters == 32 ? 4 : 1;              // pages per pass
constexpr int64_t kStream = 2 * kSmallTileBlockPages + kAhead;

// Where a tile's numbers live while it runs, in one thread's scratch.
template <class Dot>
struct Tile {
  using Weight = typename Dot::Weight;
  using Kv = typename Dot::Kv;
  int64_t vectors;      // query vectors
  int64_t dim;
  int64_t block_pages;
  Weight* q;            // [vectors, dim]
  float* scores;        // [vectors, block_pages * 16]
  Weight* weights;      // [vectors, block_pages * 16]
  float* acc;           // [vectors, dim]
  Kv* tail[2];          // a page of V with its unused tokens zeroed, for the first and the last page of a range
  float max[kVectors];  // of scores * log2(e), so far
  float sum[kVectors];
  float shrink[kVectors];  // what the block at hand multiplies older sums with
};

template <class Dot>
Tile<Dot> make_tile(float* scratch, int64_t vectors, int64_t dim) {
  Tile<Dot> t;
  t.vectors = vectors;
  t.dim = dim;
  t.block_pages = vectors <= kSmallTile ? kSmallTileBlockPages : kBlockPages;
  const auto take = [&](int64_t floats) {
    float* at = scratch;
    scratch += floats;
    return at;
  };
  t.q = reinterpret_cast<typename Dot::Weight*>(take(vectors * dim));
  t.scores = take(vectors * t.block_pages * kTokens);
  t.weights = reinterpret_cast<typename Dot::Weight*>(take(vectors * t.block_pages * kTokens));
  t.acc = take(vectors * dim);
  for (auto& tail : t.tail) tail = reinterpret_cast<typename Dot::Kv*>(take(kTokens * dim));
  return t;
}
static_assert(kVectors * (2 * kMaxDim + 2 * kBlockPages * kTokens) + 2 * kTokens * kMaxDim <= kAttentionScratchFloats);
static_assert(kSmallTile * (2 * kMaxDim + 2 * kSmallTileBlockPages * kTokens) + 2 * kTokens * kMaxDim <= kAttentionScratchFloats);

// scores[m, token] = q[m] . k[token], over kPages pages. ahead: one half page to fetch for each, read at the same pace.
template <class Dot, int kRows, int kPages, bool kFetch>
void score_pages(const typename Dot::Weight* q, const uint8_t* const* pages, const uint8_t* const* ahead, int64_t dim, float* scores, int64_t stride) {
  F acc[kRows][kPages * kTokenVectors];
  for (auto& row : acc) {
    for (F& x : row) x = zero();
  }
  for (int64_t d = 0, at = 0; d < dim; d += Dot::pair, at += 4 * kTokens) {
    typename Dot::Spread w[kRows];
    for (int m = 0; m < kRows; ++m) w[m] = Dot::spread(q + m * dim + d);
#pragma GCC unroll 8
    for (int j = 0; j < kPages; ++j) {
      if (kFetch) __builtin_prefetch(ahead[j] + at);
#pragma GCC unroll 2
      for (int v = 0; v < kTokenVectors; ++v) {
        const auto k = Dot::load(reinterpret_cast<const typename Dot::Kv*>(pages[j] + at + v * 4 * kWidth));
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) acc[m][j * kTokenVectors + v] = Dot::step(acc[m][j * kTokenVectors + v], w[m], k);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPages * kTokenVectors; ++v) store(scores + m * stride + v * kWidth, acc[m][v]);
  }
}

// acc[m, 16 * kBlocks dims] = shrink[m] * acc + sum over the pages' tokens of weight[m, token] * v[token].
template <class Dot, int kRows, int kBlocks, bool kFetch>
void sum_pages(const typename Dot::Weight* weights, int64_t stride, const uint8_t* const* pages, int64_t n_pages, int64_t dim, const float* shrink, float* to) {
  constexpr int kWide = kBlocks * kTokenVectors;
  F acc[kRows][kWide];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kWide; ++v) acc[m][v] = mul(all(shrink[m]), load(to + m * dim + v * kWidth));
  }
  for (int64_t page = 0; page < n_pages; ++page) {
    const uint8_t* at = pages[page];
    const uint8_t* ahead = pages[page + kAhead];
    for (int64_t token = 0; token < kTokens; token += Dot::pair, at += 4 * dim, ahead += 4 * dim) {
      typename Dot::Spread w[kRows];
      for (int m = 0; m < kRows; ++m) w[m] = Dot::spread(weights + m * stride + page * kTokens + token);
#pragma GCC unroll 16
      for (int v = 0; v < kWide; ++v) {
        if (kFetch && v % kTokenVectors == 0) __builtin_prefetch(ahead + v * 4 * kWidth);
        const auto x = Dot::load(reinterpret_cast<const typename Dot::Kv*>(at + v * 4 * kWidth));
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) acc[m][v] = Dot::step(acc[m][v], w[m], x);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kWide; ++v) store(to + m * dim + v * kWidth, acc[m][v]);
  }
}

// Calls f.template operator()<m>() for the number of rows given, 1 to kMost.
template <int kMost, class Call>
void with_rows(int64_t rows, Call call) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, call);
  }
  call.template operator()<kMost>();
}

// [0, n) in passes of at most `most`, as even as can be.
template <class Pass>
void in_passes(int64_t n, int64_t most, Pass pass) {
  const int64_t passes = (n + most - 1) / most;
  for (int64_t i = 0; i < passes; ++i) pass(n * i / passes, n * (i + 1) / passes - n * i / passes);
}

// stream: the block's K halves, then its V halves, then what comes next; kAhead valid pointers follow every one that is read.
template <class Dot, bool kFetch>
void score_block(const Tile<Dot>& t, const uint8_t* const* stream, int64_t pages) {
  const int64_t stride = t.block_pages * kTokens;
  int64_t page = 0;
  const auto pass = [&]<int kPages>() {
    in_passes(t.vectors, kMaxRows, [&](int64_t m, int64_t rows) {
      with_rows<kMaxRows>(rows, [&]<int kRows>() {
        score_pages<Dot, kRows, kPages, kFetch>(t.q + m * t.dim, stream + page, stream + page + kAhead, t.dim, t.scores + m * stride + page * kTokens,
                                                stride);
      });
    });
  };
  for (; page + kScorePages <= pages; page += kScorePages) pass.template operator()<kScorePages>();
  for (; page < pages; ++page) pass.template operator()<1>();
}

template <class Dot, int kBlocks, bool kFetch>
void sum_dims(const Tile<Dot>& t, const uint8_t* const* stream, int64_t pages, int64_t dim_begin) {
  constexpr int kRowsHere = kTile / kBlocks < kMaxRows ? kTile / kBlocks : kMaxRows;
  const int64_t stride = t.block_pages * kTokens;
  const uint8_t* from[kStream];
  for (int64_t i = 0; i < pages + kAhead; ++i) from[i] = stream[i] + 4 * dim_begin;
  in_passes(t.vectors, kRowsHere, [&](int64_t m, int64_t rows) {
    with_rows<kRowsHere>(rows, [&]<int kRows>() {
      sum_pages<Dot, kRows, kBlocks, kFetch>(t.weights + m * stride, stride, from, pages, t.dim, t.shrink + m, t.acc + m * t.dim + dim_begin);
    });
  });
}

// The dims in pieces whose accumulators fit the registers.
template <class Dot, bool kFetch>
void sum_block(const Tile<Dot>& t, const uint8_t* const* stream, int64_t pages) {
  const int64_t blocks = t.dim / kTokens;
  if constexpr (kRegisters == 32) {
    if (blocks % 4 == 0) {
      for (int64_t b = 0; b < blocks; b += 4) sum_dims<Dot, 4, kFetch>(t, stream, pages, b * kTokens);
      return;
    }
    if (blocks % 5 == 0) {
      for (int64_t b = 0; b < blocks; b += 5) sum_dims<Dot, 5, kFetch>(t, stream, pages, b * kTokens);
      return;
    }
    if (blocks % 3 == 0) {
      for (int64_t b = 0; b < blocks; b += 3) sum_dims<Dot, 3, kFetch>(t, stream, pages, b * kTokens);
      return;
    }
  }
  for (int64_t b = 0; b < blocks; ++b) sum_dims<Dot, 1, kFetch>(t, stream, pages, b * kTokens);
}

struct Range {
  int64_t begin, end;  // tokens
};

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Tokens of this task that row i of it sees.
inline Range visible(const AttentionParams& p, const AttentionTask& task, int64_t i) {
  const int64_t length = task.first_length + i;
  const int64_t oldest = p.window > 0 ? greater(length - p.window, 0) : 0;
  return {greater(task.token_begin, oldest), lesser(task.token_end, length)};
}

// Turns one vector's scores of n tokens into softmax weights relative to its running maximum; tokens outside `seen` (of the block) weigh nothing.
template <class Weight>
void weigh(const float* scores, Weight* weights, int64_t n, Range seen, float scale, float* max, float* sum, float* shrink) {
  if (seen.begin >= seen.end) {
    for (int64_t i = 0; i < n; i += kWidth) store(weights + i, zero());
    *shrink = 1.0f;
    return;
  }
  const bool whole = seen.begin <= 0 && seen.end >= n;
  const auto at = [&](int64_t i) {
    const F x = mul(load(scores + i), all(scale));
    return whole ? x : keep(x, seen.begin - i, seen.end - i, -__builtin_inff());
  };
  F high = all(*max);
  for (int64_t i = 0; i < n; i += kWidth) high = hetserve::max(high, at(i));
  const float new_max = largest(high);
  F total = zero();
  for (int64_t i = 0; i < n; i += kWidth) {
    const F weight = exp2(sub(at(i), all(new_max)));
    store(weights + i, weight);
    total = add(total, weight);
  }
  *shrink = lane0(exp2(all(*max - new_max)));
  *sum = *sum * *shrink + hetserve::sum(total);
  *max = new_max;
}

// V of a page that the range covers in part, its other tokens zeroed: what lies there may be NaN, and 0 * NaN is NaN.
template <class Dot>
const uint8_t* without_unused(const uint8_t* page, typename Dot::Kv* copy, int64_t dim, Range used) {
  std::memcpy(copy, page, kTokens * dim * sizeof(typename Dot::Kv));
  for (int64_t token = 0; token < kTokens; ++token) {
    if (token >= used.begin && token < used.end) continue;
    typename Dot::Kv* at = copy + (token / Dot::pair) * dim * Dot::pair + token % Dot::pair;
    for (int64_t d = 0; d < dim; ++d) at[d * Dot::pair] = {};
  }
  return reinterpret_cast<const uint8_t*>(copy);
}

// Pages [page, page + n) as the order in which a block reads its halves, and the first halves of what follows.
template <class Dot>
void fill_stream(const AttentionParams& p, const AttentionTask& task, const Tile<Dot>& t, Range range, int64_t page, int64_t n, const uint8_t** stream) {
  const Pages& g = p.pages;
  const int32_t* ids = p.page_ids + task.page_begin;
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t* k = k_page(g, p.layer, ids[page + i]);
    const Range used{range.begin - (page + i) * kTokens, range.end - (page + i) * kTokens};
    stream[i] = k;
    stream[n + i] = k + half_page_bytes(g);
    if (used.begin > 0) stream[n + i] = without_unused<Dot>(stream[n + i], t.tail[0], t.dim, used);
    if (used.begin <= 0 && used.end < kTokens) stream[n + i] = without_unused<Dot>(stream[n + i], t.tail[1], t.dim, used);
  }
  const int64_t last = (range.end - 1) / kTokens;
  for (int64_t i = 0; i < kAhead; ++i) stream[2 * n + i] = k_page(g, p.layer, ids[lesser(page + n + i, last)]);
}

template <class Dot>
void run_tile(const AttentionParams& p, const AttentionTask& task, int64_t first_vector, Tile<Dot>& t) {
  const int64_t first_row = first_vector / p.group, last_row = (first_vector + t.vectors - 1) / p.group;
  const Range range{visible(p, task, first_row).begin, visible(p, task, last_row).end};
  for (int64_t m = 0; m < t.vectors; ++m) {
    t.max[m] = -__builtin_inff();
    t.sum[m] = 0;
  }
  std::memset(t.acc, 0, t.vectors * t.dim * sizeof(float));
  const float scale = p.scale * kLog2E;
  const uint8_t* stream[kStream];
  const int64_t pages_end = (range.end + kTokens - 1) / kTokens;
  for (int64_t page = range.begin / kTokens; page < pages_end; page += t.block_pages) {
    const int64_t n = lesser(t.block_pages, pages_end - page), token = page * kTokens;
    fill_stream(p, task, t, range, page, n, stream);
    const bool fetch = t.vectors <= kMaxRows;
    fetch ? score_block<Dot, true>(t, stream, n) : score_block<Dot, false>(t, stream, n);
    for (int64_t m = 0; m < t.vectors; ++m) {
      const Range seen = visible(p, task, (first_vector + m) / p.group);
      const int64_t at = m * t.block_pages * kTokens;
      weigh(t.scores + at, t.weights + at, n * kTokens, {seen.begin - token, seen.end - token}, scale, t.max + m, t.sum + m, t.shrink + m);
    }
    fetch ? sum_block<Dot, true>(t, stream + n, n) : sum_block<Dot, false>(t, stream + n, n);
  }
}

inline void copy_query(const float* from, float* to, int64_t n) { std::memcpy(to, from, n * sizeof(float)); }
inline void copy_query(const bf16* from, bf16* to, int64_t n) { std::memcpy(to, from, n * sizeof(bf16)); }
inline void copy_query(const bf16* from, float* to, int64_t n) {
  for (int64_t d = 0; d < n; d += kWidth) store(to + d, load(from + d));
}

template <class Dot>
void run_task(const AttentionParams& p, const AttentionTask& task, float* scratch) {
  using T = typename Dot::Kv;
  const int64_t dim = p.pages.head_dim, vectors = task.n_rows * p.group;
  for (int64_t first = 0; first < vectors; first += kVectors) {
    Tile<Dot> t = make_tile<Dot>(scratch, lesser(kVectors, vectors - first), dim);
    const auto column = [&](int64_t m) { return (task.head_group * p.group + (first + m) % p.group) * dim; };
    const auto row = [&](int64_t m) { return task.q_row + (first + m) / p.group; };
    for (int64_t m = 0; m < t.vectors; ++m) copy_query(static_cast<const T*>(p.q) + row(m) * p.q_stride + column(m), t.q + m * dim, dim);
    run_tile(p, task, first, t);
    for (int64_t m = 0; m < t.vectors; ++m) {
      const float* acc = t.acc + m * dim;
      if (task.partial < 0) {
        T* out = static_cast<T*>(p.out) + row(m) * p.out_stride + column(m);
        const F inverse = all(1.0f / t.sum[m]);
        for (int64_t d = 0; d < dim; d += kWidth) store(out + d, mul(load(acc + d), inverse));
      } else {
        float* partial = p.partials + (task.partial + first + m) * (dim + 2);
        std::memcpy(partial, acc, dim * sizeof(float));
        partial[dim] = t.max[m] * kLn2;
        partial[dim + 1] = t.sum[m];
      }
    }
  }
}

void attention(const AttentionParams& p, const AttentionTask& task, float* scratch) {
  const Pages& g = p.pages;
  if (g.layout != Layout::packed || g.page_tokens != kTokens || g.head_dim % kTokens != 0 || g.head_dim > kMaxDim) {
    ref::attention(p, task, scratch);
  } else {
    (g.dtype == DType::float32 ? run_task<DotFloat> : run_task<DotBf16>)(p, task, scratch);
  }
}

}  // namespace
}  // namespace hetserve
