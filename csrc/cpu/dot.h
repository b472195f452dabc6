// How a KV vector is multiplied into float accumulators: one struct per element type and instruction, all of one shape.
//   Kv: element of a page; Weight: element of the left operand (a row of q, or of softmax weights); pair: elements per 4 bytes of KV.
//   Operand load(const Kv*): kWidth * pair elements; step(acc, weights, operand): acc[lane] += sum over pair of weight * element.
//   rows: query vectors are padded to a multiple of it; Session: lives as long as a block task.
#pragma once

#include "hetserve/dtype.h"

namespace hetserve {
namespace {

struct DotFloat {
  using Kv = float;
  using Weight = float;
  static constexpr int64_t pair = 1;
  static constexpr int64_t rows = 1;
  struct Session {};
  struct Operand {
    F x;
  };
  struct Spread {
    F x;
  };
  static inline Operand load(const float* from) { return {hetserve::load(from)}; }
  static inline Spread spread(const float* weight) { return {all(weight[0])}; }
  static inline F step(F acc, const Spread& w, const Operand& b) { return fma(w.x, b.x, acc); }
};

// bf16 pages widened on the fly, float weights.
struct DotWiden {
  using Kv = bf16;
  using Weight = float;
  static constexpr int64_t pair = 2;
  static constexpr int64_t rows = 1;
  struct Session {};
  struct Operand {
    F first, second;
  };
  struct Spread {
    F first, second;
  };
  static inline Operand load(const bf16* from) { return {firsts(from), seconds(from)}; }
  static inline Spread spread(const float* weight) { return {all(weight[0]), all(weight[1])}; }
  static inline F step(F acc, const Spread& w, const Operand& b) { return fma(w.second, b.second, fma(w.first, b.first, acc)); }
};

#ifdef __AVX512BF16__
// bf16 pages and bf16 weights: vdpbf16ps.
struct DotPairs {
  using Kv = bf16;
  using Weight = bf16;
  static constexpr int64_t pair = 2;
  static constexpr int64_t rows = 1;
  struct Session {};
  struct Operand {
    __m512bh x;
  };
  struct Spread {
    __m512bh x;
  };
  static inline Operand load(const bf16* from) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(from))}; }
  static inline Spread spread(const bf16* weight) {
    int bits;
    __builtin_memcpy(&bits, weight, sizeof bits);
    return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits))};
  }
  static inline F step(F acc, const Spread& w, const Operand& b) { return _mm512_dpbf16_ps(acc, b.x, w.x); }
};
using DotBf16 = DotPairs;
#else
using DotBf16 = DotWiden;
#endif

}  // namespace
}  // namespace hetserve
