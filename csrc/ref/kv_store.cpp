// Rows of k and v into page slots, one element at a time. A slot of -1 stores nothing.
#include "hetserve/ops.h"
#include "ref/typed.h"

namespace hetserve::ref {
namespace {

template <class T>
void store(const KvStoreParams& p, int64_t row, int64_t head) {
  const Pages& g = p.pages;
  const int64_t slot = p.slots[row * p.kv_heads + head];
  if (slot < 0) return;
  const int64_t page = slot / g.page_tokens, offset = slot % g.page_tokens;
  const T* k = static_cast<const T*>(p.k) + row * p.k_stride + head * g.head_dim;
  const T* v = static_cast<const T*>(p.v) + row * p.v_stride + head * g.head_dim;
  T* to_k = reinterpret_cast<T*>(k_page(g, p.layer, page));
  T* to_v = reinterpret_cast<T*>(v_page(g, p.layer, page));
  for (int64_t d = 0; d < g.head_dim; ++d) {
    to_k[k_index(g, offset, d)] = k[d];
    to_v[v_index(g, offset, d)] = v[d];
  }
}

}  // namespace

void kv_store(const KvStoreParams& p, int64_t begin, int64_t end) {
  by_dtype(p.pages.dtype, [&](auto t) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < p.kv_heads; ++head) store<decltype(t)>(p, row, head);
    }
  });
}

}  // namespace hetserve::ref
