// RMSNorm and LayerNorm in float32 (sums in double, so that their order does not matter), rounded where transformers rounds:
// after the residual add, and RMSNorm's result before its weight.
#include <cmath>

#include "hetserve/ops.h"
#include "ref/typed.h"

namespace hetserve::ref {
namespace {

template <class T>
const T* at(const void* base, int64_t index) {
  return static_cast<const T*>(base) + index;
}

// residual += x, rounded to T; what is normalised next. Without a residual that is x.
template <class T>
const T* add_residual(const NormParams& p, int64_t row, int64_t head) {
  const T* x = at<T>(p.x, row * p.x_row + head * p.x_head);
  if (p.residual == nullptr) return x;
  T* residual = static_cast<T*>(p.residual) + row * p.residual_row + head * p.residual_head;
  for (int64_t d = 0; d < p.dim; ++d) from_float(to_float(residual[d]) + to_float(x[d]), residual + d);
  return residual;
}

template <class T>
void rms_row(const NormParams& p, int64_t row, int64_t head) {
  const T* x = add_residual<T>(p, row, head);
  const T* weight = at<T>(p.weight, 0);
  T* out = static_cast<T*>(p.out) + row * p.out_row + head * p.out_head;
  double squares = 0;
  for (int64_t d = 0; d < p.dim; ++d) squares += static_cast<double>(to_float(x[d])) * to_float(x[d]);
  const float inverse = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(p.dim) + p.eps));
  for (int64_t d = 0; d < p.dim; ++d) from_float(rounded<T>(to_float(x[d]) * inverse) * to_float(weight[d]), out + d);
}

template <class T>
void layer_row(const NormParams& p, int64_t row, int64_t head) {
  const T* x = add_residual<T>(p, row, head);
  const T* weight = at<T>(p.weight, 0);
  const T* bias = at<T>(p.bias, 0);
  T* out = static_cast<T*>(p.out) + row * p.out_row + head * p.out_head;
  double sum = 0, squares = 0;
  for (int64_t d = 0; d < p.dim; ++d) sum += to_float(x[d]);
  const float mean = static_cast<float>(sum / static_cast<double>(p.dim));
  for (int64_t d = 0; d < p.dim; ++d) squares += static_cast<double>(to_float(x[d]) - mean) * (to_float(x[d]) - mean);
  const float inverse = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(p.dim) + p.eps));
  for (int64_t d = 0; d < p.dim; ++d) from_float((to_float(x[d]) - mean) * inverse * to_float(weight[d]) + to_float(bias[d]), out + d);
}

}  // namespace

void rms_norm(const NormParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto t) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < p.heads; ++head) rms_row<decltype(t)>(p, row, head);
    }
  });
}

void layer_norm(const NormParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto t) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < p.heads; ++head) layer_row<decltype(t)>(p, row, head);
    }
  });
}

}  // namespace hetserve::ref
