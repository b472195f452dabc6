// What an instruction set provides, and what callers run. A kernel works on rows [begin, end) of its op (pages, pairs) and starts no thread;
// csrc/cpu/run.cpp deals rows and attention tasks to threads.
#pragma once

#include <cstdint>

#include "hetserve/device_ops.h"
#include "hetserve/params.h"

namespace hetserve {

// One row of the table of instruction sets. Every pointer is set; what an ISA does not do itself is the ref kernel.
// linear works on blocks of 64 columns; up to linear_rows rows it is worth calling instead of a library's product (0: never).
// attention's `next` is the task this thread runs afterwards, or null: a hint about what memory to fetch.
struct Kernels {
  const char* name;
  void (*attention)(const AttentionParams&, const AttentionTask&, const AttentionTask* next, float* scratch);
  void (*attention_merge)(const AttentionParams&, const AttentionMerge&);
  void (*kv_store)(const KvStoreParams&, int64_t begin, int64_t end);
  void (*rms_norm)(const NormParams&, int64_t begin, int64_t end);
  void (*layer_norm)(const NormParams&, int64_t begin, int64_t end);
  void (*rope)(const RopeParams&, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluMulParams&, int64_t begin, int64_t end);
  void (*linear)(const LinearParams&, int64_t begin, int64_t end);
  int64_t linear_rows;
  const DeviceOps* device = nullptr;  // where set, it runs every op it has, whole, on the caller's memory: csrc/cuda on fibers, for tests
};

// Scratch of one thread for one attention task, in floats; enough for every ISA.
constexpr int64_t kAttentionScratchFloats = 48 * 1024;

namespace ref {
void attention(const AttentionParams&, const AttentionTask&, const AttentionTask* next, float* scratch);
void attention_merge(const AttentionParams&, const AttentionMerge&);
void kv_store(const KvStoreParams&, int64_t begin, int64_t end);
void page_copy(const PageCopyParams&, int64_t begin, int64_t end);
void page_gather(const PageRowsParams&, int64_t begin, int64_t end);
void page_scatter(const PageRowsParams&, int64_t begin, int64_t end);
void heads_pack(const HeadsParams&, int64_t begin, int64_t end);
void heads_unpack(const HeadsParams&, int64_t begin, int64_t end);
void rms_norm(const NormParams&, int64_t begin, int64_t end);
void layer_norm(const NormParams&, int64_t begin, int64_t end);
void rope(const RopeParams&, int64_t begin, int64_t end);
void silu_mul(const SiluMulParams&, int64_t begin, int64_t end);
void linear(const LinearParams&, int64_t begin, int64_t end);
}  // namespace ref

}  // namespace hetserve
