// The CUDA side of a build with CUDA.
#include "hetserve/cuda.h"

#include "cuda/ops.h"
#include "device.cuh"

namespace hetserve {

namespace cuda {

extern const DeviceOps ops;

void copy(void* to, const void* from, int64_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, static_cast<cudaStream_t>(stream)), "a copy to or from the device");
}

}  // namespace cuda

bool cuda_built() { return true; }

const DeviceOps& cuda_ops() { return cuda::ops; }

int cuda_use_device(int device) {
  int before = 0;
  cuda::check(cudaGetDevice(&before), "the current device");
  if (before != device) cuda::check(cudaSetDevice(device), "a device of this number");
  return before;
}

bool cuda_reaches(int device, const void* memory) {
  if (memory == nullptr) return true;  // of nothing
  cudaPointerAttributes at{};
  if (cudaPointerGetAttributes(&at, memory) != cudaSuccess) {
    cudaGetLastError();  // not to be found by the next launch
    return false;
  }
  if (at.type != cudaMemoryTypeDevice || at.device == device) return at.type != cudaMemoryTypeUnregistered;
  int can = 0;
  cuda::check(cudaDeviceCanAccessPeer(&can, device, at.device), "a path between two devices");
  if (can == 0) return false;
  const int before = cuda_use_device(device);
  const cudaError_t opened = cudaDeviceEnablePeerAccess(at.device, 0);
  cuda_use_device(before);
  if (opened != cudaSuccess) cudaGetLastError();  // not to be found by the next launch either
  return opened == cudaSuccess || opened == cudaErrorPeerAccessAlreadyEnabled;
}

int cuda_blocks(int device) {
  constexpr int kBlocksPerProcessor = 2;
  const int before = cuda_use_device(device), processors = cuda::chip().processors;
  cuda_use_device(before);
  return kBlocksPerProcessor * processors;
}

}  // namespace hetserve
