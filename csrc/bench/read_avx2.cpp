// Read loops of 32 bytes at a time.
#include <immintrin.h>

#include "bench/read_loops.h"

namespace hetserve::bench {
namespace {

using Vector = __m256i;
inline Vector load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Vector mix(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
inline uint64_t fold(Vector a) {
  return static_cast<uint64_t>(_mm256_extract_epi64(a, 0) + _mm256_extract_epi64(a, 1) + _mm256_extract_epi64(a, 2) + _mm256_extract_epi64(a, 3));
}

}  // namespace
}  // namespace hetserve::bench

#include "bench/read_loop.h"

namespace hetserve::bench {

extern const ReadLoop read_avx2[];
const ReadLoop read_avx2[] = {
    {"avx2, 1 stream, hardware prefetch", read_all<1, 0>},
    {"avx2, 1 stream, 2048 ahead", read_all<1, 2048>},
    {"avx2, 4 streams, 1024 ahead", read_all<4, 1024>},
    {"avx2, 8 streams, hardware prefetch", read_all<8, 0>},
};

}  // namespace hetserve::bench
