// Rows of k and v into packed pages, for units that have included a vec_*.h. Other layouts are ref's.
// Writes exactly the elements of its tokens: a neighbouring token in the same 4-byte pair may be another thread's.
#pragma once

#include <cstring>

#include "hetserve/ops.h"

namespace hetserve {
namespace {

// Element d of head `from` goes to lane `offset` of K's vector d / pair; in a page of 16 tokens those vectors are 64 bytes each.
inline void store_key(const Pages& g, uint8_t* page, int64_t offset, const void* from) {
  const auto* words = static_cast<const uint8_t*>(from);
  uint8_t* to = page + 4 * offset;
  const int64_t count = g.head_dim * dtype_bytes(g.dtype) / 4;
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * 4 * g.page_tokens, words + 4 * i, 4);
}

inline void store_value(const Pages& g, uint8_t* page, int64_t offset, const float* from) {
  std::memcpy(page + offset * g.head_dim * 4, from, g.head_dim * 4);
}

inline void store_value(const Pages& g, uint8_t* page, int64_t offset, const bf16* from) {
  bf16* pairs = reinterpret_cast<bf16*>(page) + (offset / 2) * g.head_dim * 2;
  for (int64_t d = 0; d < g.head_dim; d += kWidth) store_in_pairs(pairs + 2 * d, from + d, offset % 2);
}

template <class T>
void store_rows(const KvStoreParams& p, int64_t begin, int64_t end) {
  const Pages& g = p.pages;
  for (int64_t row = begin; row < end; ++row) {
    const T* k = static_cast<const T*>(p.k) + row * p.k_stride;
    const T* v = static_cast<const T*>(p.v) + row * p.v_stride;
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      const int64_t slot = p.slots[row * p.kv_heads + head];
      if (slot < 0) continue;
      const int64_t page = slot / g.page_tokens, offset = slot % g.page_tokens;
      store_key(g, k_page(g, p.layer, page), offset, k + head * g.head_dim);
      store_value(g, v_page(g, p.layer, page), offset, v + head * g.head_dim);
    }
  }
}

void kv_store(const KvStoreParams& p, int64_t begin, int64_t end) {
  if (p.pages.layout != Layout::packed || p.pages.head_dim % kWidth != 0) {
    ref::kv_store(p, begin, end);
  } else {
    (p.pages.dtype == DType::float32 ? store_rows<float> : store_rows<bf16>)(p, begin, end);
  }
}

}  // namespace
}  // namespace hetserve
