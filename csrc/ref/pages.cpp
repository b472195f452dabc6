// Pages between pools, and between pages and plain rows, across layouts. Moves bits, never converts numbers; equal layouts are one memcpy a layer.
#include <cstring>

#include "hetserve/ops.h"
#include "ref/typed.h"

namespace hetserve::ref {
namespace {

template <class T>
void convert_page(const Pages& src, const uint8_t* from, const Pages& dst, uint8_t* to) {
  const T* k = reinterpret_cast<const T*>(from);
  const T* v = reinterpret_cast<const T*>(from + half_page_bytes(src));
  T* to_k = reinterpret_cast<T*>(to);
  T* to_v = reinterpret_cast<T*>(to + half_page_bytes(dst));
  for (int64_t token = 0; token < src.page_tokens; ++token) {
    for (int64_t d = 0; d < src.head_dim; ++d) {
      to_k[k_index(dst, token, d)] = k[k_index(src, token, d)];
      to_v[v_index(dst, token, d)] = v[v_index(src, token, d)];
    }
  }
}

// One layer of one page; from and to point at its K half. memmove: a page may be copied onto itself.
void move_page(const Pages& src, const uint8_t* from, const Pages& dst, uint8_t* to) {
  if (src.layout == dst.layout) {
    std::memmove(to, from, 2 * half_page_bytes(src));
  } else {
    by_dtype(src.dtype, [&](auto t) { convert_page<decltype(t)>(src, from, dst, to); });
  }
}

// `pages` as seen by rows: plain pages, one after another.
Pages plain_rows(Pages pages) {
  pages.layout = Layout::plain;
  return pages;
}

uint8_t* rows_page(const PageRowsParams& p, int64_t i, int64_t layer) {
  const int64_t layers = p.last_layer - p.first_layer;
  return static_cast<uint8_t*>(p.rows) + (i * layers + layer - p.first_layer) * 2 * half_page_bytes(p.pages);
}

}  // namespace

void page_copy(const PageCopyParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t layer = p.first_layer; layer < p.last_layer; ++layer) {
      move_page(p.src, k_page(p.src, layer, p.src_pages[i]), p.dst, k_page(p.dst, layer, p.dst_pages[i]));
    }
  }
}

void page_gather(const PageRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t layer = p.first_layer; layer < p.last_layer; ++layer) {
      move_page(p.pages, k_page(p.pages, layer, p.page_ids[i]), plain_rows(p.pages), rows_page(p, i, layer));
    }
  }
}

void page_scatter(const PageRowsParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t layer = p.first_layer; layer < p.last_layer; ++layer) {
      move_page(plain_rows(p.pages), rows_page(p, i, layer), p.pages, k_page(p.pages, layer, p.page_ids[i]));
    }
  }
}

}  // namespace hetserve::ref
