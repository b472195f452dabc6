// Cuts items so that every thread has work: many short ones stay whole, few long ones are split over rows, then over the sequence.
#include "hetserve/plan.h"

#include <algorithm>

namespace hetserve {
namespace {

constexpr int64_t kTileVectors = 32;    // query vectors (rows * group) that share one pass over the keys
constexpr int64_t kPieceTokens = 128;   // at least, so that a merge stays cheap beside its pieces
constexpr int64_t kTasksPerThread = 4;  // spare tasks even out threads that are slowed by others

int64_t tile_rows(int64_t group) { return std::max<int64_t>(1, kTileVectors / group); }

// Time of a task, in units of about one token of one vector: a token's key and value are read once whatever the number of vectors.
int64_t cost(int64_t vectors, int64_t tokens) { return (vectors + 4) * tokens; }

int64_t total_cost(const AttentionItem* items, int64_t n, int64_t group) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += cost(items[i].n_rows * group, items[i].length);
  return total;
}

// Pieces of a task of `tokens` tokens so that none costs much more than `target`.
int64_t piece_count(int64_t vectors, int64_t tokens, int64_t target) {
  const int64_t whole = cost(vectors, tokens);
  if (2 * whole <= 3 * target) return 1;
  return std::min((whole + target - 1) / target, (tokens + kPieceTokens - 1) / kPieceTokens);
}

void add_tile(SplitPlan& plan, AttentionTask tile, int64_t tokens, int64_t page_tokens, int64_t group, int64_t target) {
  const int64_t vectors = tile.n_rows * group;
  const int64_t wanted = plan.threads == 1 ? 1 : piece_count(vectors, tokens, target);
  const int64_t pages = (tokens + page_tokens - 1) / page_tokens;
  const int64_t piece = (pages + wanted - 1) / wanted * page_tokens;
  const int64_t first = plan.partials;
  int32_t parts = 0;
  for (int64_t begin = 0; begin < tokens; begin += piece, ++parts) {
    tile.token_begin = static_cast<int32_t>(begin);
    tile.token_end = static_cast<int32_t>(std::min(begin + piece, tokens));
    tile.partial = piece >= tokens ? -1 : static_cast<int32_t>(plan.partials);
    if (tile.partial >= 0) plan.partials += vectors;
    plan.tasks.push_back(tile);
  }
  if (parts > 1) plan.merges.push_back({tile.q_row, tile.n_rows, tile.head_group, static_cast<int32_t>(first), parts});
}

}  // namespace

SplitPlan split(const AttentionItem* items, int64_t n, int64_t page_tokens, int64_t group, int threads) {
  SplitPlan plan;
  plan.threads = threads;
  plan.tasks.reserve(n);
  const int64_t target = std::max<int64_t>(1, total_cost(items, n, group) / (threads * kTasksPerThread));
  const int64_t rows = tile_rows(group);
  for (int64_t i = 0; i < n; ++i) {
    const AttentionItem& item = items[i];
    for (int64_t row = 0; row < item.n_rows; row += rows) {
      AttentionTask tile{};
      tile.q_row = static_cast<int32_t>(item.q_row + row);
      tile.n_rows = static_cast<int32_t>(std::min(rows, item.n_rows - row));
      tile.head_group = item.head_group;
      tile.page_begin = item.page_begin;
      tile.first_length = static_cast<int32_t>(item.length - item.n_rows + 1 + row);
      add_tile(plan, tile, tile.first_length + tile.n_rows - 1, page_tokens, group, target);
    }
  }
  return plan;
}

}  // namespace hetserve
