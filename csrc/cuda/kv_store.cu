// Keys and values of new tokens into their pages.
#include "common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

template <class T, bool wide>
__global__ void kv_store_kernel(const KvStoreParams p) {
  constexpr int n = wide ? Vec<T>::n : 1;
  const Pages& g = p.pages;
  const uint32_t pieces = static_cast<uint32_t>(g.head_dim / n), count = static_cast<uint32_t>(p.kv_heads) * pieces;
  const int64_t row = blockIdx.x;
  for (uint32_t item = first_item(); item < count; item += item_stride()) {
    const int64_t d = item % pieces * n, head = item / pieces;
    const int32_t slot = p.slots[row * p.kv_heads + head];
    if (slot < 0 || slot >= g.pages * g.page_tokens) continue;  // nobody has looked at what is in device memory
    const int32_t page_tokens = static_cast<int32_t>(g.page_tokens);
    const int64_t page = slot / page_tokens, token = slot % page_tokens;
    T* keys = reinterpret_cast<T*>(k_page(g, p.layer, page)) + k_index(g, token, d);
    T* values = reinterpret_cast<T*>(v_page(g, p.layer, page)) + v_index(g, token, d);
    const T* k = static_cast<const T*>(p.k) + row * p.k_stride + head * g.head_dim + d;
    const T* v = static_cast<const T*>(p.v) + row * p.v_stride + head * g.head_dim + d;
    if constexpr (wide) {
      store_vec(keys, load_vec(k));
      store_vec(values, load_vec(v));
    } else {
      *keys = *k;
      *values = *v;
    }
  }
}

}  // namespace

void kv_store(const KvStoreParams& p, Stream stream) {
  by_dtype(p.pages.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int n = Vec<T>::n;
    const bool wide = p.pages.layout == Layout::plain && p.pages.head_dim % n == 0 && p.k_stride % n == 0 && p.v_stride % n == 0 && aligned(p.k, 16) &&
                      aligned(p.v, 16);
    const int64_t elements = p.kv_heads * p.pages.head_dim;
    launch(wide ? kv_store_kernel<T, true> : kv_store_kernel<T, false>, row_grid(p.rows, wide ? elements / n : elements), kThreads, 0, stream, p);
  });
}

}  // namespace hetserve::cuda
