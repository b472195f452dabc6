// What the CUDA side offers to bind. A build without CUDA links no_cuda.cpp instead: another file, never an #ifdef at a call site.
#pragma once

namespace hetserve {

bool cuda_built();

// Called for a tensor that is not on the CPU when a CPU tensor was expected; throws std::invalid_argument.
[[noreturn]] void refuse_device(const char* argument);

}  // namespace hetserve
