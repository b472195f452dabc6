// What a stage's primary sends to its attention workers in each layer of a step, and takes in from them: engine/transport/dispatch.py in two calls.
#pragma once

#include <array>

#include "hetserve/run.h"
#include "net/exchange.h"

namespace hetserve::net {

// One worker's part in a step: its exchange, its (row, head group) pairs, and where their heads lie in the messages. Checked once but for the rows.
class Part {
 public:
  Part(std::shared_ptr<Exchange> exchange, at::Tensor pairs, at::Tensor q, at::Tensor k, at::Tensor v, at::Tensor first, at::Tensor second)
      : exchange_(std::move(exchange)),
        pairs_(std::move(pairs)),
        q_(std::move(q)),
        k_(std::move(k)),
        v_(std::move(v)),
        answers_{std::move(first), std::move(second)} {
    HETSERVE_CHECK(pairs_.scalar_type() == at::kInt && pairs_.dim() == 2 && pairs_.size(1) == 2 && pairs_.is_contiguous() && pairs_.is_cpu(),
                   "pairs: expected contiguous int32 [m, 2], got ", pairs_.scalar_type(), " ", pairs_.sizes());
    check_packed(k_, "k", k_.size(-1));
    check_packed(v_, "v", k_.size(-1));
    check_packed(q_, "q", q_.size(-1));
    for (const at::Tensor& one : answers_) check_packed(one, "answers", q_.size(-1));
    const auto* at = pairs_.const_data_ptr<int32_t>();
    for (int64_t i = 0; i < pairs_.size(0); ++i) {
      HETSERVE_CHECK(at[2 * i] >= 0 && at[2 * i + 1] >= 0, "pairs[", i, "]: (", at[2 * i], ", ", at[2 * i + 1], ")");
      rows_ = std::max<int64_t>(rows_, at[2 * i] + int64_t{1});
      groups_ = std::max<int64_t>(groups_, at[2 * i + 1] + int64_t{1});
    }
  }

  void send(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    if (exchange_->lost()) return;
    run_heads_pack(between(q, q_, "q"));
    run_heads_pack(between(k, k_, "k"));
    run_heads_pack(between(v, v_, "v"));
    try {
      exchange_->send();
    } catch (const PeerLost&) {  // the exchange knows
    }
  }

  // Returns seconds waited.
  double collect(const at::Tensor& out) {
    const auto began = std::chrono::steady_clock::now();
    const at::Tensor& answer = receive();
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - began;
    run_heads_unpack(between(out, answer, "out"));
    return waited.count();
  }

 private:
  void check_packed(const at::Tensor& x, const char* name, int64_t columns) const {
    HETSERVE_CHECK(x.dim() == 2 && x.size(0) == pairs_.size(0) && x.size(1) == columns && columns > 0 && x.is_contiguous() && x.is_cpu(), name,
                   ": expected contiguous [", pairs_.size(0), ", ", columns, "], got ", x.sizes());
    HETSERVE_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, name, ": expected float32 or bfloat16, got ", x.scalar_type());
  }

  // Zeros from a lost worker, in memory of their own: gloo may still hold the answers.
  const at::Tensor& receive() {
    try {
      if (!exchange_->lost()) return answers_[exchange_->receive()];
    } catch (const PeerLost&) {
    }
    if (!zeros_.defined()) zeros_ = at::zeros_like(q_);
    return zeros_;
  }

  HeadsParams between(const at::Tensor& x, const at::Tensor& packed, const char* name) const {
    const int64_t columns = packed.size(1);
    HETSERVE_CHECK(x.scalar_type() == packed.scalar_type() && x.is_cpu(), name, ": expected ", packed.scalar_type(), " on the CPU, got ", x.scalar_type());
    HETSERVE_CHECK(x.dim() == 2 && x.size(0) >= rows_ && x.size(1) >= groups_ * columns && x.size(1) % columns == 0, name, ": is ", x.sizes(), ", pairs name ",
                   rows_, " rows and ", groups_, " head groups of ", columns, " columns");
    HETSERVE_CHECK(x.stride(1) == 1 && (x.size(0) <= 1 || x.stride(0) >= x.size(1)), name, ": rows must be contiguous and apart, strides are ", x.strides());
    const DType dtype = x.scalar_type() == at::kFloat ? DType::float32 : DType::bfloat16;
    return {x.data_ptr(), packed.data_ptr(), pairs_.const_data_ptr<int32_t>(), pairs_.size(0), x.stride(0), columns, columns * dtype_bytes(dtype), dtype};
  }

  const std::shared_ptr<Exchange> exchange_;
  const at::Tensor pairs_;                   // int32 [m, 2]
  const at::Tensor q_, k_, v_;               // T [m, group * head_dim], [m, head_dim], [m, head_dim]: in what is sent
  const std::array<at::Tensor, 2> answers_;  // T [m, group * head_dim]
  at::Tensor zeros_;                         // the same shape
  int64_t rows_ = 0, groups_ = 0;            // what q, k, v and out must have for these pairs
};

class Dispatch {
 public:
  explicit Dispatch(std::vector<std::shared_ptr<Part>> parts) : parts_(std::move(parts)) {}

  void send(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    for (const auto& part : parts_) part->send(q, k, v);
  }

  double collect(const at::Tensor& out) {
    double waited_s = 0;
    for (const auto& part : parts_) waited_s += part->collect(out);
    return waited_s;
  }

 private:
  const std::vector<std::shared_ptr<Part>> parts_;
};

}  // namespace hetserve::net
