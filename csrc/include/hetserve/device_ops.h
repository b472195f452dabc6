// The ops of a device that runs each of them whole, on a stream: what csrc/cuda provides. Parameters are those of params.h, with every pointer in the
// device's memory. Nothing is allocated, nothing waits, and every call may be captured into a graph.
#pragma once

#include <cstdint>

#include "hetserve/params.h"

namespace hetserve {

using Stream = void*;  // a cudaStream_t; null: the default one

// A step's attention: the tasks lie in device memory, so that one captured graph serves every step that fits.
struct DeviceSplit {
  const AttentionTask* tasks;    // [most_tasks], each of one head (n_heads 1)
  const AttentionMerge* merges;  // [most_merges]
  const int32_t* counts;         // [2]: how many tasks and merges there are
  int32_t most_tasks;
  int32_t most_merges;
};

struct DeviceOps {
  const char* name;
  void (*attention)(const AttentionParams&, const DeviceSplit&, Stream);
  void (*kv_store)(const KvStoreParams&, Stream);
  void (*page_copy)(const PageCopyParams&, Stream);
  void (*page_gather)(const PageRowsParams&, Stream);
  void (*page_scatter)(const PageRowsParams&, Stream);
  void (*heads_pack)(const HeadsParams&, Stream);
  void (*heads_unpack)(const HeadsParams&, Stream);
  void (*rms_norm)(const NormParams&, Stream);
  void (*layer_norm)(const NormParams&, Stream);
  void (*rope)(const RopeParams&, Stream);
  void (*silu_mul)(const SiluMulParams&, Stream);
  void (*argmax)(const ArgmaxParams&, Stream);
  void (*copy)(void* to, const void* from, int64_t bytes, Stream);  // between device memory and (pinned) host memory
};

}  // namespace hetserve
