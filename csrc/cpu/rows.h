// Norms, rope and silu_mul on vectors of F, for units that have included a vec_*.h. Roundings are those of csrc/ref.
#pragma once

#include "cpu/exp.h"
#include "hetserve/params.h"

namespace hetserve {
namespace {

// x rounded to T and back.
inline F rounded(F x, const float*) { return x; }
inline F rounded(F x, const bf16*) {
  bf16 buffer[kWidth];
  store(buffer, x);
  return load(buffer);
}

inline float inverse_root(float mean_square, float eps) { return 1.0f / __builtin_sqrtf(mean_square + eps); }

// residual += x, rounded to T; what is normalised next. Without a residual that is x.
template <class T>
const T* add_residual(const NormParams& p, int64_t row, int64_t head) {
  const T* x = static_cast<const T*>(p.x) + row * p.x_row + head * p.x_head;
  if (p.residual == nullptr) return x;
  T* residual = static_cast<T*>(p.residual) + row * p.residual_row + head * p.residual_head;
  int64_t d = 0;
  for (; d + kWidth <= p.dim; d += kWidth) store(residual + d, add(load(residual + d), load(x + d)));
  if (d < p.dim) store(residual + d, add(load(residual + d, p.dim - d), load(x + d, p.dim - d)), p.dim - d);
  return residual;
}

// Sum over a row of (x - shift)^2 (or of x, when `squared` is false), in two chains.
template <bool squared, class T>
float row_sum(const T* x, int64_t n, float shift) {
  F a = zero(), b = zero();
  const F s = all(shift);
  const auto term = [&](F acc, F v) {
    if constexpr (!squared) return add(acc, v);
    const F c = sub(v, s);
    return fma(c, c, acc);
  };
  int64_t d = 0;
  for (; d + 2 * kWidth <= n; d += 2 * kWidth) {
    a = term(a, load(x + d));
    b = term(b, load(x + d + kWidth));
  }
  for (; d + kWidth <= n; d += kWidth) a = term(a, load(x + d));
  float total = sum(add(a, b));
  for (; d < n; ++d) {
    const float v = to_float(x[d]);
    total += squared ? (v - shift) * (v - shift) : v;
  }
  return total;
}

template <class T>
void rms_row(const NormParams& p, int64_t row, int64_t head) {
  const T* x = add_residual<T>(p, row, head);
  const T* weight = static_cast<const T*>(p.weight);
  T* out = static_cast<T*>(p.out) + row * p.out_row + head * p.out_head;
  const F scale = all(inverse_root(row_sum<true>(x, p.dim, 0.0f) / static_cast<float>(p.dim), p.eps));
  int64_t d = 0;
  for (; d + kWidth <= p.dim; d += kWidth) store(out + d, mul(rounded(mul(load(x + d), scale), x), load(weight + d)));
  if (d < p.dim) store(out + d, mul(rounded(mul(load(x + d, p.dim - d), scale), x), load(weight + d, p.dim - d)), p.dim - d);
}

template <class T>
void layer_row(const NormParams& p, int64_t row, int64_t head) {
  const T* x = add_residual<T>(p, row, head);
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  T* out = static_cast<T*>(p.out) + row * p.out_row + head * p.out_head;
  const float mean = row_sum<false>(x, p.dim, 0.0f) / static_cast<float>(p.dim);
  const F scale = all(inverse_root(row_sum<true>(x, p.dim, mean) / static_cast<float>(p.dim), p.eps)), m = all(mean);
  int64_t d = 0;
  for (; d + kWidth <= p.dim; d += kWidth) store(out + d, fma(mul(sub(load(x + d), m), scale), load(weight + d), load(bias + d)));
  const int64_t n = p.dim - d;
  if (n > 0) store(out + d, fma(mul(sub(load(x + d, n), m), scale), load(weight + d, n), load(bias + d, n)), n);
}

template <class T>
void turn(T* head, const float* cos_sin, int64_t half) {
  int64_t i = 0;
  for (; i + kWidth <= half; i += kWidth) {
    const F a = load(head + i), b = load(head + i + half), c = load(cos_sin + i), s = load(cos_sin + half + i);
    store(head + i, fnma(b, s, mul(a, c)));
    store(head + i + half, fma(a, s, mul(b, c)));
  }
  const int64_t n = half - i;
  if (n == 0) return;
  const F a = load(head + i, n), b = load(head + i + half, n), c = load(cos_sin + i, n), s = load(cos_sin + half + i, n);
  store(head + i, fnma(b, s, mul(a, c)), n);
  store(head + i + half, fma(a, s, mul(b, c)), n);
}

template <class T>
void rope_rows(const RopeParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* cos_sin = p.cos_sin + static_cast<int64_t>(p.positions[row]) * 2 * p.rot_half;
    for (int64_t h = 0; h < p.q_heads; ++h) turn(static_cast<T*>(p.q) + row * p.q_stride + h * p.head_dim, cos_sin, p.rot_half);
    for (int64_t h = 0; h < p.kv_heads; ++h) turn(static_cast<T*>(p.k) + row * p.k_stride + h * p.head_dim, cos_sin, p.rot_half);
  }
}

// gate / (1 + e^-gate) * up. For gate below -88, e^-gate is infinite: the quotient is 0, as it should.
inline F silu(F gate, F up) { return mul(div(gate, add(all(1.0f), exp(sub(zero(), gate)))), up); }

template <class T>
void silu_rows(const SiluMulParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(p.gate_up) + row * p.gate_up_stride;
    const T* up = gate + p.n;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    int64_t i = 0;
    for (; i + kWidth <= p.n; i += kWidth) store(out + i, silu(load(gate + i), load(up + i)));
    if (i < p.n) store(out + i, silu(load(gate + i, p.n - i), load(up + i, p.n - i)), p.n - i);
  }
}

template <void (*float_row)(const NormParams&, int64_t, int64_t), void (*bf16_row)(const NormParams&, int64_t, int64_t)>
void norm_rows(const NormParams& p, int64_t begin, int64_t end) {
  const auto norm_row = p.dtype == DType::float32 ? float_row : bf16_row;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t head = 0; head < p.heads; ++head) norm_row(p, row, head);
  }
}

void rms_norm(const NormParams& p, int64_t begin, int64_t end) { norm_rows<rms_row<float>, rms_row<bf16>>(p, begin, end); }

void layer_norm(const NormParams& p, int64_t begin, int64_t end) { norm_rows<layer_row<float>, layer_row<bf16>>(p, begin, end); }

void rope(const RopeParams& p, int64_t begin, int64_t end) { (p.dtype == DType::float32 ? rope_rows<float> : rope_rows<bf16>)(p, begin, end); }

void silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) {
  (p.dtype == DType::float32 ? silu_rows<float> : silu_rows<bf16>)(p, begin, end);
}

}  // namespace
}  // namespace hetserve
