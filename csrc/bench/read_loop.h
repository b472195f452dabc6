// One read loop, for units that define Vector, load, mix and fold for their instruction set. Everything has internal linkage.
#pragma once

#include <cstdint>

namespace hetserve::bench {
namespace {

// `streams` parts of the memory read side by side, four cache lines of each at a time.
template <int streams, int ahead>
uint64_t read_all(const uint8_t* data, int64_t bytes) {
  constexpr int64_t kStep = 256;
  const int64_t part = bytes / streams / kStep * kStep;
  Vector sums[4] = {};
  for (int64_t at = 0; at < part; at += kStep) {
    for (int s = 0; s < streams; ++s) {
      const uint8_t* from = data + s * part + at;
      for (int64_t line = 0; line < kStep; line += 64) {
        if (ahead > 0) __builtin_prefetch(from + line + ahead, 0, 2);
        for (int64_t i = 0; i < 64; i += sizeof(Vector)) sums[(line / 64) % 4] = mix(sums[(line / 64) % 4], load(from + line + i));
      }
    }
  }
  for (int64_t at = streams * part; at + static_cast<int64_t>(sizeof(Vector)) <= bytes; at += sizeof(Vector)) sums[0] = mix(sums[0], load(data + at));
  return fold(mix(mix(sums[0], sums[1]), mix(sums[2], sums[3])));
}

}  // namespace
}  // namespace hetserve::bench
