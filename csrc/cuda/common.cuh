// What several kernels share: vectors of 16 bytes, sums over a warp and a block, element types.
#pragma once

#include <algorithm>

#include "device.cuh"
#include "hetserve/pages.h"
#include "hetserve/params.h"

namespace hetserve::cuda {

constexpr int kThreads = 256;  // of a block, where nothing asks for another number

// 16 bytes of T, moved by one instruction.
template <class T>
struct alignas(16) Vec {
  static constexpr int n = 16 / static_cast<int>(sizeof(T));
  T x[n];
};

template <class T>
__device__ inline Vec<T> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T>*>(from);
}
template <class T>
__device__ inline void store_vec(T* to, const Vec<T>& v) {
  *reinterpret_cast<Vec<T>*>(to) = v;
}

__device__ inline float warp_sum(float x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += from_other(x, distance);
  return x;
}

// The sum over the block, the same in every thread. `partial` is shared memory for one float a warp; calls may follow one another.
__device__ inline float block_sum(float x, float* partial) {
  const int warps = static_cast<int>(blockDim.x) / kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  x = warp_sum(x);
  sync_block();  // whoever still reads the sums of the call before
  if (threadIdx.x % kWarp == 0) partial[warp] = x;
  sync_block();
  x = 0;
  for (int i = 0; i < warps; ++i) x += partial[i];
  return x;
}

// f(T{}) with T as dtype says: the one place where a DType becomes a C++ type here.
template <class F>
void by_dtype(DType dtype, F f) {
  if (dtype == DType::float32) {
    f(float{});
  } else if (dtype == DType::bfloat16) {
    f(bf16{});
  } else {
    f(f16{});
  }
}

inline bool aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0; }

// A grid of blocks of kThreads threads: x counts rows, y the blocks that share the items of one. Divisions inside are of 32 bits: 64 take many instructions.
inline dim3 row_grid(int64_t rows, int64_t items) {
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>(std::clamp<int64_t>((items + kThreads - 1) / kThreads, 1, 65535)));
}
__device__ inline uint32_t first_item() { return blockIdx.y * blockDim.x + threadIdx.x; }
__device__ inline uint32_t item_stride() { return gridDim.y * blockDim.x; }

}  // namespace hetserve::cuda
