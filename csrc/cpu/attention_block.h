// Attention of many query vectors per head (prefill chunks), where arithmetic is the limit. The query vectors of a task go over its tokens
// together, a block of pages at a time: scores of the block, softmax kept online, weighted sum. Lanes are a page's 16 tokens, then 16 dims of a
// token pair, so there are no horizontal additions; up to 24 accumulators stay in registers while keys or values pass by.
#pragma once

#include "cpu/attention_common.h"

namespace hetserve {
namespace {

constexpr int64_t kBlockPages = 8;
constexpr int64_t kBlockTokens = kBlockPages * kTokens;
constexpr int kTile = (kRegisters - 4) / kTokenVectors;  // accumulators that leave room for operands
constexpr int kScorePages = kRegisters == 32 ? 4 : 1;    // pages per pass

// Where a tile's numbers live while it runs.
template <class Dot>
struct Tile {
  using Weight = typename Dot::Weight;
  int64_t vectors;
  int64_t dim;
  Weight* q;                  // [rows, dim], rows = vectors rounded up to Dot::rows; those beyond are zero
  float* acc;                 // [rows, dim]
  float* scores;              // [rows, block tokens]
  Weight* weights;            // [rows, block tokens]
  typename Dot::Kv* tail[2];  // a page of V with its unused tokens zeroed, for the first and the last page of a range
  float max[kBlockVectors];        // of scores * log2(e), so far
  float sum[kBlockVectors];
  float shrink[kBlockVectors];  // what the block at hand multiplies older sums with
};

// A block's pages.
struct Block {
  int64_t pages;
  const uint8_t* k[kBlockPages];
  const uint8_t* v[kBlockPages];
};

// scores[m, token] = q[m] . k[token], over kPages pages.
template <class Dot, int kRows, int kPages>
void score_pages(const typename Dot::Weight* q, const uint8_t* const* pages, int64_t dim, float* scores) {
  F acc[kRows][kPages * kTokenVectors];
  for (auto& row : acc) {
    for (F& x : row) x = zero();
  }
  for (int64_t d = 0, at = 0; d < dim; d += Dot::pair, at += 4 * kTokens) {
    typename Dot::Spread w[kRows];
    for (int m = 0; m < kRows; ++m) w[m] = Dot::spread(q + m * dim + d);
#pragma GCC unroll 8
    for (int v = 0; v < kPages * kTokenVectors; ++v) {
      const auto k = Dot::load(reinterpret_cast<const typename Dot::Kv*>(pages[v / kTokenVectors] + at + v % kTokenVectors * 4 * kWidth));
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) acc[m][v] = Dot::step(acc[m][v], w[m], k);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPages * kTokenVectors; ++v) store(scores + m * kBlockTokens + v * kWidth, acc[m][v]);
  }
}

// acc[m, 16 * kBlocks dims] = shrink[m] * acc + sum over the block's tokens of weight[m, token] * v[token], for dims from `first` on.
template <class Dot, int kRows, int kBlocks>
void sum_pages(const typename Dot::Weight* weights, const Block& block, int64_t first, int64_t dim, const float* shrink, float* to) {
  constexpr int kWide = kBlocks * kTokenVectors;
  F acc[kRows][kWide];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kWide; ++v) acc[m][v] = mul(all(shrink[m]), load(to + m * dim + v * kWidth));
  }
  for (int64_t page = 0; page < block.pages; ++page) {
    const uint8_t* at = block.v[page] + 4 * first;
    for (int64_t token = 0; token < kTokens; token += Dot::pair, at += 4 * dim) {
      typename Dot::Spread w[kRows];
      for (int m = 0; m < kRows; ++m) w[m] = Dot::spread(weights + m * kBlockTokens + page * kTokens + token);
#pragma GCC unroll 16
      for (int v = 0; v < kWide; ++v) {
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

template <class Dot, int kPages>
void score_some(const Tile<Dot>& t, const Block& block, int64_t page) {
  in_passes(t.vectors, kMaxRows, [&](int64_t m, int64_t rows) {
    with_rows<kMaxRows>(rows, [&]<int kRows>() {
      score_pages<Dot, kRows, kPages>(t.q + m * t.dim, block.k + page, t.dim, t.scores + m * kBlockTokens + page * kTokens);
    });
  });
}

template <class Dot>
void score_block(const Tile<Dot>& t, const Block& block) {
  int64_t page = 0;
  for (; page + kScorePages <= block.pages; page += kScorePages) score_some<Dot, kScorePages>(t, block, page);
  for (; page < block.pages; ++page) score_some<Dot, 1>(t, block, page);
}

template <class Dot, int kBlocks>
void sum_dims(const Tile<Dot>& t, const Block& block) {
  constexpr int kRowsHere = kTile / kBlocks < kMaxRows ? kTile / kBlocks : kMaxRows;
  for (int64_t d = 0; d < t.dim; d += kBlocks * kTokens) {
    in_passes(t.vectors, kRowsHere, [&](int64_t m, int64_t rows) {
      with_rows<kRowsHere>(rows, [&]<int kRows>() {
        sum_pages<Dot, kRows, kBlocks>(t.weights + m * kBlockTokens, block, d, t.dim, t.shrink + m, t.acc + m * t.dim + d);
      });
    });
  }
}

// The dims in pieces whose accumulators fit the registers.
template <class Dot>
void sum_block(const Tile<Dot>& t, const Block& block) {
  const int64_t blocks = kRegisters == 32 ? t.dim / kTokens : 1;
  if (blocks % 4 == 0) return sum_dims<Dot, 4>(t, block);
  if (blocks % 5 == 0) return sum_dims<Dot, 5>(t, block);
  if (blocks % 3 == 0) return sum_dims<Dot, 3>(t, block);
  sum_dims<Dot, 1>(t, block);
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

template <class Dot>
Block take_block(const AttentionParams& p, const Tile<Dot>& t, const int32_t* ids, Range range, int64_t page, int64_t end) {
  Block block;
  block.pages = lesser(kBlockPages, end - page);
  for (int64_t i = 0; i < block.pages; ++i) {
    const Range used{range.begin - (page + i) * kTokens, range.end - (page + i) * kTokens};
    block.k[i] = k_page(p.pages, p.layer, ids[page + i]);
    block.v[i] = block.k[i] + half_page_bytes(p.pages);
    if (used.begin > 0) block.v[i] = without_unused<Dot>(block.v[i], t.tail[0], t.dim, used);
    if (used.begin <= 0 && used.end < kTokens) block.v[i] = without_unused<Dot>(block.v[i], t.tail[1], t.dim, used);
  }
  return block;
}

template <class Dot>
void run_blocks(const AttentionParams& p, const AttentionTask& task, Tile<Dot>& t) {
  const int32_t* ids = p.page_ids + p.heads[task.first_head].page_begin;
  const float scale = p.scale * kLog2E;
  const Range range{visible(p, task, 0).begin, visible(p, task, task.n_rows - 1).end};
  const int64_t end = (range.end + kTokens - 1) / kTokens;
  for (int64_t page = range.begin / kTokens; page < end; page += kBlockPages) {
    const Block block = take_block(p, t, ids, range, page, end);
    score_block(t, block);  // of this file, or of the file of Dot
    for (int64_t m = 0; m < t.vectors; ++m) {
      const Range seen = visible(p, task, m / p.group);
      weigh(t.scores + m * kBlockTokens, t.weights + m * kBlockTokens, block.pages * kTokens, {seen.begin - page * kTokens, seen.end - page * kTokens},
            scale, t.max + m, t.sum + m, t.shrink + m);
    }
    sum_block(t, block);
  }
}

// A task of one head.
template <class Dot>
void block_task(const AttentionParams& p, const AttentionTask& task, float* scratch) {
  static_assert(kBlockVectors * 2 * (kMaxDim + kBlockTokens) + 2 * kTokens * kMaxDim <= kAttentionScratchFloats);
  Scratch space{scratch};
  Tile<Dot> t;
  t.vectors = task.n_rows * p.group;
  t.dim = p.pages.head_dim;
  const int64_t rows = (t.vectors + Dot::rows - 1) / Dot::rows * Dot::rows;
  t.q = space.take<typename Dot::Weight>(rows * t.dim);
  t.acc = space.take<float>(rows * t.dim);
  t.scores = space.take<float>(rows * kBlockTokens);
  t.weights = space.take<typename Dot::Weight>(rows * kBlockTokens);
  for (auto& tail : t.tail) tail = space.take<typename Dot::Kv>(kTokens * t.dim);
  std::memset(t.q, 0, rows * t.dim * sizeof(typename Dot::Weight));
  std::memset(t.acc, 0, rows * t.dim * sizeof(float));
  std::memset(t.weights, 0, rows * kBlockTokens * sizeof(typename Dot::Weight));
  for (int64_t i = 0; i < t.vectors; ++i) {
    t.max[i] = -__builtin_inff();
    t.sum[i] = 0;
  }
  take_queries<Dot>(p, task, t.q);
  [[maybe_unused]] const typename Dot::Session session;
  run_blocks(p, task, t);
  for (int64_t i = 0; i < t.vectors; ++i) give_result<typename Dot::Kv>(p, task, i, t.acc + i * t.dim, t.max[i], t.sum[i]);
}

}  // namespace
}  // namespace hetserve
