// Paged attention without tensor cores or asynchronous copies, for older chips, float32 and any layout: a few lanes hold a token, eight elements each,
// and every such group keeps sums of its own for a few query vectors at a time, which are put together at the end.
#include "attention_common.cuh"

namespace hetserve::cuda {
namespace {

constexpr int kBlockThreads = kAttentionWarps * kWarp;
constexpr int kPiece = 8;    // elements of a lane
constexpr int kVectors = 4;  // at a time

struct Eight {
  float x[kPiece];
};

// Elements [d, d + 8) of a token.
template <class T, bool plain, bool keys>
__device__ Eight eight(const AttentionParams& p, int64_t page, int64_t token, int d) {
  const T* half = reinterpret_cast<const T*>(keys ? k_page(p.pages, p.layer, page) : v_page(p.pages, p.layer, page));
  Eight found;
  if constexpr (plain) {
    constexpr int n = Vec<T>::n;
    const T* from = half + token * p.pages.head_dim + d;
#pragma unroll
    for (int i = 0; i < kPiece / n; ++i) {
      const Vec<T> v = load_vec(from + i * n);
#pragma unroll
      for (int e = 0; e < n; ++e) found.x[i * n + e] = widen(v.x[e]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) found.x[i] = widen(half[keys ? k_index(p.pages, token, d + i) : v_index(p.pages, token, d + i)]);
  }
  return found;
}

// What one group of lanes has summed up for one vector; this lane's eight elements.
struct Sums {
  float x[kPiece];
  float max, sum;
};

template <int lanes>
__device__ inline float group_sum(float x) {
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) x += from_other(x, distance);
  return x;
}

__device__ inline void add_token(Sums& sums, float score, const Eight& value) {
  const float most = fmaxf(sums.max, score), base = most == -INFINITY ? 0.0f : most;
  const float keep = power_of_two(sums.max - base), weight = power_of_two(score - base);
  sums.max = most;
  sums.sum = sums.sum * keep + weight;
#pragma unroll
  for (int i = 0; i < kPiece; ++i) sums.x[i] = sums.x[i] * keep + weight * value.x[i];
}

template <class T, int lanes, bool plain>
__global__ void __launch_bounds__(kBlockThreads) plain_kernel(const AttentionParams p, const DeviceSplit split) {
  if (static_cast<int>(blockIdx.x) >= split.counts[0]) return;
  constexpr int kGroups = kBlockThreads / lanes;
  const AttentionTask task = split.tasks[blockIdx.x];
  const AttentionHead head = p.heads[task.first_head];
  const int32_t* page_ids = p.page_ids + head.page_begin;
  const int dim = static_cast<int>(p.pages.head_dim), page_tokens = static_cast<int>(p.pages.page_tokens);
  const int vectors = task.n_rows * static_cast<int>(p.group), group = static_cast<int>(threadIdx.x) / lanes, d = static_cast<int>(threadIdx.x) % lanes * kPiece;
  float* shared = reinterpret_cast<float*>(shared_memory());  // [kGroups][kVectors][dim + 2]
  const float scale = p.scale * kLog2E;
  const bool holds = d < dim;

  for (int first = 0; first < vectors; first += kVectors) {
    const int count = vectors - first < kVectors ? vectors - first : kVectors;
    Eight q[kVectors];
    Sums sums[kVectors];
    Seen seen[kVectors];
    int begin = INT32_MAX, end = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      seen[i] = i < count ? seen_by(p, task, (first + i) / static_cast<int>(p.group)) : Seen{0, 0};
      if (i < count && seen[i].begin < begin) begin = seen[i].begin;
      if (seen[i].end > end) end = seen[i].end;
      sums[i].max = -INFINITY;
      sums[i].sum = 0;
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        sums[i].x[e] = 0;
        q[i].x[e] = i < count && holds ? widen(query<T>(p, task, head.head_group, first + i)[d + e]) : 0.0f;
      }
    }
    for (int base = begin; base < end; base += kGroups) {  // the same in all lanes of a warp: they add up together
      const int token = base + group;
      const bool valid = token < end;
      const int64_t page = valid ? page_ids[token / page_tokens] : 0, offset = token % page_tokens;
      const Eight none{};
      const Eight k = valid && holds ? eight<T, plain, true>(p, page, offset, d) : none;
      const Eight v = valid && holds ? eight<T, plain, false>(p, page, offset, d) : none;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float dot = 0;
#pragma unroll
        for (int e = 0; e < kPiece; ++e) dot += q[i].x[e] * k.x[e];
        dot = group_sum<lanes>(dot);
        add_token(sums[i], token >= seen[i].begin && token < seen[i].end ? dot * scale : -INFINITY, v);
      }
    }
    sync_block();  // whoever still reads the vectors before
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float* to = shared + (group * kVectors + i) * (dim + 2);
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        if (holds) to[d + e] = sums[i].x[e];
      }
      if (d == 0) {
        to[dim] = sums[i].max;
        to[dim + 1] = sums[i].sum;
      }
    }
    sync_block();
    for (int item = static_cast<int>(threadIdx.x); item < count * dim; item += kBlockThreads) {
      const int i = item / dim, at = item % dim;
      const auto part = [&](int g) { return shared + (g * kVectors + i) * (dim + 2); };
      Total total{-INFINITY, 0};
      for (int g = 0; g < kGroups; ++g) total.max = fmaxf(total.max, part(g)[dim]);
      const float base = total.max == -INFINITY ? 0.0f : total.max;
      float x = 0;
      for (int g = 0; g < kGroups; ++g) {
        const float keep = power_of_two(part(g)[dim] - base);
        total.sum += keep * part(g)[dim + 1];
        x += keep * part(g)[at];
      }
      put_sum<T>(p, task, head.head_group, first + i, at, x, total);
    }
  }
}

template <class T, int lanes>
void run(const AttentionParams& p, const DeviceSplit& split, Stream stream) {
  const auto kernel = p.pages.layout == Layout::plain ? plain_kernel<T, lanes, true> : plain_kernel<T, lanes, false>;
  const size_t shared = static_cast<size_t>(kBlockThreads / lanes) * kVectors * static_cast<size_t>(p.pages.head_dim + 2) * sizeof(float);
  launch(kernel, dim3(static_cast<unsigned>(split.most_tasks)), kBlockThreads, shared, stream, p, split);
}

}  // namespace

void attention_plain(const AttentionParams& p, const DeviceSplit& split, Stream stream) {
  by_dtype(p.pages.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t lanes = (p.pages.head_dim + kPiece - 1) / kPiece;
    if (lanes <= 8) {
      run<T, 8>(p, split, stream);
    } else if (lanes <= 16) {
      run<T, 16>(p, split, stream);
    } else {
      run<T, 32>(p, split, stream);
    }
  });
}

}  // namespace hetserve::cuda
