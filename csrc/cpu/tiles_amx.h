// Tiles of a CPU with AMX, for units compiled with -mamx-tile -mamx-bf16. Sums are tiles 0 to 3, left operands 4 and 5, right operands 6 and 7.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace hetserve {
namespace {

struct AmxTiles {
  struct alignas(64) Config {  // the operand of ldtilecfg
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };

  static void configure(int64_t depth) {
    Config config;
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = static_cast<uint8_t>(tile < 6 ? 16 : depth);
      config.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? 4 * depth : 64);
    }
    // g++'s tile intrinsics do not say that they read memory: whatever was stored for them, the configuration included, must be there now.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }

  static void release() { _tile_release(); }

  // The intrinsics want literal tile numbers.
  template <int m, int n>
  static void zero() {
    if constexpr (2 * m + n == 0) _tile_zero(0);
    if constexpr (2 * m + n == 1) _tile_zero(1);
    if constexpr (2 * m + n == 2) _tile_zero(2);
    if constexpr (2 * m + n == 3) _tile_zero(3);
  }

  template <int m, int n>
  static void load_sum(const float* from, int64_t stride) {
    if constexpr (2 * m + n == 0) _tile_loadd(0, from, stride);
    if constexpr (2 * m + n == 1) _tile_loadd(1, from, stride);
    if constexpr (2 * m + n == 2) _tile_loadd(2, from, stride);
    if constexpr (2 * m + n == 3) _tile_loadd(3, from, stride);
  }

  template <int m, int n>
  static void store_sum(float* to, int64_t stride) {
    if constexpr (2 * m + n == 0) _tile_stored(0, to, stride);
    if constexpr (2 * m + n == 1) _tile_stored(1, to, stride);
    if constexpr (2 * m + n == 2) _tile_stored(2, to, stride);
    if constexpr (2 * m + n == 3) _tile_stored(3, to, stride);
  }

  template <int m>
  static void load_left(const void* from, int64_t stride) {
    if constexpr (m == 0) _tile_loadd(4, from, stride);
    if constexpr (m == 1) _tile_loadd(5, from, stride);
  }

  template <int n>
  static void load_right(const void* from, int64_t stride) {
    if constexpr (n == 0) _tile_loadd(6, from, stride);
    if constexpr (n == 1) _tile_loadd(7, from, stride);
  }

  template <int m, int n>
  static void multiply() {
    if constexpr (2 * m + n == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (2 * m + n == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (2 * m + n == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (2 * m + n == 3) _tile_dpbf16ps(3, 5, 7);
  }
};

}  // namespace
}  // namespace hetserve
