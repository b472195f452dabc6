// The CUDA side of a build without CUDA: says so.
#include "hetserve/check.h"
#include "hetserve/cuda.h"

namespace hetserve {
namespace {

constexpr const char* kNone = "this build of hetserve has no CUDA kernels";

}  // namespace

bool cuda_built() { return false; }

const DeviceOps& cuda_ops() { fail_check("cuda_built()", __FILE__, __LINE__, kNone); }

int cuda_use_device(int) { fail_check("cuda_built()", __FILE__, __LINE__, kNone); }

bool cuda_reaches(int, const void*) { fail_check("cuda_built()", __FILE__, __LINE__, kNone); }

int cuda_blocks(int) { fail_check("cuda_built()", __FILE__, __LINE__, kNone); }

}  // namespace hetserve
