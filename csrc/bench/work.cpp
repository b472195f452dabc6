// Builds what is timed. Sequences of equal length; a request's heads get their pages block by block, as a controller hands them out.
#include "bench/work.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

#include "hetserve/run.h"

namespace hetserve::bench {
namespace {

constexpr int64_t kPageTokens = 16;
constexpr int64_t kHuge = 2 << 20;

template <class T>
void fill(T* to, int64_t n, std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < n; ++i) from_float(normal(random), to + i);
}

void fill_bytes(uint8_t* to, int64_t bytes, DType dtype, std::mt19937& random) {
  if (dtype == DType::float32) {
    fill(reinterpret_cast<float*>(to), bytes / 4, random);
  } else {
    fill(reinterpret_cast<bf16*>(to), bytes / 2, random);
  }
}

// Shuffles groups of `heads` pages, each of which stays together.
void shuffle_rows(std::vector<int32_t>& order, int64_t heads, std::mt19937& random) {
  std::vector<int32_t> rows(order.size() / heads);
  std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(rows.begin(), rows.end(), random);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(rows[i / heads] * heads + i % heads);
}

// Page id of (sequence, head, block of tokens).
std::vector<int32_t> page_table(const Shape& s, std::mt19937& random) {
  const int64_t blocks = s.tokens / kPageTokens;
  std::vector<int32_t> order(s.batch * s.kv_heads * blocks);
  std::iota(order.begin(), order.end(), 0);
  if (s.order == "shuffled") std::shuffle(order.begin(), order.end(), random);
  if (s.order == "rows") shuffle_rows(order, s.kv_heads, random);
  std::vector<int32_t> table(order.size());
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.kv_heads; ++h) {
      for (int64_t i = 0; i < blocks; ++i) table[(b * s.kv_heads + h) * blocks + i] = order[(b * blocks + i) * s.kv_heads + h];
    }
  }
  return table;
}

}  // namespace

double Shape::layer_flops() const {
  const double seen = static_cast<double>(rows) * static_cast<double>(tokens - rows) + static_cast<double>(rows) * static_cast<double>(rows + 1) / 2;
  return 4.0 * static_cast<double>(batch * q_heads * head_dim) * seen;
}

Memory::Memory(int64_t bytes, bool huge) : bytes_(bytes), mapped_bytes_(bytes + kHuge) {
  void* at = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::runtime_error("no memory for " + std::to_string(bytes) + " bytes");
  mapped_ = static_cast<uint8_t*>(at);
  data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(mapped_) + kHuge - 1) / kHuge * kHuge);
  madvise(data_, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

Memory::~Memory() { munmap(mapped_, mapped_bytes_); }

void fill_random(const Memory& memory, DType dtype) {
  std::mt19937 random(1);
  std::vector<uint8_t> pattern(4'000'000);  // no multiple of a page: repeats fall elsewhere in each
  fill_bytes(pattern.data(), static_cast<int64_t>(pattern.size()), dtype, random);
  for (int64_t at = 0; at < memory.bytes(); at += static_cast<int64_t>(pattern.size())) {
    std::memcpy(memory.data() + at, pattern.data(), std::min<int64_t>(static_cast<int64_t>(pattern.size()), memory.bytes() - at));
  }
}

Work::Work(const Shape& s, const Memory& memory) : shape(s) {
  if (s.tokens % kPageTokens != 0 || s.q_heads % s.kv_heads != 0 || s.rows > s.tokens || memory.bytes() < s.layer_bytes() * s.layers) {
    throw std::runtime_error("tokens must be a multiple of 16, q heads of kv heads, and the memory must hold the layers");
  }
  std::mt19937 random(2);
  page_ids = page_table(s, random);
  const int64_t blocks = s.tokens / kPageTokens;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.kv_heads; ++h) {
      items.push_back({static_cast<int32_t>(b * s.rows), static_cast<int32_t>(s.rows), static_cast<int32_t>(h),
                       static_cast<int32_t>((b * s.kv_heads + h) * blocks), static_cast<int32_t>(s.tokens), 0});
    }
  }
  plan = split(items.data(), static_cast<int64_t>(items.size()), page_ids.data(), kPageTokens, s.group(), s.threads);
  partials.resize(plan.partials * (s.head_dim + 2));
  q.resize(s.batch * s.rows * s.q_heads * s.head_dim * dtype_bytes(s.dtype));
  out.resize(q.size());
  fill_bytes(q.data(), static_cast<int64_t>(q.size()), s.dtype, random);
  params.pages = {memory.data(), s.layers, static_cast<int64_t>(page_ids.size()), kPageTokens, s.head_dim, s.dtype, Layout::packed};
  params.q = q.data();
  params.out = out.data();
  params.page_ids = page_ids.data();
  params.heads = plan.heads.data();
  params.partials = partials.data();
  params.q_stride = params.out_stride = s.q_heads * s.head_dim;
  params.group = s.group();
  params.scale = 0.25f;  // twice what head_dim 64 asks for: a softmax with peaks, so that a wrong score shows
}

void Work::run(int64_t layer) {
  params.layer = layer;
  run_attention(params, plan);
}

std::vector<float> Work::result() const {
  std::vector<float> values(out.size() / dtype_bytes(shape.dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = shape.dtype == DType::float32 ? reinterpret_cast<const float*>(out.data())[i] : to_float(reinterpret_cast<const bf16*>(out.data())[i]);
  }
  return values;
}

}  // namespace hetserve::bench
