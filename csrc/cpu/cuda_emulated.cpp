// The row of the table of instruction sets that runs csrc/cuda on fibers. Never chosen by itself.
#include "cpu/isas.h"
#include "hetserve/device_ops.h"

namespace hetserve {

namespace cuda_emulated {
extern const DeviceOps ops;
}

extern const Kernels cuda_emulated_kernels;
const Kernels cuda_emulated_kernels = {"cuda-emulated", ref::attention,  ref::attention_merge, ref::kv_store, ref::rms_norm,
                                       ref::layer_norm, ref::rope,       ref::silu_mul,        ref::linear,   0,
                                       &cuda_emulated::ops};

}  // namespace hetserve
