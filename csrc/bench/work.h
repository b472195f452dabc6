// Memory and attention work to time: a pool of random KV over fresh pages, and a batch of sequences that fills it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hetserve/plan.h"

namespace hetserve::bench {

// What is timed. The pool is as large as one layer of the batch, times `layers`.
struct Shape {
  int64_t batch = 32;    // sequences
  int64_t rows = 1;      // new tokens of each: 1 is decode
  int64_t tokens = 2048;  // of context, the new ones included
  int64_t q_heads = 16;
  int64_t kv_heads = 8;
  int64_t head_dim = 64;
  DType dtype = DType::bfloat16;
  int64_t layers = 1;
  std::string order = "blocks";  // of pages: "blocks" as a controller hands them out at first; "rows": those of one block of tokens together; "shuffled"
  int threads = 1;

  int64_t group() const { return q_heads / kv_heads; }
  int64_t layer_bytes() const { return 2 * batch * kv_heads * tokens * head_dim * dtype_bytes(dtype); }
  // Multiply-adds counted as two, visible tokens only.
  double layer_flops() const;
};

// Fresh anonymous memory, on huge pages or not, returned to the system at the end.
class Memory {
 public:
  Memory(int64_t bytes, bool huge);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_;
  uint8_t* mapped_;
  int64_t bytes_;
  int64_t mapped_bytes_;
};

// One step over a pool in `memory`; run(layer) writes out.
struct Work {
  Shape shape;
  AttentionParams params{};
  SplitPlan plan;
  std::vector<AttentionItem> items;
  std::vector<int32_t> page_ids;
  std::vector<uint8_t> q, out;
  std::vector<float> partials;

  Work(const Shape& shape, const Memory& memory);
  void run(int64_t layer);
  std::vector<float> result() const;
};

// Fills memory with elements of a normal distribution.
void fill_random(const Memory& memory, DType dtype);

}  // namespace hetserve::bench
