// Rotary position embedding in place, rotate-half, in float32 with one rounding at the end.
#include "hetserve/ops.h"
#include "ref/typed.h"

namespace hetserve::ref {
namespace {

template <class T>
void turn(T* head, const float* cos_sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(head[i]), b = to_float(head[i + half]);
    const float c = cos_sin[i], s = cos_sin[half + i];
    from_float(a * c - b * s, head + i);
    from_float(b * c + a * s, head + i + half);
  }
}

}  // namespace

void rope(const RopeParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    for (int64_t row = begin; row < end; ++row) {
      const float* cos_sin = p.cos_sin + p.positions[row] * 2 * p.rot_half;
      for (int64_t h = 0; h < p.q_heads; ++h) turn(static_cast<T*>(p.q) + row * p.q_stride + h * p.head_dim, cos_sin, p.rot_half);
      for (int64_t h = 0; h < p.kv_heads; ++h) turn(static_cast<T*>(p.k) + row * p.k_stride + h * p.head_dim, cos_sin, p.rot_half);
    }
  });
}

}  // namespace hetserve::ref
