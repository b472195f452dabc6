// The entries of this folder's table of ops (ops.cu); one file each.
#pragma once

#include "hetserve/device_ops.h"

namespace hetserve::cuda {

void attention(const AttentionParams& p, const DeviceSplit& split, Stream stream);
void kv_store(const KvStoreParams& p, Stream stream);
void page_copy(const PageCopyParams& p, Stream stream);
void page_gather(const PageRowsParams& p, Stream stream);
void page_scatter(const PageRowsParams& p, Stream stream);
void heads_pack(const HeadsParams& p, Stream stream);
void heads_unpack(const HeadsParams& p, Stream stream);
void rms_norm(const NormParams& p, Stream stream);
void layer_norm(const NormParams& p, Stream stream);
void rope(const RopeParams& p, Stream stream);
void silu_mul(const SiluMulParams& p, Stream stream);
void argmax(const ArgmaxParams& p, Stream stream);
void copy(void* to, const void* from, int64_t bytes, Stream stream);  // of native and of emulated

}  // namespace hetserve::cuda
