// Which kernels run: one table per instruction set, chosen when the library is loaded.
#pragma once

#include <string>
#include <vector>

#include "hetserve/ops.h"

namespace hetserve {

// The table in use. Set when the library is loaded: HETSERVE_ISA if it is set, else the best this CPU and this build have.
const Kernels& kernels();

// Takes the table of that name from now on. Throws std::invalid_argument for a name that is unknown, not built, or not usable on this CPU.
void use_isa(const std::string& name);

// Names usable here, slowest first; "ref" is always there.
std::vector<std::string> usable_isas();

}  // namespace hetserve
