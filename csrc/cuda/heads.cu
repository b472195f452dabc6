// Head groups of chosen rows, packed for sending and put back: a thread moves 16, 4 or 2 bytes, as all addresses allow.
#include "common.cuh"
#include "ops.h"

namespace hetserve::cuda {
namespace {

template <class Piece, bool pack>
__global__ void heads_kernel(const HeadsParams p) {
  const int64_t bytes = dtype_bytes(p.dtype), i = blockIdx.x, row = p.pairs[2 * i], head = p.pairs[2 * i + 1];
  Piece* x = reinterpret_cast<Piece*>(static_cast<uint8_t*>(p.x) + row * p.x_stride * bytes + head * p.span_bytes);
  Piece* packed = reinterpret_cast<Piece*>(static_cast<uint8_t*>(p.packed) + i * p.packed_stride * bytes);
  for (int64_t at = first_item(); at < p.span_bytes / static_cast<int64_t>(sizeof(Piece)); at += item_stride()) {
    if constexpr (pack) {
      packed[at] = x[at];
    } else {
      x[at] = packed[at];
    }
  }
}

template <bool pack>
void move_heads(const HeadsParams& p, Stream stream) {
  const int64_t bytes = dtype_bytes(p.dtype);
  const auto all_fit = [&](int64_t piece) {
    return p.span_bytes % piece == 0 && p.x_stride * bytes % piece == 0 && p.packed_stride * bytes % piece == 0 && aligned(p.x, piece) && aligned(p.packed, piece);
  };
  const auto run = [&](auto piece) {
    using Piece = decltype(piece);
    const int64_t pieces = p.span_bytes / static_cast<int64_t>(sizeof(Piece));
    const int threads = static_cast<int>(std::clamp<int64_t>((pieces + kWarp - 1) / kWarp * kWarp, kWarp, kThreads));
    launch(heads_kernel<Piece, pack>, dim3(static_cast<unsigned>(p.m)), threads, 0, stream, p);
  };
  if (all_fit(16)) {
    run(uint4{});
  } else if (all_fit(4)) {
    run(uint32_t{});
  } else {
    run(uint16_t{});
  }
}

}  // namespace

void heads_pack(const HeadsParams& p, Stream stream) { move_heads<true>(p, stream); }

void heads_unpack(const HeadsParams& p, Stream stream) { move_heads<false>(p, stream); }

}  // namespace hetserve::cuda
