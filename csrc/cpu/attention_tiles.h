// The two products of block attention on AMX tiles: 16 query vectors by a page's 16 tokens, then by 16 dims. Packed pages are tiles as they lie.
// For units with vec_avx512.h and bf16. Written against a `Tiles` backend: the CPU's, or tiles in memory, which test the rest anywhere.
#pragma once

#include "cpu/attention_block.h"

namespace hetserve {

extern const Kernels avx512bf16_kernels;

namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kFullDepth = 16;  // bf16 pairs along which a product sums
constexpr int64_t kHalfDepth = 8;   // as many as a page has token pairs

// Backends keep eight tiles: 4 sums [m, n], 2 left operands [m], 2 right operands [n], and offer
//   configure(depth); zero<m, n>(); load_sum<m, n>(from, stride); store_sum<m, n>(to, stride); load_left<m>(from, stride);
//   load_right<n>(from, stride); multiply<m, n>(); release(). Strides in bytes.
template <class Backend>
struct DotTiles : DotPairs {
  using Tiles = Backend;
  static constexpr int64_t rows = kTileRows;
  struct Session {
    ~Session() { Backend::release(); }
  };
};

// f.template operator()<m, n>() for m < kM, n < kN.
template <int kM, int kN, class Call>
inline void each_sum(Call call) {
  call.template operator()<0, 0>();
  if constexpr (kN > 1) call.template operator()<0, 1>();
  if constexpr (kM > 1) call.template operator()<1, 0>();
  if constexpr (kM > 1 && kN > 1) call.template operator()<1, 1>();
}

// scores of kM tiles of vectors by kN pages from `page` on, over dims [begin, end) in steps of 2 * depth; begin = 0 starts from zero.
template <class Tiles, int kM, int kN>
void score_tiles(const Tile<DotTiles<Tiles>>& t, const Block& block, int64_t page, int64_t begin, int64_t end, int64_t depth) {
  float* scores = t.scores + page * kTokens;
  const auto at = [&](int m, int n) { return scores + m * kTileRows * kBlockTokens + n * kTokens; };
  each_sum<kM, kN>([&]<int m, int n>() {
    if (begin == 0) Tiles::template zero<m, n>();
    else Tiles::template load_sum<m, n>(at(m, n), kBlockTokens * 4);
  });
  for (int64_t d = begin; d < end; d += 2 * depth) {
    Tiles::template load_left<0>(t.q + d, t.dim * 2);
    if constexpr (kM > 1) Tiles::template load_left<1>(t.q + kTileRows * t.dim + d, t.dim * 2);
    Tiles::template load_right<0>(block.k[page] + d * 2 * kTokens, 64);
    if constexpr (kN > 1) Tiles::template load_right<1>(block.k[page + 1] + d * 2 * kTokens, 64);
    each_sum<kM, kN>([]<int m, int n>() { Tiles::template multiply<m, n>(); });
  }
  each_sum<kM, kN>([&]<int m, int n>() { Tiles::template store_sum<m, n>(at(m, n), kBlockTokens * 4); });
}

// acc of kM tiles of vectors by kN tiles of dims from `first` on += weights by V.
template <class Tiles, int kM, int kN>
void sum_tiles(const Tile<DotTiles<Tiles>>& t, const Block& block, int64_t first) {
  const auto at = [&](int m, int n) { return t.acc + m * kTileRows * t.dim + first + n * kTokens; };
  each_sum<kM, kN>([&]<int m, int n>() { Tiles::template load_sum<m, n>(at(m, n), t.dim * 4); });
  for (int64_t page = 0; page < block.pages; ++page) {
    Tiles::template load_left<0>(t.weights + page * kTokens, kBlockTokens * 2);
    if constexpr (kM > 1) Tiles::template load_left<1>(t.weights + kTileRows * kBlockTokens + page * kTokens, kBlockTokens * 2);
    Tiles::template load_right<0>(block.v[page] + first * 4, t.dim * 4);
    if constexpr (kN > 1) Tiles::template load_right<1>(block.v[page] + (first + kTokens) * 4, t.dim * 4);
    each_sum<kM, kN>([]<int m, int n>() { Tiles::template multiply<m, n>(); });
  }
  each_sum<kM, kN>([&]<int m, int n>() { Tiles::template store_sum<m, n>(at(m, n), t.dim * 4); });
}

template <class Tiles, int kM>
void score_block_tiles(const Tile<DotTiles<Tiles>>& t, const Block& block, int64_t begin, int64_t end, int64_t depth) {
  Tiles::configure(depth);
  int64_t page = 0;
  for (; page + 2 <= block.pages; page += 2) score_tiles<Tiles, kM, 2>(t, block, page, begin, end, depth);
  if (page < block.pages) score_tiles<Tiles, kM, 1>(t, block, page, begin, end, depth);
}

template <class Tiles>
void score_block(const Tile<DotTiles<Tiles>>& t, const Block& block) {
  const int64_t whole = t.dim / (2 * kFullDepth) * (2 * kFullDepth);
  const auto score = t.vectors > kTileRows ? score_block_tiles<Tiles, 2> : score_block_tiles<Tiles, 1>;
  if (whole > 0) score(t, block, 0, whole, kFullDepth);
  if (whole < t.dim) score(t, block, whole, t.dim, kHalfDepth);
}

template <class Tiles, int kM>
void sum_block_tiles(const Tile<DotTiles<Tiles>>& t, const Block& block) {
  Tiles::configure(kHalfDepth);
  int64_t d = 0;
  for (; d + 2 * kTokens <= t.dim; d += 2 * kTokens) sum_tiles<Tiles, kM, 2>(t, block, d);
  if (d < t.dim) sum_tiles<Tiles, kM, 1>(t, block, d);
}

template <class Tiles>
void sum_block(const Tile<DotTiles<Tiles>>& t, const Block& block) {
  for (int64_t m = 0; m < t.vectors; ++m) {
    float* acc = t.acc + m * t.dim;
    for (int64_t d = 0; d < t.dim; d += kWidth) store(acc + d, mul(load(acc + d), all(t.shrink[m])));
  }
  (t.vectors > kTileRows ? sum_block_tiles<Tiles, 2> : sum_block_tiles<Tiles, 1>)(t, block);
}

// Blocks of bf16 pages on tiles, everything else as AVX-512 bf16 does it.
template <class Tiles>
void tile_attention(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, float* scratch) {
  if (p.pages.dtype == DType::bfloat16 && has_kernel(p, task) && is_block(p, task)) {
    block_task<DotTiles<Tiles>>(p, task, scratch);
  } else {
    avx512bf16_kernels.attention(p, task, next, scratch);
  }
}

template <class Tiles>
constexpr Kernels tile_kernels(const char* name) {
  return {name,
          tile_attention<Tiles>,
          ref::attention_merge,
          [](const KvStoreParams& p, int64_t begin, int64_t end) { avx512bf16_kernels.kv_store(p, begin, end); },
          [](const NormParams& p, int64_t begin, int64_t end) { avx512bf16_kernels.rms_norm(p, begin, end); },
          [](const NormParams& p, int64_t begin, int64_t end) { avx512bf16_kernels.layer_norm(p, begin, end); },
          [](const RopeParams& p, int64_t begin, int64_t end) { avx512bf16_kernels.rope(p, begin, end); },
          [](const SiluMulParams& p, int64_t begin, int64_t end) { avx512bf16_kernels.silu_mul(p, begin, end); },
          [](const LinearParams& p, int64_t begin, int64_t end) { avx512bf16_kernels.linear(p, begin, end); },
          0};
}

}  // namespace
}  // namespace hetserve
