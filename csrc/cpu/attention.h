// Which attention kernel runs a task.
#pragma once

#include "cpu/attention_block.h"
#include "cpu/attention_stream.h"

namespace hetserve {
namespace {

template <class Dot>
void run_task(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, float* scratch) {
  if (is_block(p, task)) {
    block_task<Dot>(p, task, scratch);
  } else {
    stream_task<Dot>(p, task, next, scratch);
  }
}

void attention(const AttentionParams& p, const AttentionTask& task, const AttentionTask* next, float* scratch) {
  if (has_kernel(p, task)) {
    (p.pages.dtype == DType::float32 ? run_task<DotFloat> : run_task<DotBf16>)(p, task, next, scratch);
  } else {
    ref::attention(p, task, next, scratch);
  }
}

}  // namespace
}  // namespace hetserve
