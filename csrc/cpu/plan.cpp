// Cuts items so that every thread has work: many short ones stay whole, few long ones are split over rows, then over the sequence.
#include "hetserve/plan.h"

#include <algorithm>

namespace hetserve {
namespace {

constexpr int64_t kPieceTokens = 128;   // at least, so that a merge stays cheap beside its pieces
constexpr int64_t kLooks = 8;           // places at which the order of pages is looked at
constexpr int64_t kTasksPerThread = 4;  // spare tasks even out threads that are slowed by others

int64_t tile_rows(int64_t group) { return std::max<int64_t>(1, kTileVectors / group); }

// Time of a task, in units of about one token of one vector: a token's key and value are read once whatever the number of vectors.
int64_t cost(int64_t heads, int64_t vectors_per_head, int64_t tokens) { return heads * (vectors_per_head + 4) * tokens; }

int64_t total_cost(const AttentionItem* items, int64_t n, int64_t group) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += cost(1, items[i].n_rows * group, items[i].length);
  return total;
}

// Items from `first` on that are the same rows of the same sequence, as many as fill a tile.
int64_t bundle(const AttentionItem* items, int64_t first, int64_t n, int64_t group) {
  const AttentionItem& a = items[first];
  const int64_t vectors = a.n_rows * group;
  const int64_t most = a.n_rows > tile_rows(group) ? 1 : std::max<int64_t>(1, kBundleVectors / vectors);
  int64_t heads = 1;
  while (heads < most && first + heads < n) {
    const AttentionItem& b = items[first + heads];
    if (b.q_row != a.q_row || b.n_rows != a.n_rows || b.length != a.length) break;
    ++heads;
  }
  return heads;
}

// Whether most of a bundle's pages follow one another, page by page and head by head; looks at a few places.
bool in_order(const AttentionItem* items, int64_t heads, const int32_t* page_ids, int64_t pages) {
  int64_t following = 0, looked = 0;
  const int64_t step = std::max<int64_t>(1, (pages - 1) / kLooks);
  for (int64_t page = 0; page + 1 < pages; page += step) {
    bool follows = page_ids[items[0].page_begin + page + 1] == page_ids[items[heads - 1].page_begin + page] + 1;
    for (int64_t h = 1; h < heads; ++h) follows &= page_ids[items[h].page_begin + page] == page_ids[items[h - 1].page_begin + page] + 1;
    following += follows;
    ++looked;
  }
  return 4 * following >= 3 * looked;
}

// Pieces of a task so that none costs much more than `target`.
int64_t piece_count(int64_t whole, int64_t tokens, int64_t target) {
  if (2 * whole <= 3 * target) return 1;
  return std::min((whole + target - 1) / target, (tokens + kPieceTokens - 1) / kPieceTokens);
}

void add_tile(SplitPlan& plan, const AttentionTask& tile, int64_t tokens, int64_t page_tokens, int64_t group, int64_t target) {
  const int64_t wanted = plan.threads == 1 ? 1 : piece_count(cost(tile.n_heads, tile.n_rows * group, tokens), tokens, target);
  const int64_t pages = (tokens + page_tokens - 1) / page_tokens;
  add_pieces(plan, tile, tokens, (pages + wanted - 1) / wanted * page_tokens, group);
}

}  // namespace

void add_pieces(SplitPlan& plan, AttentionTask tile, int64_t tokens, int64_t piece, int64_t group) {
  const int64_t vectors = tile.n_heads * tile.n_rows * group, first = plan.partials;
  int32_t parts = 0;
  for (int64_t begin = 0; begin < tokens; begin += piece, ++parts) {
    tile.token_begin = static_cast<int32_t>(begin);
    tile.token_end = static_cast<int32_t>(std::min(begin + piece, tokens));
    tile.partial = piece >= tokens ? -1 : static_cast<int32_t>(plan.partials);
    if (tile.partial >= 0) plan.partials += vectors;
    plan.tasks.push_back(tile);
  }
  if (parts > 1) plan.merges.push_back({tile.q_row, tile.n_rows, tile.first_head, tile.n_heads, static_cast<int32_t>(first), parts});
}

SplitPlan split(const AttentionItem* items, int64_t n, const int32_t* page_ids, int64_t page_tokens, int64_t group, int threads) {
  SplitPlan plan;
  plan.threads = threads;
  plan.tasks.reserve(n);
  plan.heads.reserve(n);
  for (int64_t i = 0; i < n; ++i) plan.heads.push_back({items[i].head_group, items[i].page_begin});
  const int64_t target = std::max<int64_t>(1, total_cost(items, n, group) / (threads * kTasksPerThread));
  const int64_t rows = tile_rows(group);
  for (int64_t i = 0, heads; i < n; i += heads) {
    heads = bundle(items, i, n, group);
    const AttentionItem& item = items[i];
    const bool ordered = in_order(items + i, heads, page_ids, (item.length + page_tokens - 1) / page_tokens);
    for (int64_t row = 0; row < item.n_rows; row += rows) {
      AttentionTask tile{};
      tile.q_row = static_cast<int32_t>(item.q_row + row);
      tile.n_rows = static_cast<int32_t>(std::min(rows, item.n_rows - row));
      tile.first_head = static_cast<int32_t>(i);
      tile.n_heads = static_cast<int32_t>(heads);
      tile.in_order = ordered ? 1 : 0;
      tile.first_length = static_cast<int32_t>(item.length - item.n_rows + 1 + row);
      add_tile(plan, tile, tile.first_length + tile.n_rows - 1, page_tokens, group, target);
    }
  }
  return plan;
}

}  // namespace hetserve
