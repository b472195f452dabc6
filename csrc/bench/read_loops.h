// Read loops: the fastest of them is this core's read bandwidth, the denominator of what the attention kernels reach.
#pragma once

#include <cstdint>
#include <vector>

namespace hetserve::bench {

struct ReadLoop {
  const char* name;  // vector width, streams read side by side, bytes fetched ahead
  uint64_t (*read)(const uint8_t* data, int64_t bytes);  // every byte once; the result only keeps the reads from being dropped
};

// Those this CPU can run.
std::vector<ReadLoop> read_loops();

}  // namespace hetserve::bench
