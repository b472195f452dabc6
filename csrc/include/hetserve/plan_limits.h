// How large a task csrc/cpu/plan.cpp makes, so that kernels can size what they keep.
#pragma once

#include <cstdint>

namespace hetserve {

constexpr int64_t kTileVectors = 32;    // query vectors (rows * group) of one head that share a pass over its keys, unless one row has more
constexpr int64_t kBundleVectors = 64;  // query vectors of a task of several heads

}  // namespace hetserve
