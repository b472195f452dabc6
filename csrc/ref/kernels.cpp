// The scalar kernels as a row of the table of instruction sets.
#include "hetserve/ops.h"

namespace hetserve {

extern const Kernels ref_kernels;
const Kernels ref_kernels = {"ref",         ref::attention,  ref::attention_merge, ref::kv_store,
                             ref::rms_norm, ref::layer_norm, ref::rope,            ref::silu_mul,
                             ref::linear,   0};

}  // namespace hetserve
