// Tiles in memory with the meaning AMX gives them, to test tile kernels on CPUs that have none. Slow.
#pragma once

#include <cstdint>
#include <cstring>

#include "hetserve/dtype.h"

namespace hetserve {
namespace {

struct EmulatedTiles {
  struct State {
    float sums[2][2][16][16];
    bf16 left[2][16][32];
    bf16 right[2][16][32];
    int64_t depth;  // bf16 pairs a product sums over; 0: no configuration is loaded, and nothing may be used
  };
  static inline thread_local State state = {};

  static void configure(int64_t depth) {
    state = {};  // loading a configuration clears the tiles
    state.depth = depth;
  }

  static void release() { state = {}; }

  template <int m, int n>
  static void zero() {
    std::memset(state.sums[m][n], 0, sizeof state.sums[m][n]);
  }

  template <int m, int n>
  static void load_sum(const float* from, int64_t stride) {
    copy(state.sums[m][n], 64, from, stride, 16, 64);
  }

  template <int m, int n>
  static void store_sum(float* to, int64_t stride) {
    copy(to, stride, state.sums[m][n], 64, 16, 64);
  }

  template <int m>
  static void load_left(const void* from, int64_t stride) {
    copy(state.left[m], 64, from, stride, 16, 4 * state.depth);
  }

  template <int n>
  static void load_right(const void* from, int64_t stride) {
    copy(state.right[n], 64, from, stride, state.depth, 64);
  }

  template <int m, int n>
  static void multiply() {
    for (int row = 0; row < 16; ++row) {
      for (int64_t i = 0; i < state.depth; ++i) {
        for (int column = 0; column < 16; ++column) {
          float& sum = state.sums[m][n][row][column];
          sum += to_float(state.left[m][row][2 * i]) * to_float(state.right[n][i][2 * column]);
          sum += to_float(state.left[m][row][2 * i + 1]) * to_float(state.right[n][i][2 * column + 1]);
        }
      }
    }
  }

 private:
  static void copy(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t rows, int64_t bytes) {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(static_cast<uint8_t*>(to) + row * to_stride, static_cast<const uint8_t*>(from) + row * from_stride, bytes);
    }
  }
};

}  // namespace
}  // namespace hetserve
