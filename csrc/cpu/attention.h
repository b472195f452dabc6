// Which attention kernel runs a task. Packed pages of 16 tokens and head dims that are multiples of 16 are ours, anything else is ref's.
#pragma once

#include "cpu/attention_block.h"
#include "cpu/attention_stream.h"

namespace hetserve {
namespace {

constexpr int64_t kReadLimited = 8;  // query vectors of a head, up to which reading its pages takes longer than the arithmetic

template <class Dot>
void run_task(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, float* scratch) {
  if (task.n_heads == 1 && task.n_rows * p.group > kReadLimited) {
    block_task<Dot>(p, task, scratch);
  } else {
    stream_task<Dot>(p, task, next, scratch);
  }
}

void attention(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, float* scratch) {
  const Pages& g = p.pages;
  const bool ours = g.layout == Layout::packed && g.page_tokens == kTokens && g.head_dim % kTokens == 0 && g.head_dim <= kMaxDim &&
                    task.n_rows * p.group <= kBlockVectors;
  if (ours) {
    (g.dtype == DType::float32 ? run_task<DotFloat> : run_task<DotBf16>)(p, task, next, scratch);
  } else {
    ref::attention(p, task, next, scratch);
  }
}

}  // namespace
}  // namespace hetserve
