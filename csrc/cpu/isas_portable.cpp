// A processor without vector kernels: ref alone.
#include "cpu/isas.h"

namespace hetserve {

const std::vector<Isa>& isas() {
  static const std::vector<Isa> table = {{&ref_kernels, [] { return true; }}};
  return table;
}

}  // namespace hetserve
