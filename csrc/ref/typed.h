// by_dtype(dtype, f) calls f with a value of the element type: the one place where a DType becomes a C++ type in ref.
#pragma once

#include <algorithm>

#include "hetserve/dtype.h"

namespace hetserve::ref {

template <class F>
void by_dtype(DType dtype, F f) {
  if (dtype == DType::float32) {
    f(float{});
  } else {
    f(bf16{});
  }
}

// x rounded to T and back: what a tensor of T would hold.
template <class T>
float rounded(float x) {
  T t;
  from_float(x, &t);
  return to_float(t);
}

}  // namespace hetserve::ref
