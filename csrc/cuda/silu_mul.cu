// out = silu(gate) * up, in float32 with one rounding at the end.
#include "common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

__device__ inline float silu(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

template <class T, bool wide>
__global__ void silu_mul_kernel(const SiluMulParams p) {
  constexpr int n = wide ? Vec<T>::n : 1;
  const int64_t row = blockIdx.x;
  for (int64_t item = first_item(); item < p.n / n; item += item_stride()) {
    const int64_t i = item * n;
    const T* gate = static_cast<const T*>(p.gate_up) + row * p.gate_up_stride + i;
    T* out = static_cast<T*>(p.out) + row * p.out_stride + i;
    if constexpr (wide) {
      const Vec<T> g = load_vec(gate), u = load_vec(gate + p.n);
      Vec<T> y;
      for (int e = 0; e < n; ++e) narrow(silu(widen(g.x[e]), widen(u.x[e])), &y.x[e]);
      store_vec(out, y);
    } else {
      narrow(silu(widen(gate[0]), widen(gate[p.n])), out);
    }
  }
}

}  // namespace

void silu_mul(const SiluMulParams& p, Stream stream) {
  by_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int n = Vec<T>::n;
    const bool wide = p.n % n == 0 && p.gate_up_stride % n == 0 && p.out_stride % n == 0 && aligned(p.gate_up, 16) && aligned(p.out, 16);
    launch(wide ? silu_mul_kernel<T, true> : silu_mul_kernel<T, false>, row_grid(p.rows, wide ? p.n / n : p.n), kThreads, 0, stream, p);
  });
}

}  // namespace hetserve::cuda
