// The kernels among which attention.cu chooses.
#pragma once

#include "hetserve/device_ops.h"

namespace hetserve::cuda {

constexpr int kAttentionWarps = 4;

// Whether attention_tensor can do it: 16-bit elements, plain pages, head sizes 64, 80, 96 and 128, 16-byte rows, and a chip of 8.0 or newer.
bool has_tensor_kernel(const AttentionParams& p);
void attention_tensor(const AttentionParams& p, const DeviceSplit& split, Stream stream);

// Any element type, layout and head size up to 256, on any chip.
void attention_plain(const AttentionParams& p, const DeviceSplit& split, Stream stream);

}  // namespace hetserve::cuda
