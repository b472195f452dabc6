// AMX tiles for prefill attention: compiled with those flags, and run only on CPUs that have them.
#include "cpu/vec_avx512.h"
// vec first: the rest is written in its terms.
#include "cpu/attention_tiles.h"
#include "cpu/tiles_amx.h"
#include "cpu/tiles_emulated.h"

namespace hetserve {
namespace {

// One product of whole and of half depth, on `Tiles`. sums: [16, 16].
template <class Tiles>
void sample_product(float* sums) {
  bf16 left[16][32], right[16][32];
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 32; ++column) {
      from_float(static_cast<float>(row - column), &left[row][column]);
      from_float(static_cast<float>(3 * row - 2 * column), &right[row][column]);
    }
  }
  Tiles::configure(kFullDepth);
  Tiles::template zero<1, 1>();
  Tiles::template load_left<1>(left, 64);
  Tiles::template load_right<1>(right, 64);
  Tiles::template multiply<1, 1>();
  Tiles::template store_sum<1, 1>(sums, 64);
  Tiles::configure(kHalfDepth);
  Tiles::template load_sum<0, 1>(sums, 64);
  Tiles::template load_left<0>(left, 64);
  Tiles::template load_right<1>(right, 64);
  Tiles::template multiply<0, 1>();
  Tiles::template store_sum<0, 1>(sums, 64);
  Tiles::release();
}

}  // namespace

extern const Kernels amx_kernels;
const Kernels amx_kernels = tile_kernels<AmxTiles>("amx");

// Whether the CPU's tiles multiply as the emulated ones do (whole numbers: exactly). Call it only where AMX may be used.
bool amx_tiles_work();
bool amx_tiles_work() {
  float real[256] = {}, emulated[256] = {};
  sample_product<AmxTiles>(real);
  sample_product<EmulatedTiles>(emulated);
  return std::memcmp(real, emulated, sizeof real) == 0;
}

}  // namespace hetserve
