// What kernels use of the device beyond plain C++: launches, warps, tensor cores, asynchronous copies. csrc/cuda/emulated has the same names for a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "hetserve/device_ops.h"
#include "hetserve/dtype.h"

namespace hetserve::cuda {

constexpr int kWarp = 32;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// kernel<<<grid, threads, shared_bytes, stream>>>(arguments); more than 48 KiB of shared memory is asked for where it is needed.
template <class... Formal, class... Actual>
void launch(void (*kernel)(Formal...), dim3 grid, int threads, size_t shared_bytes, Stream stream, Actual... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)), "shared memory of a kernel");
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<Formal>(arguments)...);
  check(cudaGetLastError(), "launch of a kernel");
}

struct Chip {
  int processors;          // streaming multiprocessors
  int major;               // compute capability
  int64_t shared_bytes;    // that one block can have
};

inline Chip chip() {
  static thread_local int known = -1;
  static thread_local Chip found{};
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "the current device");
  if (device == known) return found;
  const auto get = [&](cudaDeviceAttr which) {
    check(cudaDeviceGetAttribute(&value, which, device), "an attribute of the device");
    return value;
  };
  found = {get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrComputeCapabilityMajor), get(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  known = device;
  return found;
}

extern __shared__ uint4 shared_words[];
__device__ inline unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(shared_words); }

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline void narrow(float x, float* to) { *to = x; }
__device__ inline void narrow(float x, bf16* to) { to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ inline void narrow(float x, f16* to) { to->bits = __half_as_ushort(__float2half_rn(x)); }

// Two floats as two elements in one register, the first in the lower half.
__device__ inline uint32_t pair_of(float first, float second, bf16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&both);
}
__device__ inline uint32_t pair_of(float first, float second, f16) {
  const __half2 both = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&both);
}

template <class T>
__device__ inline T from_lane(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}
template <class T>
__device__ inline T from_other(T x, int distance) {  // lane ^ distance
  return __shfl_xor_sync(0xffffffffu, x, distance);
}
__device__ inline void sync_block() { __syncthreads(); }
__device__ inline float power_of_two(float x) { return exp2f(x); }  // -use_fast_math is not set; ex2 with a fix-up for tiny values

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// From here on: compute capability 8.0 or newer. Units that use it are compiled for nothing older.

// sum[16 x 8] += a[16 x 16] b[16 x 8], in the fragments of mma.m16n8k16.
__device__ inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane i gives the address of row i % 8 of matrix i / 8, and gets, of each, two neighbours
// of row lane / 4 (transposed: of column lane / 4).
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes from global to shared memory, or zeros where not valid (then nothing is read).
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most `left` of the groups that this thread committed last are under way.
template <int left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(left) : "memory");
}

}  // namespace hetserve::cuda
