// The table of instruction sets of one processor family; a family without vector kernels has a file with ref alone.
#pragma once

#include <vector>

#include "hetserve/ops.h"

namespace hetserve {

struct Isa {
  const Kernels* kernels;
  bool (*usable)();  // by this CPU and its operating system
  bool for_tests = false;  // taken only when named
};

extern const Kernels ref_kernels;

// Slowest first.
const std::vector<Isa>& isas();

}  // namespace hetserve
