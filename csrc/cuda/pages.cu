// Whole pages: between two pools, and to and from rows. A block for each page and layer, whose keys and values lie side by side; a thread moves
// 16 bytes at a time where both sides have the same order, an element otherwise.
#include "common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

constexpr int kUnroll = 4;  // 16-byte loads in flight in a thread

// `pieces` of 16 bytes, the whole block together.
__device__ void copy_pieces(uint8_t* to, const uint8_t* from, uint32_t pieces) {
  const uint4* source = reinterpret_cast<const uint4*>(from);
  uint4* target = reinterpret_cast<uint4*>(to);
  for (uint32_t first = threadIdx.x; first < pieces; first += kUnroll * blockDim.x) {
    uint4 held[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (first + i * blockDim.x < pieces) held[i] = source[first + i * blockDim.x];
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (first + i * blockDim.x < pieces) target[first + i * blockDim.x] = held[i];
    }
  }
}

// Keys, then values, of one page of one layer, each element to its place in the other order.
template <class T>
__device__ void copy_elements(const Pages& target, T* to, const Pages& source, const T* from) {
  const uint32_t dims = static_cast<uint32_t>(source.head_dim), half = static_cast<uint32_t>(source.page_tokens) * dims;
  for (uint32_t item = threadIdx.x; item < half; item += blockDim.x) {
    const int64_t token = item / dims, dim = item % dims;
    to[k_index(target, token, dim)] = from[k_index(source, token, dim)];
    to[half + v_index(target, token, dim)] = from[half + v_index(source, token, dim)];
  }
}

// `pages` as rows see them: plain, one after another.
__device__ inline Pages plain_rows(Pages pages) {
  pages.layout = Layout::plain;
  return pages;
}

template <class T, bool same_order>
__device__ void copy_page(const Pages& target, uint8_t* to, const Pages& source, const uint8_t* from) {
  if constexpr (same_order) {
    copy_pieces(to, from, static_cast<uint32_t>(2 * half_page_bytes(source) / 16));
  } else {
    copy_elements(target, reinterpret_cast<T*>(to), source, reinterpret_cast<const T*>(from));
  }
}

template <class T, bool same_order>
__global__ void copy_kernel(const PageCopyParams p) {
  const int64_t i = blockIdx.x, layer = p.first_layer + blockIdx.y;
  copy_page<T, same_order>(p.dst, k_page(p.dst, layer, p.dst_pages[i]), p.src, k_page(p.src, layer, p.src_pages[i]));
}

template <class T, bool same_order, bool to_rows>
__global__ void rows_kernel(const PageRowsParams p) {
  const int64_t i = blockIdx.x, layer = blockIdx.y, layers = p.last_layer - p.first_layer;
  uint8_t* page = k_page(p.pages, p.first_layer + layer, p.page_ids[i]);
  uint8_t* row = static_cast<uint8_t*>(p.rows) + (i * layers + layer) * 2 * half_page_bytes(p.pages);
  if constexpr (to_rows) {
    copy_page<T, same_order>(plain_rows(p.pages), row, p.pages, page);
  } else {
    copy_page<T, same_order>(p.pages, page, plain_rows(p.pages), row);
  }
}

dim3 page_grid(int64_t pages, int64_t layers) { return dim3(static_cast<unsigned>(pages), static_cast<unsigned>(layers)); }

template <bool to_rows>
void move_rows(const PageRowsParams& p, Stream stream) {
  const bool same = p.pages.layout == Layout::plain && aligned(p.rows, 16);
  by_dtype(p.pages.dtype, [&](auto t) {
    using T = decltype(t);
    const auto kernel = same ? rows_kernel<T, true, to_rows> : rows_kernel<T, false, to_rows>;
    launch(kernel, page_grid(p.n, p.last_layer - p.first_layer), kThreads, 0, stream, p);
  });
}

}  // namespace

void page_copy(const PageCopyParams& p, Stream stream) {
  by_dtype(p.src.dtype, [&](auto t) {
    using T = decltype(t);
    const auto kernel = p.src.layout == p.dst.layout ? copy_kernel<T, true> : copy_kernel<T, false>;
    launch(kernel, page_grid(p.n, p.last_layer - p.first_layer), kThreads, 0, stream, p);
  });
}

void page_gather(const PageRowsParams& p, Stream stream) { move_rows<true>(p, stream); }

void page_scatter(const PageRowsParams& p, Stream stream) { move_rows<false>(p, stream); }

}  // namespace hetserve::cuda
