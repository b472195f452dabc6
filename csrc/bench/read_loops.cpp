// Which read loops this CPU can run.
#include "bench/read_loops.h"

namespace hetserve::bench {

extern const ReadLoop read_avx2[4];
extern const ReadLoop read_avx512[6];

std::vector<ReadLoop> read_loops() {
  std::vector<ReadLoop> loops;
  if (__builtin_cpu_supports("avx2")) {
    for (const ReadLoop& loop : read_avx2) loops.push_back(loop);
  }
  if (__builtin_cpu_supports("avx512f")) {
    for (const ReadLoop& loop : read_avx512) loops.push_back(loop);
  }
  return loops;
}

}  // namespace hetserve::bench
