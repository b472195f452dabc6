// Where a KV page and an element in it lie in memory. A page holds page_tokens tokens of ONE KV head in all layers of a pool.
// Memory order of a pool: [layers][pages][K then V], each half page_tokens * head_dim elements.
#pragma once

#include <cstdint>

#include "hetserve/dtype.h"

namespace hetserve {

// plain:  K, V = [page_tokens][head_dim].
// packed: K = [head_dim / p][page_tokens][p], V = [page_tokens / p][head_dim][p], p = elements in 4 bytes (bf16: 2, float32: 1),
//         so that 16 tokens fill 16 lanes and bf16 pairs are what vdpbf16ps and AMX tiles multiply.
enum class Layout : int32_t { plain, packed };

struct Pages {
  uint8_t* data;  // 64-byte aligned
  int64_t layers;
  int64_t pages;
  int64_t page_tokens;
  int64_t head_dim;
  DType dtype;
  Layout layout;
};

// Bytes of K (or of V) of one page in one layer.
static constexpr int64_t half_page_bytes(const Pages& p) { return p.page_tokens * p.head_dim * dtype_bytes(p.dtype); }

static constexpr uint8_t* k_page(const Pages& p, int64_t layer, int64_t page) {
  return p.data + (layer * p.pages + page) * 2 * half_page_bytes(p);
}

static constexpr uint8_t* v_page(const Pages& p, int64_t layer, int64_t page) { return k_page(p, layer, page) + half_page_bytes(p); }

static constexpr int64_t pack_width(const Pages& p) { return p.layout == Layout::plain ? 1 : 4 / dtype_bytes(p.dtype); }

// Element index of (token, dim) inside the K half of a page.
static constexpr int64_t k_index(const Pages& p, int64_t token, int64_t dim) {
  if (p.layout == Layout::plain) return token * p.head_dim + dim;
  const int64_t w = pack_width(p);
  return (dim / w) * p.page_tokens * w + token * w + dim % w;
}

// Element index of (token, dim) inside the V half of a page.
static constexpr int64_t v_index(const Pages& p, int64_t token, int64_t dim) {
  if (p.layout == Layout::plain) return token * p.head_dim + dim;
  const int64_t w = pack_width(p);
  return (token / w) * p.head_dim * w + dim * w + token % w;
}

}  // namespace hetserve
