// Rotary embedding in place: a thread for each pair that is turned.
#include "common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

template <class T>
__global__ void rope_kernel(const RopeParams p) {
  const uint32_t half = static_cast<uint32_t>(p.rot_half), count = static_cast<uint32_t>(p.q_heads + p.kv_heads) * half;
  const int64_t row = blockIdx.x;
  const float* cos_sin = p.cos_sin + static_cast<int64_t>(p.positions[row]) * 2 * p.rot_half;
  for (uint32_t item = first_item(); item < count; item += item_stride()) {
    const int64_t i = item % half, head = item / half;
    T* x = head < p.q_heads ? static_cast<T*>(p.q) + row * p.q_stride + head * p.head_dim
                            : static_cast<T*>(p.k) + row * p.k_stride + (head - p.q_heads) * p.head_dim;
    const float c = cos_sin[i], s = cos_sin[p.rot_half + i], a = widen(x[i]), b = widen(x[i + p.rot_half]);
    narrow(a * c - b * s, x + i);
    narrow(b * c + a * s, x + i + p.rot_half);
  }
}

}  // namespace

void rope(const RopeParams& p, Stream stream) {
  by_dtype(p.dtype, [&](auto t) {
    launch(rope_kernel<decltype(t)>, row_grid(p.rows, (p.q_heads + p.kv_heads) * p.rot_half), kThreads, 0, stream, p);
  });
}

}  // namespace hetserve::cuda
