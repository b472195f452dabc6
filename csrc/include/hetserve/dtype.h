// The two element types of activations and KV pages, and their conversions.
// Everything here has internal linkage: these headers are compiled once per ISA, and a shared inline copy could be the wrong one.
#pragma once

#include <cstdint>
#include <cstring>

namespace hetserve {

enum class DType : int32_t { float32, bfloat16 };

struct bf16 {
  uint16_t bits;
};

static inline int64_t dtype_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

static inline float to_float(float x) { return x; }

static inline float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

static inline void from_float(float x, float* to) { *to = x; }

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
static inline void from_float(float x, bf16* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    to->bits = static_cast<uint16_t>((bits >> 16) | 0x0040u);
    return;
  }
  to->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace hetserve
