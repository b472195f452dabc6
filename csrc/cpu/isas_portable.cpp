// A processor without vector kernels: ref alone.
#include "cpu/isas.h"

namespace hetserve {

extern const Kernels cuda_emulated_kernels;

const std::vector<Isa>& isas() {
  static const std::vector<Isa> table = {{&ref_kernels, [] { return true; }}, {&cuda_emulated_kernels, [] { return true; }, true}};
  return table;
}

}  // namespace hetserve
