// Paged attention of one task, one query vector at a time, softmax kept online: the specification of attention.
#include <cmath>

#include "hetserve/ops.h"
#include "ref/typed.h"

namespace hetserve::ref {
namespace {

struct Range {
  int64_t begin, end;  // tokens
};

// Tokens of this task that row i of it sees.
Range visible(const AttentionParams& p, const AttentionTask& task, int64_t i) {
  const int64_t length = task.first_length + i;
  const int64_t oldest = p.window > 0 && length > p.window ? length - p.window : 0;
  return {std::max<int64_t>(task.token_begin, oldest), std::min<int64_t>(task.token_end, length)};
}

// acc[d] = sum of exp(s - max) * v[d] over the tokens of `range`; max = -inf and sum = 0 when there is none.
template <class T>
void attend_one(const AttentionParams& p, const int32_t* page_ids, Range range, const T* q, float* acc, float* max, float* sum) {
  const Pages& g = p.pages;
  *max = -INFINITY;
  *sum = 0;
  for (int64_t d = 0; d < g.head_dim; ++d) acc[d] = 0;
  for (int64_t token = range.begin; token < range.end; ++token) {
    const int64_t page = page_ids[token / g.page_tokens];
    const int64_t offset = token % g.page_tokens;
    const T* k = reinterpret_cast<const T*>(k_page(g, p.layer, page));
    const T* v = reinterpret_cast<const T*>(v_page(g, p.layer, page));
    float dot = 0;
    for (int64_t d = 0; d < g.head_dim; ++d) dot += to_float(q[d]) * to_float(k[k_index(g, offset, d)]);
    const float score = dot * p.scale;
    const float new_max = std::max(*max, score);
    const float keep = std::exp(*max - new_max);  // 0 for the first token: exp(-inf)
    const float weight = std::exp(score - new_max);
    for (int64_t d = 0; d < g.head_dim; ++d) acc[d] = acc[d] * keep + weight * to_float(v[v_index(g, offset, d)]);
    *sum = *sum * keep + weight;
    *max = new_max;
  }
}

// Vector i of a task or merge: its row and its query head. Head groups first, then rows, then the heads of a group.
struct Place {
  int64_t row, head;
};

Place place(const AttentionParams& p, int64_t q_row, int64_t n_rows, const AttentionHead* heads, int64_t i) {
  const int64_t per_head = n_rows * p.group;
  return {q_row + i % per_head / p.group, heads[i / per_head].head_group * p.group + i % p.group};
}

template <class T>
void attend(const AttentionParams& p, const AttentionTask& task, float* scratch) {
  const int64_t dim = p.pages.head_dim, per_head = task.n_rows * p.group;
  const AttentionHead* heads = p.heads + task.first_head;
  for (int64_t i = 0; i < task.n_heads * per_head; ++i) {
    const Place at = place(p, task.q_row, task.n_rows, heads, i);
    const T* q = static_cast<const T*>(p.q) + at.row * p.q_stride + at.head * dim;
    float* acc = task.partial < 0 ? scratch : p.partials + (task.partial + i) * (dim + 2);
    float max, sum;
    attend_one(p, p.page_ids + heads[i / per_head].page_begin, visible(p, task, at.row - task.q_row), q, acc, &max, &sum);
    if (task.partial < 0) {
      T* out = static_cast<T*>(p.out) + at.row * p.out_stride + at.head * dim;
      for (int64_t d = 0; d < dim; ++d) from_float(acc[d] / sum, out + d);
    } else {
      acc[dim] = max;
      acc[dim + 1] = sum;
    }
  }
}

template <class T>
void merge(const AttentionParams& p, const AttentionMerge& m) {
  const int64_t dim = p.pages.head_dim, vectors = m.n_heads * m.n_rows * p.group;
  for (int64_t i = 0; i < vectors; ++i) {
    const auto part = [&](int64_t k) { return p.partials + (m.first + k * vectors + i) * (dim + 2); };
    float max = -INFINITY, sum = 0;
    for (int64_t k = 0; k < m.parts; ++k) max = std::max(max, part(k)[dim]);
    for (int64_t k = 0; k < m.parts; ++k) sum += part(k)[dim + 1] * std::exp(part(k)[dim] - max);
    const Place at = place(p, m.q_row, m.n_rows, p.heads + m.first_head, i);
    T* out = static_cast<T*>(p.out) + at.row * p.out_stride + at.head * dim;
    for (int64_t d = 0; d < dim; ++d) {
      float total = 0;
      for (int64_t k = 0; k < m.parts; ++k) total += part(k)[d] * std::exp(part(k)[dim] - max);
      from_float(total / sum, out + d);
    }
  }
}

}  // namespace

void attention(const AttentionParams& p, const AttentionTask& task, const AttentionTask*, float* scratch) {
  by_dtype(p.pages.dtype, [&](auto t) { attend<decltype(t)>(p, task, scratch); });
}

void attention_merge(const AttentionParams& p, const AttentionMerge& m) {
  by_dtype(p.pages.dtype, [&](auto t) { merge<decltype(t)>(p, m); });
}

}  // namespace hetserve::ref
