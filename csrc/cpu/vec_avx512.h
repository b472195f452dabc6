// Sixteen floats, for units compiled with AVX-512. The same names as in vec_avx2.h; everything has internal linkage.
#pragma once

#include <immintrin.h>

#include "hetserve/dtype.h"

namespace hetserve {
namespace {

using F = __m512;
constexpr int kWidth = 16;
constexpr int kRegisters = 32;

inline F zero() { return _mm512_setzero_ps(); }
inline F all(float x) { return _mm512_set1_ps(x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
// A NaN in b comes out, one in a does not.
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline float lane0(F a) { return _mm512_cvtss_f32(a); }
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float largest(F a) { return _mm512_reduce_max_ps(a); }

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }  // n <= 16

inline F widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

#ifdef __AVX512BF16__
inline __m256i narrow(F x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }
#else
// To nearest, ties to even; a NaN stays a quiet NaN.
inline __m256i narrow(F x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i chosen = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), near, quiet);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}
#endif

inline F load(const float* from) { return _mm512_loadu_ps(from); }
inline F load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline void store(float* to, F x) { _mm512_storeu_ps(to, x); }
inline void store(bf16* to, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(x)); }

// The first n lanes (n <= 16); the others are zero, and not touched in memory.
inline F load(const float* from, int64_t n) { return _mm512_maskz_loadu_ps(first(n), from); }
inline F load(const bf16* from, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), from)); }
inline void store(float* to, F x, int64_t n) { _mm512_mask_storeu_ps(to, first(n), x); }
inline void store(bf16* to, F x, int64_t n) { _mm256_mask_storeu_epi16(to, first(n), narrow(x)); }

// Lanes begin <= lane < end of x; the others are `fill`.
inline F keep(F x, int64_t begin, int64_t end, float fill) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 from = _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(static_cast<int>(begin)), _MM_CMPINT_GE);
  const __mmask16 kept = _mm512_mask_cmp_epi32_mask(from, lane, _mm512_set1_epi32(static_cast<int>(end)), _MM_CMPINT_LT);
  return _mm512_mask_blend_ps(kept, all(fill), x);
}

// Whether a lane of a is greater than b's; a NaN is not.
inline bool any_greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

// 2^n for whole n in [-200, 128], infinity at 128; 0 below float's range.
inline F power_of_two(F n) { return _mm512_scalef_ps(all(1.0f), n); }

inline F nearest(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// What a KV vector of bf16 pairs holds: the first elements of each pair, and the second.
inline F firsts(const bf16* pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16)); }
inline F seconds(const bf16* pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// kWidth elements of `from` to the first (odd = 0) or second (odd = 1) elements of pairs; the others are not written: another thread may own them.
inline void store_in_pairs(bf16* pairs, const bf16* from, int64_t odd) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  _mm512_mask_storeu_epi16(pairs, 0x55555555u << odd, _mm512_slli_epi32(wide, static_cast<unsigned>(16 * odd)));
}

}  // namespace
}  // namespace hetserve
