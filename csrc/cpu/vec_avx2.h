// Eight floats, for units compiled with AVX2 and FMA. The same names as in vec_avx512.h; everything has internal linkage.
#pragma once

#include <immintrin.h>

#include "hetserve/dtype.h"

namespace hetserve {
namespace {

using F = __m256;
constexpr int kWidth = 8;
constexpr int kRegisters = 16;

inline F zero() { return _mm256_setzero_ps(); }
inline F all(float x) { return _mm256_set1_ps(x); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
// A NaN in b comes out, one in a does not.
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }

inline float sum(F a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

inline float largest(F a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline float lane0(F a) { return _mm256_cvtss_f32(a); }

inline F widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }

// To nearest, ties to even; a NaN stays a quiet NaN.
inline __m128i narrow(F x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(near), _mm256_castsi256_ps(quiet), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline F load(const float* from) { return _mm256_loadu_ps(from); }
inline F load(const bf16* from) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline void store(float* to, F x) { _mm256_storeu_ps(to, x); }
inline void store(bf16* to, F x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(x)); }

// The first n lanes (n <= 8); the others are zero, and not touched in memory.
template <class T>
inline F load(const T* from, int64_t n) {
  T buffer[kWidth] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = from[i];
  return load(buffer);
}

template <class T>
inline void store(T* to, F x, int64_t n) {
  T buffer[kWidth];
  store(buffer, x);
  for (int64_t i = 0; i < n; ++i) to[i] = buffer[i];
}

// Lanes begin <= lane < end of x; the others are `fill`.
inline F keep(F x, int64_t begin, int64_t end, float fill) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(begin)), lane);
  const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), lane);
  return _mm256_blendv_ps(all(fill), x, _mm256_castsi256_ps(_mm256_andnot_si256(before, inside)));
}

// Whether a lane of a is greater than b's; a NaN is not.
inline bool any_greater(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }

// 2^n for whole n in [-200, 128], infinity at 128; 0 below float's normal range.
inline F power_of_two(F n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_max_ps(n, all(-127.0f))), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

inline F nearest(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// What a KV vector of bf16 pairs holds: the first elements of each pair, and the second.
inline __m256i pairs_at(const bf16* pairs) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)); }
inline F firsts(const bf16* pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs_at(pairs), 16)); }
inline F seconds(const bf16* pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs_at(pairs), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

// kWidth elements of `from` to the first (odd = 0) or second (odd = 1) elements of pairs; the others are not written: another thread may own them.
inline void store_in_pairs(bf16* pairs, const bf16* from, int64_t odd) {
  for (int i = 0; i < kWidth; ++i) pairs[2 * i + odd] = from[i];
}

}  // namespace
}  // namespace hetserve
