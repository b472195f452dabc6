// x86-64: ref, AVX2, AVX-512, AVX-512 with bf16 products, and AMX on top of that.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/isas.h"

namespace hetserve {

extern const Kernels avx2_kernels, avx512_kernels, avx512bf16_kernels, amx_kernels, amx_emulated_kernels, cuda_emulated_kernels;
bool amx_tiles_work();

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

// AMX needs the CPU (leaf 7: bf16 and tile bits) and, for the tiles' 8 KiB of state, Linux's permission, which holds for the whole process.
bool has_amx() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 && amx_tiles_work();
}

bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

bool has_avx512bf16_and_amx() { return has_avx512bf16() && has_amx(); }

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> table = {
      {&ref_kernels, [] { return true; }},
      {&cuda_emulated_kernels, [] { return true; }, true},
      {&amx_emulated_kernels, has_avx512bf16, true},
      {&avx2_kernels, has_avx2},
      {&avx512_kernels, has_avx512},
      {&avx512bf16_kernels, has_avx512bf16},
      {&amx_kernels, has_avx512bf16_and_amx},
  };
  return table;
}

}  // namespace hetserve
