// Cuts a step's attention for a device with many blocks at once: many short items stay whole, few long ones are split so that all blocks have work.
#include "hetserve/device_plan.h"

#include <algorithm>

namespace hetserve {
namespace {

constexpr int64_t kTasksPerBlock = 4;     // spare tasks even out the end of a step
constexpr int64_t kPieceChunks = 4;       // at least, so that a merge stays cheap beside its pieces
constexpr int64_t kWideCost = 3;          // of a task whose warps share vectors, beside one whose warps share tokens: more products for the same bytes

int64_t tile_rows(int64_t group) { return std::max<int64_t>(1, kDeviceTileVectors / group); }

int64_t chunks(int64_t tokens) { return (tokens + kDeviceChunkTokens - 1) / kDeviceChunkTokens; }

int64_t cost(const AttentionTask& tile, int64_t group) {
  return chunks(tile.token_end) * (tile.n_rows * group <= kDeviceDeepVectors ? 1 : kWideCost);
}

// Every item's rows in tiles, over the whole sequence.
std::vector<AttentionTask> tiles_of(const AttentionItem* items, int64_t n, int64_t group) {
  std::vector<AttentionTask> tiles;
  tiles.reserve(n);
  const int64_t rows = tile_rows(group);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t row = 0; row < items[i].n_rows; row += rows) {
      AttentionTask tile{};
      tile.q_row = static_cast<int32_t>(items[i].q_row + row);
      tile.n_rows = static_cast<int32_t>(std::min(rows, items[i].n_rows - row));
      tile.first_head = static_cast<int32_t>(i);
      tile.n_heads = 1;
      tile.first_length = static_cast<int32_t>(items[i].length - items[i].n_rows + 1 + row);
      tile.token_end = tile.first_length + tile.n_rows - 1;
      tile.partial = -1;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

}  // namespace

SplitPlan device_split(const AttentionItem* items, int64_t n, int64_t group, int blocks) {
  SplitPlan plan;
  plan.threads = blocks;
  plan.heads.reserve(n);
  for (int64_t i = 0; i < n; ++i) plan.heads.push_back({items[i].head_group, items[i].page_begin});
  const std::vector<AttentionTask> tiles = tiles_of(items, n, group);
  int64_t total = 0;
  for (const AttentionTask& tile : tiles) total += cost(tile, group);
  const int64_t target = std::max<int64_t>(1, (total + blocks * kTasksPerBlock - 1) / (blocks * kTasksPerBlock));
  for (const AttentionTask& tile : tiles) {
    const int64_t whole = cost(tile, group);
    const int64_t pieces = blocks == 1 || 2 * whole <= 3 * target ? 1 : std::min((whole + target - 1) / target, (chunks(tile.token_end) + kPieceChunks - 1) / kPieceChunks);
    add_pieces(plan, tile, tile.token_end, (chunks(tile.token_end) + pieces - 1) / pieces * kDeviceChunkTokens, group);
  }
  // Longest first: whoever comes last then is short.
  std::stable_sort(plan.tasks.begin(), plan.tasks.end(), [group](const AttentionTask& a, const AttentionTask& b) {
    const auto weight = [group](const AttentionTask& t) {
      return int64_t{t.token_end - t.token_begin} * (t.n_rows * group <= kDeviceDeepVectors ? 1 : kWideCost);
    };
    return weight(a) > weight(b);
  });
  return plan;
}

bool copy_page_ids(const int32_t* from, int64_t n, int64_t pages, int32_t* to) {
  const uint32_t end = static_cast<uint32_t>(pages);
  uint32_t outside = 0;
  for (int64_t i = 0; i < n; ++i) {
    to[i] = from[i];
    outside |= static_cast<uint32_t>(from[i]) >= end ? 1u : 0u;  // a negative id is a huge unsigned one
  }
  return outside == 0;
}

DeviceCapacity device_capacity(int64_t items, int64_t item_rows, int64_t group, int blocks) {
  const int64_t spare = blocks * kTasksPerBlock, tiles = items + item_rows / tile_rows(group);
  // A tile in pieces costs over 1.5 targets, and all cost at most `spare` of them: so few are cut, into at most whole / target + 1 pieces.
  const int64_t merges = std::min(2 * spare / 3, tiles), pieces = spare + merges;
  return {tiles + spare, merges, pieces * std::max<int64_t>(group, kDeviceTileVectors)};
}

}  // namespace hetserve
