// out = x W^T + bias, summed in float32 with one rounding at the end.
#include <algorithm>

#include "hetserve/ops.h"

namespace hetserve::ref {

void linear(const LinearParams& p, int64_t begin, int64_t end) {
  for (int64_t column = begin * kLinearColumns; column < end * kLinearColumns; ++column) {
    const bf16* weight = p.weight + column / kLinearColumns * kLinearColumns * p.inputs + column % kLinearColumns * 2;
    for (int64_t row = 0; row < p.rows; ++row) {
      float sum = p.bias == nullptr ? 0.0f : to_float(p.bias[column]);
      for (int64_t i = 0; i < p.inputs; ++i) sum += to_float(p.x[row * p.x_stride + i]) * to_float(weight[i / 2 * 2 * kLinearColumns + i % 2]);
      from_float(p.relu ? std::max(sum, 0.0f) : sum, p.out + row * p.out_stride + column);
    }
  }
}

}  // namespace hetserve::ref
