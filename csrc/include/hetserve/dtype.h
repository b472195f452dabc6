// The element types of activations and KV pages, and their conversions. constexpr, so that device code may call them too.
// Everything here has internal linkage: these headers are compiled once per ISA, and a shared inline copy could be the wrong one.
#pragma once

#include <bit>
#include <cstdint>

namespace hetserve {

// float16 is for devices (csrc/cuda); kernels for the CPU have float32 and bfloat16.
enum class DType : int32_t { float32, bfloat16, float16 };

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

static constexpr int64_t dtype_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

static constexpr float to_float(float x) { return x; }

static constexpr float to_float(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

static constexpr float to_float(f16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);     // infinities and NaNs
  if (rest >= 0x0400u) return std::bit_cast<float>(sign | ((rest << 13) + ((127u - 15u) << 23)));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // below the normal range
  return sign != 0 ? -magnitude : magnitude;
}

static constexpr void from_float(float x, float* to) { *to = x; }

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
static constexpr void from_float(float x, bf16* to) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    to->bits = static_cast<uint16_t>((bits >> 16) | 0x0040u);
    return;
  }
  to->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static constexpr void from_float(float x, f16* to) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // rounds to 2^16 or more
    half = 0x7c00u;
  } else if (rest >= 0x38800000u) {
    half = (rest + 0xfffu + ((rest >> 13) & 1u) - ((127u - 15u) << 23)) >> 13;
  } else {  // below the normal range: adding 0.5 leaves the bits, rounded, at the end of the sum
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace hetserve
