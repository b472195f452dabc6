// One step's messages with one peer over a torch process group of two: engine/transport/exchange.py, without Python in between.
// What gloo may still use once a peer is lost, works and tensors, stays here: nothing under way is replaced after that, and nothing is waited for twice.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "hetserve/check.h"

namespace hetserve::net {

// The peer is gone or does not answer in time.
struct PeerLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// This end of a process group of two. Everybody who posts on it shares `lost`: gloo closes the connection on any error.
struct Pair {
  Pair(c10::intrusive_ptr<c10d::Backend> backend, int rank) : group(std::move(backend)), peer(rank) {}

  const c10::intrusive_ptr<c10d::Backend> group;
  const int peer;
  std::atomic<bool> lost{false};
};

// c10d takes 0 ms for no limit.
inline std::chrono::milliseconds as_timeout(double seconds) { return std::chrono::milliseconds(std::max<int64_t>(1, std::llround(1000 * seconds))); }

class Exchange {
 public:
  Exchange(std::shared_ptr<Pair> pair, int tag) : pair_(std::move(pair)), tag_(tag) {}

  bool lost() const { return pair_->lost; }

  void begin(const at::Tensor& outgoing, const at::Tensor& first, const at::Tensor& second, int64_t count, double timeout_s) {
    require_open();
    HETSERVE_CHECK(count >= 1 && left_ == 0, "count: expected at least one message, got ", count, "; ", left_, " of the step before are left");
    for (const at::Tensor* one : {&outgoing, &first, &second}) {
      HETSERVE_CHECK(one->is_contiguous(), "messages: expected contiguous tensors, got strides ", one->strides());
    }
    outgoing_ = {outgoing};
    incoming_[0] = {first};
    incoming_[1] = {second};
    timeout_ = as_timeout(timeout_s);
    left_ = count;
    next_ = 0;
    expect();
  }

  void send() {
    require_open();
    HETSERVE_CHECK(sending_ == nullptr, "the message before is still being sent: receive or finish first");
    use_link([&] { sending_ = pair_->group->send(outgoing_, pair_->peer, tag_); });
  }

  int receive() {
    require_open();
    HETSERVE_CHECK(left_ > 0, "every message of this step was received");
    const int here = next_;
    --left_;
    next_ = 1 - here;
    if (left_ > 0) expect();
    wait(coming_[here]);
    finish();
    return here;
  }

  void finish() {
    if (sending_ != nullptr) wait(sending_);
  }

 private:
  using Work = c10::intrusive_ptr<c10d::Work>;

  void require_open() const {
    if (pair_->lost) throw PeerLost("the link is closed");
  }

  void expect() {
    use_link([&] { coming_[next_] = pair_->group->recv(incoming_[next_], pair_->peer, tag_); });
  }

  void wait(Work& work) {
    require_open();  // after an error, gloo may never finish what else was under way
    use_link([&] {
      if (!work->wait(timeout_)) throw std::runtime_error("the operation was aborted");
    });
    work.reset();
  }

  template <class F>
  void use_link(F use) {
    try {
      use();
    } catch (const std::exception& error) {
      pair_->lost = true;
      const std::string text = error.what();
      throw PeerLost(text.substr(0, text.find('\n')));
    }
  }

  const std::shared_ptr<Pair> pair_;
  const int tag_;
  std::vector<at::Tensor> outgoing_, incoming_[2];  // of one tensor each, as c10d wants it
  Work sending_, coming_[2];
  std::chrono::milliseconds timeout_{};
  int64_t left_ = 0;  // messages to receive
  int next_ = 0;      // of incoming_, the one that is expected
};

}  // namespace hetserve::net
