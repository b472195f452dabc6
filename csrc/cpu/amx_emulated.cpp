// The AMX kernel with its tiles in memory: what tests run on a CPU with AVX-512 bf16 and no AMX. Never chosen by itself.
#include "cpu/vec_avx512.h"
// vec first: the rest is written in its terms.
#include "cpu/attention_tiles.h"
#include "cpu/tiles_emulated.h"

namespace hetserve {

extern const Kernels amx_emulated_kernels;
const Kernels amx_emulated_kernels = tile_kernels<EmulatedTiles>("amx-emulated");

}  // namespace hetserve
