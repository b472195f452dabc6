// 2^x on vectors, for units that have included a vec_*.h.
#pragma once

namespace hetserve {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

// 2^n * e^t for whole n and |t| <= ln(2) / 2; the series' seventh-order remainder is 2e-9.
inline F scaled_exp(F n, F t) {
  F y = fma(t, all(1.0f / 720), all(1.0f / 120));
  y = fma(y, t, all(1.0f / 24));
  y = fma(y, t, all(1.0f / 6));
  y = fma(y, t, all(0.5f));
  y = fma(y, t, all(1.0f));
  y = fma(y, t, all(1.0f));
  return mul(y, power_of_two(n));
}

// 2^x: relative error below 2e-7 for x in [-126, 127]; 0 for less, infinity for more, NaN for NaN.
inline F exp2(F x) {
  x = min(all(128.0f), max(all(-200.0f), x));
  const F n = nearest(x);
  return scaled_exp(n, mul(sub(x, n), all(kLn2)));
}

// e^x, as exact: n * ln(2) is taken off in two parts, the first of which has zeros enough at its end to be multiplied without rounding.
inline F exp(F x) {
  x = min(all(88.8f), max(all(-138.0f), x));
  const F n = min(all(128.0f), nearest(mul(x, all(kLog2E))));
  const F t = fnma(n, all(1.42860677e-6f), fnma(n, all(0.693145751953125f), x));
  return scaled_exp(n, t);
}

}  // namespace
}  // namespace hetserve
