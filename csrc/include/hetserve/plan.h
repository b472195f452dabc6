// How one step's attention items are cut into tasks for threads: rows in tiles, long sequences in pieces that are merged afterwards.
#pragma once

#include <cstdint>
#include <vector>

#include "hetserve/params.h"

namespace hetserve {

struct SplitPlan {
  std::vector<AttentionTask> tasks;
  std::vector<AttentionMerge> merges;
  int64_t partials = 0;  // of head_dim + 2 floats each
  int threads = 1;
};

// Items must have been checked. The cut depends on items and threads only, so the same step gives the same sums.
SplitPlan split(const AttentionItem* items, int64_t n, int64_t page_tokens, int64_t group, int threads);

}  // namespace hetserve
