// Scattered heads of a row tensor to and from a dense block, for dispatch to other devices. Moves bytes.
#include <cstring>

#include "hetserve/ops.h"

namespace hetserve::ref {
namespace {

uint8_t* in_rows(const HeadsParams& p, int64_t i) {
  const int64_t row = p.pairs[2 * i], head = p.pairs[2 * i + 1];
  return static_cast<uint8_t*>(p.x) + row * p.x_stride * dtype_bytes(p.dtype) + head * p.span_bytes;
}

uint8_t* in_packed(const HeadsParams& p, int64_t i) { return static_cast<uint8_t*>(p.packed) + i * p.packed_stride * dtype_bytes(p.dtype); }

}  // namespace

void heads_pack(const HeadsParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) std::memcpy(in_packed(p, i), in_rows(p, i), p.span_bytes);
}

void heads_unpack(const HeadsParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) std::memcpy(in_rows(p, i), in_packed(p, i), p.span_bytes);
}

}  // namespace hetserve::ref
