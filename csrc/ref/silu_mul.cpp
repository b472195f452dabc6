// out = silu(gate) * up, in float32 with one rounding at the end.
#include <cmath>

#include "hetserve/ops.h"
#include "ref/typed.h"

namespace hetserve::ref {

void silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = static_cast<const T*>(p.gate_up) + row * p.gate_up_stride;
      const T* up = gate + p.n;
      T* out = static_cast<T*>(p.out) + row * p.out_stride;
      for (int64_t i = 0; i < p.n; ++i) {
        const float g = to_float(gate[i]);
        from_float(g / (1.0f + std::exp(-g)) * to_float(up[i]), out + i);
      }
    }
  });
}

}  // namespace hetserve::ref
