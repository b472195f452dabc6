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
void attend_one(const AttentionParams& p, const AttentionTask& task, Range range, const T* q, float* acc, float* max, float* sum) {
  const Pages& g = p.pages;
  *max = -INFINITY;
  *sum = 0;
  for (int64_t d = 0; d < g.head_dim; ++d) acc[d] = 0;
  for (int64_t token = range.begin; token < range.end; ++token) {
    const int64_t page = p.page_ids[task.page_begin + token / g.page_tokens];
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

template <class T>
void attend(const AttentionParams& p, const AttentionTask& task, float* scratch) {
  const int64_t dim = p.pages.head_dim;
  for (int64_t i = 0; i < task.n_rows; ++i) {
    for (int64_t h = 0; h < p.group; ++h) {
      const int64_t head = task.head_group * p.group + h;
      const T* q = static_cast<const T*>(p.q) + (task.q_row + i) * p.q_stride + head * dim;
      float* acc = task.partial < 0 ? scratch : p.partials + (task.partial + i * p.group + h) * (dim + 2);
      float max, sum;
      attend_one(p, task, visible(p, task, i), q, acc, &max, &sum);
      if (task.partial < 0) {
        T* out = static_cast<T*>(p.out) + (task.q_row + i) * p.out_stride + head * dim;
        for (int64_t d = 0; d < dim; ++d) from_float(acc[d] / sum, out + d);
      } else {
        acc[dim] = max;
        acc[dim + 1] = sum;
      }
    }
  }
}

template <class T>
void merge(const AttentionParams& p, const AttentionMerge& m) {
  const int64_t dim = p.pages.head_dim;
  for (int64_t i = 0; i < m.n_rows * p.group; ++i) {
    const auto part = [&](int64_t k) { return p.partials + (m.first + k * m.n_rows * p.group + i) * (dim + 2); };
    float max = -INFINITY, sum = 0;
    for (int64_t k = 0; k < m.parts; ++k) max = std::max(max, part(k)[dim]);
    for (int64_t k = 0; k < m.parts; ++k) sum += part(k)[dim + 1] * std::exp(part(k)[dim] - max);
    const int64_t row = m.q_row + i / p.group, head = m.head_group * p.group + i % p.group;
    T* out = static_cast<T*>(p.out) + row * p.out_stride + head * dim;
    for (int64_t d = 0; d < dim; ++d) {
      float total = 0;
      for (int64_t k = 0; k < m.parts; ++k) total += part(k)[d] * std::exp(part(k)[dim] - max);
      from_float(total / sum, out + d);
    }
  }
}

}  // namespace

void attention(const AttentionParams& p, const AttentionTask& task, float* scratch) {
  by_dtype(p.pages.dtype, [&](auto t) { attend<decltype(t)>(p, task, scratch); });
}

void attention_merge(const AttentionParams& p, const AttentionMerge& m) {
  by_dtype(p.pages.dtype, [&](auto t) { merge<decltype(t)>(p, m); });
}

}  // namespace hetserve::ref
