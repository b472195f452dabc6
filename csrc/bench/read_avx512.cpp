// Read loops of 64 bytes at a time.
#include <immintrin.h>

#include "bench/read_loops.h"

namespace hetserve::bench {
namespace {

using Vector = __m512i;
inline Vector load(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Vector mix(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
inline uint64_t fold(Vector a) { return static_cast<uint64_t>(_mm512_reduce_add_epi64(a)); }

}  // namespace
}  // namespace hetserve::bench

#include "bench/read_loop.h"

namespace hetserve::bench {

extern const ReadLoop read_avx512[];
const ReadLoop read_avx512[] = {
    {"avx512, 1 stream, hardware prefetch", read_all<1, 0>},   {"avx512, 1 stream, 2048 ahead", read_all<1, 2048>},
    {"avx512, 2 streams, hardware prefetch", read_all<2, 0>},  {"avx512, 2 streams, 2048 ahead", read_all<2, 2048>},
    {"avx512, 8 streams, hardware prefetch", read_all<8, 0>},  {"avx512, 8 streams, 1024 ahead", read_all<8, 1024>},
};

}  // namespace hetserve::bench
