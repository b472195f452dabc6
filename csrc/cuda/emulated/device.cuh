// The names of csrc/cuda/native/device.cuh for a CPU, so that tests run the very kernels without a GPU: each thread of a block is a fiber that runs until it
// waits for others. Shared memory starts as NaN, and an asynchronous copy happens only when it is waited for: what is used too early shows. Slow.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "hetserve/device_ops.h"
#include "hetserve/dtype.h"

#define __global__
#define __device__
#define __launch_bounds__(...)

namespace hetserve::cuda {

constexpr int kWarp = 32;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

struct Chip {
  int processors;
  int major;
  int64_t shared_bytes;
};

inline Chip chip() { return {4, 9, 227 * 1024}; }

// Runs body on every thread of every block, block after block.
void run_grid(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body);

// Called by all lanes of a warp, each with its own operand: `f` runs once, on all of them, before any goes on.
void together(void* operand, void (*f)(void* const* lanes));

unsigned char* shared_memory();
void sync_block();
void copy_async(void* shared, const void* global, bool valid);
void commit_copies();
void wait_copies_but(int left);

template <class... Formal, class... Actual>
void launch(void (*kernel)(Formal...), dim3 grid, int threads, size_t shared_bytes, Stream, Actual... arguments) {
  run_grid(grid, threads, shared_bytes, [=] { kernel(static_cast<Formal>(arguments)...); });
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return to_float(x); }
inline float widen(f16 x) { return to_float(x); }
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, bf16* to) { from_float(x, to); }
inline void narrow(float x, f16* to) { from_float(x, to); }

template <class T>
uint32_t pair_of(float first, float second, T) {
  T both[2];
  from_float(first, &both[0]);
  from_float(second, &both[1]);
  return both[0].bits | static_cast<uint32_t>(both[1].bits) << 16;
}

template <class T>
T from_lane(T x, int lane) {
  struct Operand {
    T mine, got;
    int lane;
  } operand{x, x, lane};
  together(&operand, [](void* const* lanes) {
    for (int i = 0; i < kWarp; ++i) {
      auto* to = static_cast<Operand*>(lanes[i]);
      to->got = static_cast<Operand*>(lanes[to->lane])->mine;
    }
  });
  return operand.got;
}

template <class T>
T from_other(T x, int distance) {
  return from_lane(x, static_cast<int>(threadIdx.x % kWarp) ^ distance);
}

inline float power_of_two(float x) { return std::exp2(x); }

template <class T>
void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  struct Operand {
    float* sum;
    const uint32_t* a;
    uint32_t b[2];
  } operand{sum, a, {b0, b1}};
  together(&operand, [](void* const* lanes) {
    const auto lane = [&](int i) { return static_cast<const Operand*>(lanes[i]); };
    const auto element = [](uint32_t pair, int which) {
      T x;
      x.bits = static_cast<uint16_t>(pair >> (16 * which));
      return to_float(x);
    };
    float left[16][16], right[16][8];
    for (int i = 0; i < kWarp; ++i) {
      for (int e = 0; e < 2; ++e) {
        const int k = i % 4 * 2 + e;
        for (int half = 0; half < 2; ++half) {
          left[i / 4 + 8 * half][k] = element(lane(i)->a[half], e);
          left[i / 4 + 8 * half][k + 8] = element(lane(i)->a[2 + half], e);
          right[k + 8 * half][i / 4] = element(lane(i)->b[half], e);
        }
      }
    }
    for (int i = 0; i < kWarp; ++i) {
      for (int c = 0; c < 4; ++c) {
        const int row = i / 4 + 8 * (c / 2), column = i % 4 * 2 + c % 2;
        float total = 0;
        for (int k = 0; k < 16; ++k) total += left[row][k] * right[k][column];
        static_cast<Operand*>(lanes[i])->sum[c] += total;
      }
    }
  });
}

template <bool transposed>
void load_any_matrices(uint32_t (&to)[4], const void* row) {
  struct Operand {
    uint32_t* to;
    const uint16_t* row;
  } operand{to, static_cast<const uint16_t*>(row)};
  together(&operand, [](void* const* lanes) {
    for (int i = 0; i < kWarp; ++i) {
      for (int m = 0; m < 4; ++m) {
        uint16_t found[2];
        for (int e = 0; e < 2; ++e) {
          const int r = transposed ? i % 4 * 2 + e : i / 4, c = transposed ? i / 4 : i % 4 * 2 + e;
          found[e] = static_cast<const Operand*>(lanes[8 * m + r])->row[c];
        }
        static_cast<Operand*>(lanes[i])->to[m] = found[0] | static_cast<uint32_t>(found[1]) << 16;
      }
    }
  });
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { load_any_matrices<false>(to, row); }
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) { load_any_matrices<true>(to, row); }

template <int left>
void wait_copies() {
  wait_copies_but(left);
}

}  // namespace hetserve::cuda
