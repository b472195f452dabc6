// How one step's attention items are cut into tasks for threads: rows in tiles, head groups of a
// sequence together, long sequences in pieces that are merged afterwards.
#pragma once

#include <cstdint>
#include <vector>

#include "hetserve/params.h"
#include "hetserve/plan_limits.h"

namespace hetserve {

struct SplitPlan {
  std::vector<AttentionHead> heads;  // one for each item
  std::vector<AttentionTask> tasks;
  std::vector<AttentionMerge> merges;
  int64_t partials = 0;  // of head_dim + 2 floats each
  int threads = 1;
};

// Adds a tile that sees `tokens` tokens in pieces of `piece` of them; where that is more than one, the partials they need, and their merge.
void add_pieces(SplitPlan& plan, AttentionTask tile, int64_t tokens, int64_t piece, int64_t group);

// Items and page ids must have been checked. The cut depends on items and threads only; so do a step's sums, but for `in_order`, which page ids decide.
SplitPlan split(const AttentionItem* items, int64_t n, const int32_t* page_ids, int64_t page_tokens, int64_t group, int threads);

}  // namespace hetserve
