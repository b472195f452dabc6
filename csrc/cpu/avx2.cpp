// The kernels of avx2: compiled with its flags, and run only on CPUs that have it.
#include "cpu/vec_avx2.h"
// vec first: the rest is written in its terms.
#include "cpu/attention.h"
#include "cpu/kv_store.h"
#include "cpu/rows.h"

namespace hetserve {

extern const Kernels avx2_kernels;
const Kernels avx2_kernels = {"avx2", attention, ref::attention_merge, kv_store, rms_norm, layer_norm, rope, silu_mul, ref::linear, 0};

}  // namespace hetserve
