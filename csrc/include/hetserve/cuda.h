// What the CUDA side offers to bind. A build without CUDA links no_cuda.cpp instead: another file, never an #ifdef at a call site.
#pragma once

#include "hetserve/device_ops.h"

namespace hetserve {

bool cuda_built();

// Throws std::invalid_argument where there are none.
const DeviceOps& cuda_ops();

// Makes that device the calling thread's; returns the one before.
int cuda_use_device(int device);

// Whether kernels of that device can read and write there: pinned memory of the host, or memory of a device that it has a path to, which is opened.
bool cuda_reaches(int device, const void* memory);

// So many blocks of a kernel for attention can run at once on that device.
int cuda_blocks(int device);

}  // namespace hetserve
