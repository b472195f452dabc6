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

template <class T>
__global__ void argmax_kernel(const ArgmaxParams p) {
  Best* found = reinterpret_cast<Best*>(shared_memory());  // [warps]
  const T* x = static_cast<const T*>(p.x) + static_cast<int64_t>(blockIdx.x) * p.x_stride;
  Best best{-INFINITY, INT32_MAX};
  for (int64_t i = threadIdx.x; i < p.n; i += blockDim.x) {
    const float value = widen(x[i]);
    if (better(value, static_cast<int32_t>(i), best)) best = {value, static_cast<int32_t>(i)};
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float value = from_other(best.value, distance);
    const int32_t id = from_other(best.id, distance);
    if (better(value, id, best)) best = {value, id};
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
  constexpr int kRowThreads = 1024;
  by_dtype(p.dtype, [&](auto t) {
    launch(argmax_kernel<decltype(t)>, dim3(static_cast<unsigned>(p.rows)), kRowThreads, kRowThreads / kWarp * sizeof(Best), stream, p);
  });
}

}  // namespace hetserve::cuda
