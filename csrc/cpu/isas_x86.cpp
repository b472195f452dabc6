// x86-64: ref, AVX2, AVX-512, and AVX-512 with bf16 products.
#include "cpu/isas.h"

namespace hetserve {

extern const Kernels avx2_kernels, avx512_kernels, avx512bf16_kernels;

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> table = {
      {&ref_kernels, [] { return true; }},
      {&avx2_kernels, has_avx2},
      {&avx512_kernels, has_avx512},
      {&avx512bf16_kernels, has_avx512bf16},
  };
  return table;
}

}  // namespace hetserve
