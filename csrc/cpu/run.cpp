// Deals rows and attention tasks to threads. Small ops stay on the calling thread: waking a sleeping pool costs more than they take.
#include "hetserve/run.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "hetserve/isa.h"
#include "hetserve/parallel.h"

namespace hetserve {
namespace {

constexpr int64_t kThreadBytes = 128 * 1024;  // memory touched that is worth one more thread

// kernel(p, begin, end) over [0, rows) in even parts.
template <class P>
void over_rows(void (*kernel)(const P&, int64_t, int64_t), const P& p, int64_t rows, int64_t bytes_per_row) {
  const int64_t worth = rows * bytes_per_row / kThreadBytes;
  const int64_t parts = std::min<int64_t>(std::min<int64_t>(worth, rows), worth > 1 ? max_threads() : 1);
  if (parts <= 1) {
    kernel(p, 0, rows);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel(static_cast<int>(parts), [&](int) {
    for (int64_t i = next++; i < parts; i = next++) kernel(p, rows * i / parts, rows * (i + 1) / parts);
  });
}

template <class P>
int64_t page_move_bytes(const P& p, const Pages& pages) {
  return 4 * half_page_bytes(pages) * (p.last_layer - p.first_layer);
}

// Whether the table in use has a device, which then has run the op.
template <class P>
bool on_device(void (*DeviceOps::*op)(const P&, Stream), const P& p) {
  const DeviceOps* device = kernels().device;
  if (device != nullptr) (device->*op)(p, nullptr);
  return device != nullptr;
}

// Kept from call to call: the pool's threads live as long as the process, and fresh pages every step would cost more than small attention.
float* thread_scratch() {
  struct alignas(64) Scratch {
    float floats[kAttentionScratchFloats];
  };
  static thread_local std::unique_ptr<Scratch> scratch;
  if (!scratch) scratch.reset(new Scratch);
  return scratch->floats;
}

}  // namespace

void run_attention(const AttentionParams& p, const SplitPlan& plan) {
  const Kernels& k = kernels();
  if (k.device != nullptr) {
    const int32_t counts[] = {static_cast<int32_t>(plan.tasks.size()), static_cast<int32_t>(plan.merges.size())};
    k.device->attention(p, {plan.tasks.data(), plan.merges.data(), counts, counts[0], counts[1]}, nullptr);
    return;
  }
  std::atomic<size_t> next{0};
  parallel(std::min<int>(plan.threads, static_cast<int>(plan.tasks.size())), [&](int) {
    float* scratch = thread_scratch();
    for (size_t i = next++, after; i < plan.tasks.size(); i = after) {
      after = next++;
      k.attention(p, plan.tasks[i], after < plan.tasks.size() ? &plan.tasks[after] : nullptr, scratch);
    }
  });
  if (plan.merges.empty()) return;
  std::atomic<size_t> next_merge{0};
  parallel(std::min<int>(plan.threads, static_cast<int>(plan.merges.size())), [&](int) {
    for (size_t i = next_merge++; i < plan.merges.size(); i = next_merge++) k.attention_merge(p, plan.merges[i]);
  });
}

void run_kv_store(const KvStoreParams& p) {
  if (on_device(&DeviceOps::kv_store, p)) return;
  over_rows(kernels().kv_store, p, p.rows, 8 * p.kv_heads * p.pages.head_dim * dtype_bytes(p.pages.dtype));
}

void run_page_copy(const PageCopyParams& p) {
  if (on_device(&DeviceOps::page_copy, p)) return;
  over_rows(ref::page_copy, p, p.n, page_move_bytes(p, p.src));
}

void run_page_gather(const PageRowsParams& p) {
  if (on_device(&DeviceOps::page_gather, p)) return;
  over_rows(ref::page_gather, p, p.n, page_move_bytes(p, p.pages));
}

void run_page_scatter(const PageRowsParams& p) {
  if (on_device(&DeviceOps::page_scatter, p)) return;
  over_rows(ref::page_scatter, p, p.n, page_move_bytes(p, p.pages));
}

void run_heads_pack(const HeadsParams& p) {
  if (on_device(&DeviceOps::heads_pack, p)) return;
  over_rows(ref::heads_pack, p, p.m, 2 * p.span_bytes);
}

void run_heads_unpack(const HeadsParams& p) {
  if (on_device(&DeviceOps::heads_unpack, p)) return;
  over_rows(ref::heads_unpack, p, p.m, 2 * p.span_bytes);
}

void run_rms_norm(const NormParams& p) {
  if (on_device(&DeviceOps::rms_norm, p)) return;
  over_rows(kernels().rms_norm, p, p.rows, 2 * p.heads * p.dim * dtype_bytes(p.dtype));
}

void run_layer_norm(const NormParams& p) {
  if (on_device(&DeviceOps::layer_norm, p)) return;
  over_rows(kernels().layer_norm, p, p.rows, 2 * p.heads * p.dim * dtype_bytes(p.dtype));
}

void run_rope(const RopeParams& p) {
  if (on_device(&DeviceOps::rope, p)) return;
  over_rows(kernels().rope, p, p.rows, 2 * (p.q_heads + p.kv_heads) * p.head_dim * dtype_bytes(p.dtype));
}

void run_silu_mul(const SiluMulParams& p) {
  if (on_device(&DeviceOps::silu_mul, p)) return;
  over_rows(kernels().silu_mul, p, p.rows, 3 * p.n * dtype_bytes(p.dtype));
}

void run_argmax(const ArgmaxParams& p) { on_device(&DeviceOps::argmax, p); }

void run_linear(const LinearParams& p) { over_rows(kernels().linear, p, p.outputs / kLinearColumns, 2 * kLinearColumns * p.inputs); }

}  // namespace hetserve
