// RMSNorm and LayerNorm with the residual add: a block for each row and head, what is rounded where as in csrc/ref.
#include "common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

constexpr int kMostThreads = 512;

// x rounded to T and back.
template <class T>
__device__ float rounded(float x) {
  T t;
  narrow(x, &t);
  return widen(t);
}

template <class T, int n>
struct Part {
  T x[n];
};

// n elements at once: 16 bytes where everything is aligned, one otherwise.
template <class T, int n>
__device__ Part<T, n> part(const T* from) {
  if constexpr (n == 1) {
    return {{*from}};
  } else {
    const Vec<T> v = load_vec(from);
    Part<T, n> p;
    for (int i = 0; i < n; ++i) p.x[i] = v.x[i];
    return p;
  }
}

template <class T, int n>
__device__ void put(T* to, const Part<T, n>& p) {
  if constexpr (n == 1) {
    *to = p.x[0];
  } else {
    Vec<T> v;
    for (int i = 0; i < n; ++i) v.x[i] = p.x[i];
    store_vec(to, v);
  }
}

template <class T, int n, bool centred>
__global__ void __launch_bounds__(kMostThreads) norm_kernel(const NormParams p) {
  float* partial = reinterpret_cast<float*>(shared_memory());
  const int64_t row = blockIdx.x, head = blockIdx.y;
  const T* x = static_cast<const T*>(p.x) + row * p.x_row + head * p.x_head;
  T* out = static_cast<T*>(p.out) + row * p.out_row + head * p.out_head;
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  const int64_t first = static_cast<int64_t>(threadIdx.x) * n, stride = static_cast<int64_t>(blockDim.x) * n;

  float sum = 0;  // of squares; with `centred` of the elements
  if (p.residual != nullptr) {
    T* residual = static_cast<T*>(p.residual) + row * p.residual_row + head * p.residual_head;
    for (int64_t d = first; d < p.dim; d += stride) {
      const Part<T, n> a = part<T, n>(x + d), b = part<T, n>(residual + d);
      Part<T, n> total;
      for (int i = 0; i < n; ++i) {
        narrow(widen(a.x[i]) + widen(b.x[i]), &total.x[i]);
        const float t = widen(total.x[i]);
        sum += centred ? t : t * t;
      }
      put(residual + d, total);
    }
    x = residual;  // each thread reads what it has written itself
  } else {
    for (int64_t d = first; d < p.dim; d += stride) {
      const Part<T, n> a = part<T, n>(x + d);
      for (int i = 0; i < n; ++i) sum += centred ? widen(a.x[i]) : widen(a.x[i]) * widen(a.x[i]);
    }
  }
  const float size = static_cast<float>(p.dim);
  float mean = 0, square = block_sum(sum, partial) / size;
  if constexpr (centred) {
    mean = square;
    sum = 0;
    for (int64_t d = first; d < p.dim; d += stride) {
      const Part<T, n> a = part<T, n>(x + d);
      for (int i = 0; i < n; ++i) sum += (widen(a.x[i]) - mean) * (widen(a.x[i]) - mean);
    }
    square = block_sum(sum, partial) / size;
  }
  const float scale = 1.0f / sqrtf(square + p.eps);
  for (int64_t d = first; d < p.dim; d += stride) {
    const Part<T, n> a = part<T, n>(x + d), w = part<T, n>(weight + d);
    Part<T, n> b, y;
    if constexpr (centred) b = part<T, n>(bias + d);
    for (int i = 0; i < n; ++i) {
      const float normal = (widen(a.x[i]) - mean) * scale;
      if constexpr (centred) {
        narrow(normal * widen(w.x[i]) + widen(b.x[i]), &y.x[i]);
      } else {
        narrow(rounded<T>(normal) * widen(w.x[i]), &y.x[i]);
      }
    }
    put(out + d, y);
  }
}

template <class T>
bool vectors_fit(const NormParams& p) {
  const int64_t strides[] = {p.x_row, p.x_head, p.out_row, p.out_head, p.residual == nullptr ? 0 : p.residual_row,
                             p.residual == nullptr ? 0 : p.residual_head, p.dim};
  const bool even = std::all_of(std::begin(strides), std::end(strides), [](int64_t s) { return s % Vec<T>::n == 0; });
  return even && aligned(p.x, 16) && aligned(p.out, 16) && aligned(p.residual, 16) && aligned(p.weight, 16) && aligned(p.bias, 16);
}

template <bool centred>
void norm(const NormParams& p, Stream stream) {
  by_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    const bool wide = vectors_fit<T>(p);
    const int64_t pieces = wide ? p.dim / Vec<T>::n : p.dim;
    const int threads = static_cast<int>(std::clamp<int64_t>((pieces + kWarp - 1) / kWarp * kWarp, kWarp, kMostThreads));
    const dim3 grid(static_cast<unsigned>(p.rows), static_cast<unsigned>(p.heads));
    const auto kernel = wide ? norm_kernel<T, Vec<T>::n, centred> : norm_kernel<T, 1, centred>;
    launch(kernel, grid, threads, threads / kWarp * sizeof(float), stream, p);
  });
}

}  // namespace

void rms_norm(const NormParams& p, Stream stream) { norm<false>(p, stream); }

void layer_norm(const NormParams& p, Stream stream) { norm<true>(p, stream); }

}  // namespace hetserve::cuda
