// The table of this folder's ops.
#include "ops.h"

namespace hetserve::cuda {

extern const DeviceOps ops;
const DeviceOps ops = {"cuda",       attention,    kv_store, page_copy,  page_gather, page_scatter, heads_pack,
                       heads_unpack, rms_norm,     layer_norm, rope,     silu_mul,    argmax,    copy};

}  // namespace hetserve::cuda
