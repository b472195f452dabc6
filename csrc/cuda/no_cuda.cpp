// The CUDA side of a build without CUDA: says so.
#include "hetserve/check.h"
#include "hetserve/cuda.h"

namespace hetserve {

bool cuda_built() { return false; }

void refuse_device(const char* argument) {
  fail_check("is_cpu", __FILE__, __LINE__, argument, ": expected a CPU tensor; this build of hetserve has no CUDA kernels");
}

}  // namespace hetserve
