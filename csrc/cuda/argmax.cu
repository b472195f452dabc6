// The likeliest token of each row, the lowest id of several: a block for each row.
#include "common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

struct Best {
  float value;
  int32_t id;
};

// A NaN counts as the largest of all, as in numpy.
__device__ inline bool better(float a, int32_t a_id, const Best& b) {
  const bool a_nan = a != a, b_nan = b.value != b.value;
  if (a_nan || b_nan) return a_nan && (!b_nan || a_id < b.id);
  return a > b.value || (a == b.value && a_id < b.id);
}

// wide: 16 bytes at a time.
template <class T, bool wide>
__global__ void argmax_kernel(const ArgmaxParams p) {
  constexpr int n = wide ? Vec<T>::n : 1;
  Best* found = reinterpret_cast<Best*>(shared_memory());  // [warps]
  const T* x = static_cast<const T*>(p.x) + static_cast<int64_t>(blockIdx.x) * p.x_stride;
  Best best{-INFINITY, INT32_MAX};
  const auto look = [&best](float value, int32_t id) {
    if (better(value, id, best)) best = {value, id};
  };
  const int32_t pieces = static_cast<int32_t>(p.n / n), step = static_cast<int32_t>(blockDim.x);
#pragma unroll 4
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < pieces; i += step) {
    if constexpr (wide) {
      const Vec<T> v = load_vec(x + static_cast<int64_t>(i) * n);
#pragma unroll
      for (int e = 0; e < n; ++e) look(widen(v.x[e]), i * n + e);
    } else {
      look(widen(x[i]), i);
    }
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float value = from_other(best.value, distance);
    const int32_t id = from_other(best.id, distance);
    look(value, id);
  }
  if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = best;
  sync_block();
  if (threadIdx.x == 0) {
    for (int i = 1; i < static_cast<int>(blockDim.x) / kWarp; ++i) {
      if (better(found[i].value, found[i].id, best)) best = found[i];
    }
    p.out[blockIdx.x] = best.id;
  }
}

}  // namespace

void argmax(const ArgmaxParams& p, Stream stream) {
  constexpr int64_t kRowThreads = 1024;
  by_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int n = Vec<T>::n;
    const bool wide = p.n % n == 0 && p.x_stride % n == 0 && aligned(p.x, 16);
    const int threads = static_cast<int>(std::min(kRowThreads, ((wide ? p.n / n : p.n) + kWarp - 1) / kWarp * kWarp));
    launch(wide ? argmax_kernel<T, true> : argmax_kernel<T, false>, dim3(static_cast<unsigned>(p.rows)), threads, threads / kWarp * sizeof(Best), stream, p);
  });
}

}  // namespace hetserve::cuda
