// Products of few rows with a weight: limited by the reading of the weight, which a row more hardly slows as long as its sums stay in registers.
// For units with bf16 products. Weights stream once, in order; rows beyond one group of sums find them in the cache.
#pragma once

#include <algorithm>

#include "cpu/dot.h"
#include "hetserve/params.h"

namespace hetserve {
namespace {

constexpr int kVectors = kLinearColumns / kWidth;                 // of one row's sums
constexpr int kGroupRows = (kRegisters - kVectors) / kVectors;    // rows whose sums and one pair's weights fill the registers
constexpr int64_t kBatchRows = 64;                                // rows whose sums are kept at once
constexpr int64_t kAheadBytes = 4096;                             // fetched so far ahead where one group reads everything once
constexpr int64_t kChunkPairs = 256;                              // 64 KiB: read by group after group while the next one is fetched
constexpr int64_t kLine = 64;

// From here on it beats oneDNN no longer. Measured: AMD EPYC (Zen 4), one core, oneDNN of torch 2.13.
constexpr int64_t kLinearRows = 64;

// The lines to fetch meanwhile: `lines` of them from `at`, spread evenly over the pairs. None: what is read is fetched kAheadBytes ahead.
struct Fetch {
  const char* at;
  int64_t lines;
};

// sums[R][64] += x[R][2 * pairs] of those columns.
template <int R, bool alone>
void add_products(const bf16* weight, const bf16* x, int64_t x_stride, int64_t pairs, float* sums, Fetch fetch) {
  F sum[R][kVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load(sums + r * kLinearColumns + v * kWidth);
  }
  int64_t due = 0;
  for (int64_t pair = 0; pair < pairs; ++pair, weight += 2 * kLinearColumns) {
    DotBf16::Operand operand[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      operand[v] = DotBf16::load(weight + 2 * v * kWidth);
      if constexpr (alone) __builtin_prefetch(reinterpret_cast<const char*>(weight + 2 * v * kWidth) + kAheadBytes, 0, 3);
    }
    if constexpr (!alone) {
      for (due += fetch.lines; due >= pairs; due -= pairs, fetch.at += kLine) __builtin_prefetch(fetch.at, 0, 2);
    }
    for (int r = 0; r < R; ++r) {
      const DotBf16::Spread spread = DotBf16::spread(x + r * x_stride + 2 * pair);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = DotBf16::step(sum[r][v], spread, operand[v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) store(sums + r * kLinearColumns + v * kWidth, sum[r][v]);
  }
}

template <bool alone, int R = kGroupRows>
void add_group(int64_t rows, const bf16* weight, const bf16* x, int64_t x_stride, int64_t pairs, float* sums, Fetch fetch) {
  if constexpr (R > 1) {
    if (rows < R) return add_group<alone, R - 1>(rows, weight, x, x_stride, pairs, sums, fetch);
  }
  add_products<R, alone>(weight, x, x_stride, pairs, sums, fetch);
}

// Rows [first, first + rows) of one block of columns.
inline void linear_block(const LinearParams& p, int64_t block, int64_t first, int64_t rows) {
  alignas(64) float sums[kBatchRows * kLinearColumns] = {};
  const bf16* weight = p.weight + block * kLinearColumns * p.inputs;
  const bf16* x = p.x + first * p.x_stride;
  const int64_t groups = (rows + kGroupRows - 1) / kGroupRows, pairs = p.inputs / 2;
  if (groups == 1) add_group<true>(rows, weight, x, p.x_stride, pairs, sums, {});
  for (int64_t pair = 0; groups > 1 && pair < pairs; pair += kChunkPairs) {
    const int64_t n = std::min(kChunkPairs, pairs - pair), lines = n * kVectors;
    const auto* next = reinterpret_cast<const char*>(weight + (pair + n) * 2 * kLinearColumns);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t row = rows * group / groups, line = lines * group / groups;
      add_group<false>(rows * (group + 1) / groups - row, weight + pair * 2 * kLinearColumns, x + row * p.x_stride + 2 * pair, p.x_stride, n,
                       sums + row * kLinearColumns, {next + line * kLine, lines * (group + 1) / groups - line});
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    bf16* out = p.out + (first + row) * p.out_stride + block * kLinearColumns;
    for (int64_t i = 0; i < kLinearColumns; i += kWidth) {
      F y = load(sums + row * kLinearColumns + i);
      if (p.bias != nullptr) y = add(y, load(p.bias + block * kLinearColumns + i));
      store(out + i, p.relu ? max(zero(), y) : y);
    }
  }
}

void linear(const LinearParams& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t row = 0; row < p.rows; row += kBatchRows) linear_block(p, block, row, std::min(kBatchRows, p.rows - row));
  }
}

}  // namespace
}  // namespace hetserve
