// What both attention kernels share: tokens a row sees, queries in, results out. For units that have included a vec_*.h.
#pragma once

#include <cstring>

#include "cpu/dot.h"
#include "cpu/exp.h"
#include "hetserve/ops.h"
#include "hetserve/plan_limits.h"

namespace hetserve {
namespace {

constexpr int64_t kTokens = 16;  // of a page
constexpr int64_t kMaxDim = 256;
constexpr int64_t kStreamVectors = kBundleVectors;  // query vectors of a task of several heads, at most
constexpr int64_t kBlockVectors = kTileVectors;     // query vectors of a task of one head, at most
constexpr int kTokenVectors = kTokens / kWidth;     // vectors across a page's tokens, or across 16 dims
constexpr int kMaxRows = kRegisters == 32 ? 6 : 4;  // query vectors per pass over a page

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Packed pages of 16 tokens and head dims that are multiples of 16 are ours, anything else is ref's.
inline bool has_kernel(const AttentionParams& p, const AttentionTask& task) {
  const Pages& g = p.pages;
  return g.layout == Layout::packed && g.page_tokens == kTokens && g.head_dim % kTokens == 0 && g.head_dim <= kMaxDim &&
         task.n_rows * p.group <= kBlockVectors;
}

// Whether arithmetic limits a task, and not reading its pages.
inline bool is_block(const AttentionParams& p, const AttentionTask& task) {
  constexpr int64_t kReadLimited = 8;  // query vectors of a head
  return task.n_heads == 1 && task.n_rows * p.group > kReadLimited;
}

struct Range {
  int64_t begin, end;  // tokens, or pages
};

// Tokens of this task that row i of it sees.
inline Range visible(const AttentionParams& p, const AttentionTask& task, int64_t i) {
  const int64_t length = task.first_length + i;
  const int64_t oldest = p.window > 0 ? greater(length - p.window, 0) : 0;
  return {greater(task.token_begin, oldest), lesser(task.token_end, length)};
}

// Calls f.template operator()<m>() for the number of rows given, 1 to kMost.
template <int kMost, class Call>
inline void with_rows(int64_t rows, Call call) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, call);
  }
  call.template operator()<kMost>();
}

// [0, n) in passes of at most `most`, as even as can be.
template <class Pass>
inline void in_passes(int64_t n, int64_t most, Pass pass) {
  const int64_t passes = (n + most - 1) / most;
  for (int64_t i = 0; i < passes; ++i) pass(n * i / passes, n * (i + 1) / passes - n * i / passes);
}

// Hands out one thread's scratch, in multiples of a cache line.
struct Scratch {
  float* at;

  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(at);
    at += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 16;
    return taken;
  }
};

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

// Where vector i of a task stands in q and out: head groups first, then rows, then the heads of a group.
inline int64_t vector_row(const AttentionParams& p, const AttentionTask& task, int64_t i) { return task.q_row + i % (task.n_rows * p.group) / p.group; }

inline int64_t vector_column(const AttentionParams& p, const AttentionTask& task, int64_t i) {
  return (p.heads[task.first_head + i / (task.n_rows * p.group)].head_group * p.group + i % p.group) * p.pages.head_dim;
}

inline void copy_query(const float* from, float* to, int64_t n) { std::memcpy(to, from, n * sizeof(float)); }
inline void copy_query(const bf16* from, bf16* to, int64_t n) { std::memcpy(to, from, n * sizeof(bf16)); }
inline void copy_query(const bf16* from, float* to, int64_t n) {
  for (int64_t d = 0; d < n; d += kWidth) store(to + d, load(from + d));
}

template <class Dot>
void take_queries(const AttentionParams& p, const AttentionTask& task, typename Dot::Weight* to) {
  const int64_t dim = p.pages.head_dim, vectors = task.n_heads * task.n_rows * p.group;
  for (int64_t i = 0; i < vectors; ++i) {
    const auto* q = static_cast<const typename Dot::Kv*>(p.q) + vector_row(p, task, i) * p.q_stride + vector_column(p, task, i);
    copy_query(q, to + i * dim, dim);
  }
}

// Writes vector i: to out, or as a partial result. acc and sum are relative to 2^reference.
template <class T>
void give_result(const AttentionParams& p, const AttentionTask& task, int64_t i, const float* acc, float reference, float sum) {
  const int64_t dim = p.pages.head_dim;
  if (task.partial < 0) {
    T* out = static_cast<T*>(p.out) + vector_row(p, task, i) * p.out_stride + vector_column(p, task, i);
    const F inverse = all(1.0f / sum);
    for (int64_t d = 0; d < dim; d += kWidth) store(out + d, mul(load(acc + d), inverse));
  } else {
    float* partial = p.partials + (task.partial + i) * (dim + 2);
    std::memcpy(partial, acc, dim * sizeof(float));
    partial[dim] = reference * kLn2;
    partial[dim + 1] = sum;
  }
}

}  // namespace
}  // namespace hetserve
