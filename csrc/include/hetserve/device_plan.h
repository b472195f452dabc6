// How a step's attention is cut for a device that runs each task in a block of its own. Plain C++: the same on a machine without a GPU.
#pragma once

#include "hetserve/plan.h"

namespace hetserve {

constexpr int kDeviceTileVectors = 64;  // query vectors (rows * group) of a task, unless one row has more
constexpr int kDeviceDeepVectors = 16;  // up to so many, a block's warps share the tokens instead of the vectors
constexpr int kDeviceMaxHeadDim = 256;
constexpr int kEmulatedBlocks = 4;  // at once, of a device on fibers: few, so that small tests have sequences in pieces
constexpr int kDeviceChunkTokens = 64;  // what a block reads at once; pieces of a sequence are whole chunks

// Cuts items into tasks of one head each, longest first, so that `blocks` blocks at once all have work: long sequences in pieces, rows in tiles.
// Items must have been checked.
SplitPlan device_split(const AttentionItem* items, int64_t n, int64_t group, int blocks);

// Copies page ids of a pool of so many pages. Returns whether all of them are its own.
bool copy_page_ids(const int32_t* from, int64_t n, int64_t pages, int32_t* to);

// No step of at most `items` items, with at most `item_rows` rows in all of them together, has more than this.
struct DeviceCapacity {
  int64_t tasks, merges, partials;
};
DeviceCapacity device_capacity(int64_t items, int64_t item_rows, int64_t group, int blocks);

}  // namespace hetserve
