// Which tokens a query vector sees and where its result goes: common to the attention kernels.
#pragma once

#include "attention.h"
#include "common.cuh"
#include "hetserve/device_plan.h"

namespace hetserve::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct Seen {
  int begin, end;  // tokens
};

// What row i of a task sees of its piece.
__device__ inline Seen seen_by(const AttentionParams& p, const AttentionTask& task, int i) {
  const int length = task.first_length + i, window = static_cast<int>(p.window);
  const int oldest = window > 0 && length > window ? length - window : 0;
  return {oldest > task.token_begin ? oldest : task.token_begin, length < task.token_end ? length : task.token_end};
}

// Vector v of a task: row v / group, query head v % group of the head group.
template <class T>
__device__ inline const T* query(const AttentionParams& p, const AttentionTask& task, int head_group, int v) {
  const int group = static_cast<int>(p.group);
  return static_cast<const T*>(p.q) + (task.q_row + v / group) * p.q_stride + (static_cast<int64_t>(head_group) * group + v % group) * p.pages.head_dim;
}
template <class T>
__device__ inline T* result(const AttentionParams& p, const AttentionTask& task, int head_group, int v) {
  const int group = static_cast<int>(p.group);
  return static_cast<T*>(p.out) + (task.q_row + v / group) * p.out_stride + (static_cast<int64_t>(head_group) * group + v % group) * p.pages.head_dim;
}

// Sums of a piece: element d of vector v, in units of 2^max; where the piece is the whole sequence, the result itself.
struct Total {
  float max, sum;
};
template <class T>
__device__ inline void put_sum(const AttentionParams& p, const AttentionTask& task, int head_group, int v, int d, float x, Total total) {
  const int dim = static_cast<int>(p.pages.head_dim);
  if (task.partial < 0) {
    narrow(x / total.sum, result<T>(p, task, head_group, v) + d);
    return;
  }
  float* partial = p.partials + (static_cast<int64_t>(task.partial) + v) * (dim + 2);
  partial[d] = x;
  if (d == 0) {
    partial[dim] = total.max * kLn2;  // -inf stays it
    partial[dim + 1] = total.sum;
  }
}

}  // namespace hetserve::cuda
