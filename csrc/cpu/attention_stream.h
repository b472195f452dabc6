// Attention of few query vectors per head (decode), where reading memory is the limit. All head groups of a sequence are read together.
// Two orders, by how the task's pages lie in memory (AttentionTask::in_order, measured as 0.85 and 0.65 of one core's read bandwidth):
//   one long run (as a controller hands pages out): page by page, head by head, K then V, and nothing fetched ahead. The hardware's prefetcher
//   does better than software could, as long as the order is exactly that of memory: a phase of all K, then all V, halves the speed.
//   scattered pages: four pages of a head side by side, those of the next head fetched meanwhile.
//
// Scores are turned into weights at once, relative to a reference that is changed only when a score outgrows it by 2^kSlack: a running maximum
// without its chain of dependencies. Sums stay far inside float's range.
#pragma once

#include "cpu/attention_common.h"

namespace hetserve {
namespace {

constexpr int kSidePages = kRegisters == 32 ? 8 : 2;  // pages side by side, when they are scattered
constexpr float kSlack = 30.0f;                       // log2 of how much larger than 1 a weight may be
constexpr float kNoReference = -1e30f;                // below any score
constexpr int kStreamRegisters = kRegisters == 32 ? 24 : 12;

// Running state of a task. Vector i is that of head i / per_head.
template <class Dot>
struct Stream {
  int64_t dim;
  int64_t per_head;
  typename Dot::Weight* q;            // [heads, per_head, dim]
  float* acc;                         // [heads, per_head, dim]
  float* sum;                         // [heads, per_head, 16]: sums of weights, lane by lane
  float reference[kStreamVectors];    // in log2
  typename Dot::Weight* weights;      // [rows of a pass, tokens of a unit]
  typename Dot::Kv* tail[2];          // pages of V with their unused tokens zeroed: the first and the last of a range
};

// Pages of one head that are worked on together, and those to fetch meanwhile.
template <int kPages>
struct Unit {
  int64_t first_token;
  const uint8_t* k[kPages];
  const uint8_t* v[kPages];
  const uint8_t* fetch[kPages];  // null: nothing
};

// scores[m, token] = q[m] . k; several chains per score where there are few, so that their latency does not show.
// Not inlined: one copy serves every kBlocks.
template <class Dot, int kRows, int kPages, bool kFetch>
__attribute__((noinline)) void score_unit(const typename Dot::Weight* q, const Unit<kPages>& unit, int64_t dim, F (&scores)[kRows][kPages * kTokenVectors]) {
  constexpr int kWide = kPages * kTokenVectors;
  constexpr int kChains = kRows * kWide <= 2 ? 4 : kRows * kWide <= 4 ? 2 : 1;
  F acc[kChains][kRows][kWide];
  for (auto& chain : acc) {
    for (auto& row : chain) {
      for (F& x : row) x = zero();
    }
  }
  for (int64_t d = 0, at = 0; d < dim; d += kChains * Dot::pair) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c, at += 4 * kTokens) {
      typename Dot::Spread w[kRows];
      for (int m = 0; m < kRows; ++m) w[m] = Dot::spread(q + m * dim + d + c * Dot::pair);
#pragma GCC unroll 8
      for (int v = 0; v < kWide; ++v) {
        const int page = v / kTokenVectors;
        if (kFetch && v % kTokenVectors == 0) __builtin_prefetch(unit.fetch[page] + at, 0, 2);
        const auto x = Dot::load(reinterpret_cast<const typename Dot::Kv*>(unit.k[page] + at + v % kTokenVectors * 4 * kWidth));
#pragma GCC unroll 6
        for (int m = 0; m < kRows; ++m) acc[c][m][v] = Dot::step(acc[c][m][v], w[m], x);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kWide; ++v) {
      scores[m][v] = acc[0][m][v];
      for (int c = 1; c < kChains; ++c) scores[m][v] = add(scores[m][v], acc[c][m][v]);
    }
  }
}

// Makes room for scores that outgrew the reference: older sums shrink.
template <class Dot>
__attribute__((noinline)) void raise_reference(Stream<Dot>& s, int64_t i, const F* scores, int count) {
  F high = scores[0];
  for (int v = 1; v < count; ++v) high = max(high, scores[v]);
  const float raised = largest(high);
  const F shrink = exp2(all(s.reference[i] - raised));
  for (int64_t d = 0; d < s.dim; d += kWidth) store(s.acc + i * s.dim + d, mul(load(s.acc + i * s.dim + d), shrink));
  for (int64_t d = 0; d < kTokens; d += kWidth) store(s.sum + i * kTokens + d, mul(load(s.sum + i * kTokens + d), shrink));
  s.reference[i] = raised;
}

// Weights of vector i's scores (times scale), of the tokens `seen` only.
template <class Dot, int kPages>
inline void weigh_unit(Stream<Dot>& s, int64_t i, F (&scores)[kPages], bool whole, Range seen, float scale, typename Dot::Weight* weights) {
  bool outgrown = false;
  for (int v = 0; v < kPages; ++v) {
    scores[v] = mul(scores[v], all(scale));
    if (!whole) scores[v] = keep(scores[v], seen.begin - v * kWidth, seen.end - v * kWidth, -__builtin_inff());
    outgrown |= any_greater(scores[v], all(s.reference[i] + kSlack));
  }
  if (__builtin_expect(outgrown, 0)) raise_reference(s, i, scores, kPages);
  float* sums = s.sum + i * kTokens;
  for (int v = 0; v < kPages; ++v) {
    const F weight = exp2(sub(scores[v], all(s.reference[i])));
    store(weights + v * kWidth, weight);
    float* sum = sums + v % kTokenVectors * kWidth;
    store(sum, add(load(sum), weight));
  }
}

// acc[m, kBlocks * 16 dims from `first`] += sum over the unit's tokens of weight[m, token] * v[token].
template <class Dot, int kRows, int kBlocks, int kPages, bool kFetch>
inline void add_unit(const typename Dot::Weight* weights, const Unit<kPages>& unit, int64_t first, int64_t dim, float* to) {
  constexpr int kWide = kBlocks * kTokenVectors;
  F acc[kRows][kWide];
  for (int m = 0; m < kRows; ++m) {
    for (int w = 0; w < kWide; ++w) acc[m][w] = load(to + m * dim + first + w * kWidth);
  }
  for (int64_t token = 0, at = 4 * first; token < kTokens; token += Dot::pair, at += 4 * dim) {
#pragma GCC unroll 4
    for (int page = 0; page < kPages; ++page) {
      typename Dot::Spread spread[kRows];
      for (int m = 0; m < kRows; ++m) spread[m] = Dot::spread(weights + (m * kPages + page) * kTokens + token);
#pragma GCC unroll 16
      for (int w = 0; w < kWide; ++w) {
        if (kFetch && w % kTokenVectors == 0) __builtin_prefetch(unit.fetch[page] + 4 * kTokens * (dim / Dot::pair) + at + w * 4 * kWidth, 0, 2);
        const auto x = Dot::load(reinterpret_cast<const typename Dot::Kv*>(unit.v[page] + at + w * 4 * kWidth));
#pragma GCC unroll 6
        for (int m = 0; m < kRows; ++m) acc[m][w] = Dot::step(acc[m][w], spread[m], x);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int w = 0; w < kWide; ++w) store(to + m * dim + first + w * kWidth, acc[m][w]);
  }
}

// kRows vectors of a head, from i on, over one unit.
template <class Dot, int kRows, int kBlocks, int kPages, bool kFetch>
void stream_rows(const AttentionParams& p, const AttentionTask& task, Stream<Dot>& s, int64_t i, const Unit<kPages>& unit, bool whole) {
  F scores[kRows][kPages * kTokenVectors];
  score_unit<Dot, kRows, kPages, kFetch>(s.q + i * s.dim, unit, s.dim, scores);
  for (int m = 0; m < kRows; ++m) {
    const Range seen = whole ? Range{0, 0} : visible(p, task, (i + m) % s.per_head / p.group);
    weigh_unit(s, i + m, scores[m], whole, {seen.begin - unit.first_token, seen.end - unit.first_token}, p.scale * kLog2E,
               s.weights + m * kPages * kTokens);
  }
  for (int64_t d = 0; d < s.dim; d += kBlocks * kTokens) {
    add_unit<Dot, kRows, kBlocks, kPages, kFetch>(s.weights, unit, d, s.dim, s.acc + i * s.dim);
  }
}

// All vectors of a head over one unit. The first pass reads memory and fetches, the others find the pages in the cache.
template <class Dot, int kBlocks, int kPages>
void stream_unit(const AttentionParams& p, const AttentionTask& task, Stream<Dot>& s, int64_t head, const Unit<kPages>& unit, bool whole) {
  constexpr int kFit = kStreamRegisters / kTokenVectors / (kBlocks > kPages ? kBlocks : kPages);
  constexpr int kMost = kFit < 1 ? 1 : kFit > kMaxRows ? kMaxRows : kFit;
  in_passes(s.per_head, kMost, [&](int64_t m, int64_t rows) {
    with_rows<kMost>(rows, [&]<int kRows>() {
      const int64_t i = head * s.per_head + m;
      if (kPages > 1 && m == 0 && unit.fetch[0] != nullptr) {
        stream_rows<Dot, kRows, kBlocks, kPages, (kPages > 1)>(p, task, s, i, unit, whole);
      } else {
        stream_rows<Dot, kRows, kBlocks, kPages, false>(p, task, s, i, unit, whole);
      }
    });
  });
}

inline const int32_t* head_pages(const AttentionParams& p, const AttentionTask& task, int64_t head) {
  return p.page_ids + p.heads[task.first_head + head].page_begin;
}

// Pages that any row of a task sees.
inline Range task_pages(const AttentionParams& p, const AttentionTask& task) {
  return {visible(p, task, 0).begin / kTokens, (visible(p, task, task.n_rows - 1).end + kTokens - 1) / kTokens};
}

// What comes after (page, head): the next head, the next pages, the next task, or nothing.
template <int kPages>
void set_fetch(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, int64_t head, int64_t page, int64_t end, Unit<kPages>& unit) {
  const int32_t* ids = nullptr;
  if (head + 1 < task.n_heads) {
    ids = head_pages(p, task, head + 1) + page;
  } else if (page + kPages < end) {
    ids = head_pages(p, task, 0) + page + kPages;
    end -= kPages;
  } else if (next != nullptr) {
    const Range pages = task_pages(p, *next);
    ids = head_pages(p, *next, 0) + pages.begin;
    end = page + pages.end - pages.begin;
  }
  for (int64_t i = 0; i < kPages; ++i) unit.fetch[i] = ids != nullptr && end > page ? k_page(p.pages, p.layer, ids[lesser(i, end - page - 1)]) : nullptr;
}

// Every head over kPages pages from `page` on.
template <class Dot, int kBlocks, int kPages>
void stream_heads(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, Stream<Dot>& s, int64_t page, int64_t end) {
  const Range range{visible(p, task, 0).begin, visible(p, task, task.n_rows - 1).end};   // seen by any row
  const Range common{visible(p, task, task.n_rows - 1).begin, visible(p, task, 0).end};  // seen by all
  Unit<kPages> unit{};
  unit.first_token = page * kTokens;
  const bool whole = common.begin <= unit.first_token && common.end >= unit.first_token + kPages * kTokens;
  for (int64_t head = 0; head < task.n_heads; ++head) {
    for (int64_t i = 0; i < kPages; ++i) {
      const Range used{range.begin - unit.first_token - i * kTokens, range.end - unit.first_token - i * kTokens};
      unit.k[i] = k_page(p.pages, p.layer, head_pages(p, task, head)[page + i]);
      unit.v[i] = unit.k[i] + half_page_bytes(p.pages);
      if (used.begin > 0 || used.end < kTokens) unit.v[i] = without_unused<Dot>(unit.v[i], s.tail[used.begin <= 0], s.dim, used);
    }
    if (kPages > 1) set_fetch(p, task, next, head, page, end, unit);
    stream_unit<Dot, kBlocks>(p, task, s, head, unit, whole);
  }
}

template <class Dot, int kBlocks>
void stream_pages(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, Stream<Dot>& s) {
  const Range pages = task_pages(p, task);
  int64_t page = pages.begin;
  if (!task.in_order) {
    for (; page + kSidePages <= pages.end; page += kSidePages) stream_heads<Dot, kBlocks, kSidePages>(p, task, next, s, page, pages.end);
  }
  for (; page < pages.end; ++page) stream_heads<Dot, kBlocks, 1>(p, task, next, s, page, pages.end);
}

template <class Dot>
void stream_task(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, float* scratch) {
  static_assert(kStreamVectors * (2 * kMaxDim + kTokens) + kMaxRows * kSidePages * kTokens + 2 * kTokens * kMaxDim <= kAttentionScratchFloats);
  Scratch space{scratch};
  const int64_t per_head = task.n_rows * p.group, vectors = task.n_heads * per_head, dim = p.pages.head_dim;
  Stream<Dot> s;
  s.dim = dim;
  s.per_head = per_head;
  s.q = space.take<typename Dot::Weight>(vectors * dim);
  s.acc = space.take<float>(vectors * dim);
  s.sum = space.take<float>(vectors * kTokens);
  s.weights = space.take<typename Dot::Weight>(kMaxRows * kSidePages * kTokens);
  for (auto& tail : s.tail) tail = space.take<typename Dot::Kv>(kTokens * dim);
  std::memset(s.acc, 0, vectors * dim * sizeof(float));
  std::memset(s.sum, 0, vectors * kTokens * sizeof(float));
  for (int64_t i = 0; i < vectors; ++i) s.reference[i] = kNoReference;
  take_queries<Dot>(p, task, s.q);
  const int64_t blocks = kRegisters == 32 ? dim / kTokens : 0;
  if (blocks == 4) stream_pages<Dot, 4>(p, task, next, s);
  else if (blocks == 5) stream_pages<Dot, 5>(p, task, next, s);
  else if (blocks == 6) stream_pages<Dot, 6>(p, task, next, s);
  else if (blocks == 8) stream_pages<Dot, 8>(p, task, next, s);
  else if (dim % (2 * kTokens) == 0) stream_pages<Dot, 2>(p, task, next, s);
  else stream_pages<Dot, 1>(p, task, next, s);
  for (int64_t i = 0; i < vectors; ++i) {
    F total = load(s.sum + i * kTokens);
    for (int v = 1; v < kTokenVectors; ++v) total = add(total, load(s.sum + i * kTokens + v * kWidth));
    give_result<typename Dot::Kv>(p, task, i, s.acc + i * dim, s.reference[i], sum(total));
  }
}

}  // namespace
}  // namespace hetserve
