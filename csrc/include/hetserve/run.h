// Runs a whole op: takes the kernel of the active instruction set and deals its rows or tasks to threads. Parameters must have been checked.
#pragma once

#include "hetserve/params.h"
#include "hetserve/plan.h"

namespace hetserve {

// p.partials: [plan.partials, head_dim + 2].
void run_attention(const AttentionParams& p, const SplitPlan& plan);
void run_kv_store(const KvStoreParams& p);
void run_page_copy(const PageCopyParams& p);
void run_page_gather(const PageRowsParams& p);
void run_page_scatter(const PageRowsParams& p);
void run_heads_pack(const HeadsParams& p);
void run_heads_unpack(const HeadsParams& p);
void run_rms_norm(const NormParams& p);
void run_layer_norm(const NormParams& p);
void run_rope(const RopeParams& p);
void run_silu_mul(const SiluMulParams& p);
void run_linear(const LinearParams& p);

// Devices only; a CPU has libraries for it.
void run_argmax(const ArgmaxParams& p);

}  // namespace hetserve
