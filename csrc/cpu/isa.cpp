// The table of instruction sets and the choice among them. The only place of the kernels that reads the environment.
#include "hetserve/isa.h"

#include <atomic>
#include <cstdlib>

#include "cpu/isas.h"
#include "hetserve/check.h"

namespace hetserve {
namespace {

const Kernels* best() {
  const Kernels* found = nullptr;
  for (const Isa& isa : isas()) {
    if (!isa.for_tests && isa.usable()) found = isa.kernels;
  }
  return found;
}

const Kernels* named(const std::string& name) {
  std::ostringstream usable;
  for (const Isa& isa : isas()) {
    if (!isa.usable()) continue;
    if (name == isa.kernels->name) return isa.kernels;
    if (!isa.for_tests) usable << (usable.tellp() > 0 ? ", " : "") << isa.kernels->name;
  }
  fail_check("usable", __FILE__, __LINE__, "instruction set '", name, "' is unknown, not built or not usable on this CPU; usable: ", usable.str());
}

// Starts as the choice of the environment, on first use: an unusable HETSERVE_ISA fails the import, not the program's start.
std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen = [] {
    const char* forced = std::getenv("HETSERVE_ISA");
    return forced == nullptr || *forced == '\0' ? best() : named(forced);
  }();
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

void use_isa(const std::string& name) {
  current() = named(name);
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) {
    if (!isa.for_tests && isa.usable()) names.emplace_back(isa.kernels->name);
  }
  return names;
}

}  // namespace hetserve
