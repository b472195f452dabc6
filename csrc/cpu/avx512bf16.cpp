// The kernels of avx512bf16: compiled with its flags, and run only on CPUs that have it.
#include "cpu/vec_avx512.h"
// vec first: the rest is written in its terms.
#include "cpu/attention.h"
#include "cpu/kv_store.h"
#include "cpu/linear.h"
#include "cpu/rows.h"

namespace hetserve {

extern const Kernels avx512bf16_kernels;
const Kernels avx512bf16_kernels = {"avx512bf16", attention, ref::attention_merge, kv_store, rms_norm, layer_norm, rope, silu_mul, linear, kLinearRows};

}  // namespace hetserve
