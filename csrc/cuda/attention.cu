// Which kernel a step's attention takes, and the merge of the pieces of long sequences.
#include "attention_common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

constexpr int kMergeThreads = 128;

// A block for each merge; a thread for each element of each vector.
template <class T>
__global__ void merge_kernel(const AttentionParams p, const DeviceSplit split) {
  if (static_cast<int>(blockIdx.x) >= split.counts[1]) return;
  const AttentionMerge m = split.merges[blockIdx.x];
  const int group = static_cast<int>(p.group), vectors = m.n_rows * group, head_group = p.heads[m.first_head].head_group;
  const int dim = static_cast<int>(p.pages.head_dim);
  for (int item = static_cast<int>(threadIdx.x); item < vectors * dim; item += kMergeThreads) {
    const int v = item / dim, d = item % dim;
    const auto part = [&](int k) { return p.partials + (static_cast<int64_t>(m.first) + static_cast<int64_t>(k) * vectors + v) * (dim + 2); };
    float most = -INFINITY, sum = 0, x = 0;
    for (int k = 0; k < m.parts; ++k) most = fmaxf(most, part(k)[dim]);
    for (int k = 0; k < m.parts; ++k) {
      const float keep = power_of_two((part(k)[dim] - most) * kLog2E);
      sum += keep * part(k)[dim + 1];
      x += keep * part(k)[d];
    }
    T* out = static_cast<T*>(p.out) + (m.q_row + v / group) * p.out_stride + (static_cast<int64_t>(head_group) * group + v % group) * dim;
    narrow(x / sum, out + d);
  }
}

}  // namespace

void attention(const AttentionParams& p, const DeviceSplit& split, Stream stream) {
  if (has_tensor_kernel(p)) {
    attention_tensor(p, split, stream);
  } else {
    attention_plain(p, split, stream);
  }
  by_dtype(p.pages.dtype, [&](auto t) {
    launch(merge_kernel<decltype(t)>, dim3(static_cast<unsigned>(split.most_merges)), kMergeThreads, 0, stream, p, split);
  });
}

}  // namespace hetserve::cuda
