// AttentionPlan and attention for Python. A plan is checked and cut once a step and run once a layer; it copies the page ids it uses,
// so a page table that changes for the next step cannot reach a running one.
#include <algorithm>
#include <atomic>
#include <memory>

#include "bind/pool.h"
#include "hetserve/check.h"
#include "hetserve/device_plan.h"
#include "hetserve/isa.h"
#include "hetserve/parallel.h"
#include "hetserve/plan.h"
#include "hetserve/run.h"

namespace hetserve::bind {
namespace {

constexpr int kMaxThreads = 1024;

struct AttentionPlan {
  std::shared_ptr<const KvPool> pool;
  int64_t rows;
  int64_t q_heads;
  int64_t group;
  std::vector<AttentionItem> items;  // page_begin is into page_ids below
  std::vector<int32_t> page_ids;
  SplitPlan split;
  std::unique_ptr<float[]> partials;
  std::atomic_flag running = ATOMIC_FLAG_INIT;
};

// Marks a plan as running for a scope: its partials belong to one call at a time.
class Running {
 public:
  explicit Running(AttentionPlan& plan) : plan_(plan) {
    HETSERVE_CHECK(!plan.running.test_and_set(std::memory_order_acquire), "plan: is running in another thread");
  }
  ~Running() { plan_.running.clear(std::memory_order_release); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  AttentionPlan& plan_;
};

// Copies the items and the page ids they use; items that share a list (the same page_begin) in a row share the copy.
void take_items(AttentionPlan& plan, const View& items, const View& page_ids) {
  const auto* given = reinterpret_cast<const AttentionItem*>(items.data);
  const auto* ids = reinterpret_cast<const int32_t*>(page_ids.data);
  const int64_t n = items.shape[0], page_tokens = plan.pool->pages.page_tokens;
  plan.items.assign(given, given + n);
  int64_t used = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t pages = (int64_t{plan.items[i].length} + page_tokens - 1) / page_tokens;
    check_item(plan.items[i], i, plan.rows, plan.q_heads, plan.group, pages, page_ids.shape[0]);
    used += pages;
  }
  HETSERVE_CHECK(used <= INT32_MAX, "items: ", used, " pages in one step, at most ", INT32_MAX);
  plan.page_ids.resize(used);
  int64_t at = 0;
  for (AttentionItem& item : plan.items) {
    const int64_t pages = (int64_t{item.length} + page_tokens - 1) / page_tokens;
    std::copy_n(ids + item.page_begin, pages, plan.page_ids.data() + at);
    item.page_begin = static_cast<int32_t>(at);
    at += pages;
  }
  check_page_ids(*plan.pool, plan.page_ids.data(), used, "page_ids");
}

std::unique_ptr<AttentionPlan> make_plan(std::shared_ptr<KvPool> pool, const py::object& items, const py::object& page_ids, int64_t rows,
                                         int64_t q_heads_total, int64_t group, int threads) {
  HETSERVE_CHECK(rows >= 0 && group >= 1 && q_heads_total >= group && q_heads_total % group == 0, "rows ", rows, ", q_heads_total ", q_heads_total,
                 ", group ", group);
  HETSERVE_CHECK(q_heads_total <= INT32_MAX / pool->pages.head_dim, "q_heads_total ", q_heads_total, ": too many");
  HETSERVE_CHECK(threads >= 0 && threads <= kMaxThreads, "threads ", threads, ": expected 0 (all) to ", kMaxThreads);
  const View item_view = as_int32(items, "items", 2);
  HETSERVE_CHECK(item_view.shape[1] == 6, "items: expected [n, 6], got ", shape_text(item_view));
  auto plan = std::make_unique<AttentionPlan>();
  plan->pool = std::move(pool);
  plan->rows = rows;
  plan->q_heads = q_heads_total;
  plan->group = group;
  take_items(*plan, item_view, as_int32(page_ids, "page_ids", 1));
  HETSERVE_CHECK(plan->pool->device == kCpu, "pool: is on a CUDA device: its steps are a DeviceAttentionPlan's");
  HETSERVE_CHECK(kernels().device == nullptr || plan->pool->pages.head_dim <= kDeviceMaxHeadDim, "head_dim ", plan->pool->pages.head_dim, ": at most ",
                 kDeviceMaxHeadDim, " on a device");
  const auto n = static_cast<int64_t>(plan->items.size());
  plan->split = kernels().device != nullptr
                    ? device_split(plan->items.data(), n, group, threads > 0 ? threads : kEmulatedBlocks)
                    : split(plan->items.data(), n, plan->page_ids.data(), plan->pool->pages.page_tokens, group, threads > 0 ? threads : max_threads());
  plan->partials.reset(new float[plan->split.partials * (plan->pool->pages.head_dim + 2)]);
  return plan;
}

Rows plan_rows(const AttentionPlan& plan, const py::object& tensor, const char* name, Use use) {
  const Rows rows = as_rows(tensor, name, use);
  const int64_t columns = plan.q_heads * plan.pool->pages.head_dim;
  HETSERVE_CHECK(rows.rows == plan.rows && rows.columns == columns, name, ": expected [", plan.rows, ", ", columns, "], got [", rows.rows, ", ",
                 rows.columns, "]");
  HETSERVE_CHECK(rows.dtype == plan.pool->pages.dtype, name, ": is ", dtype_name(rows.dtype), ", the pool is ", dtype_name(plan.pool->pages.dtype));
  return rows;
}

void attention(AttentionPlan& plan, int64_t layer, const py::object& q, const py::object& out, float scale, int64_t window) {
  const Call call;
  Call::add(kCpu, "plan");
  check_layer(*plan.pool, layer);
  HETSERVE_CHECK(window >= 0, "window ", window, ": expected 0 (none) or a number of tokens");
  const Rows from = plan_rows(plan, q, "q", Use::read), to = plan_rows(plan, out, "out", Use::write);
  const Running running(plan);
  AttentionParams p{};
  p.pages = plan.pool->pages;
  p.layer = layer;
  p.q = from.data;
  p.out = to.data;
  p.page_ids = plan.page_ids.data();
  p.heads = plan.split.heads.data();
  p.partials = plan.partials.get();
  p.q_stride = from.stride;
  p.out_stride = to.stride;
  p.group = plan.group;
  p.window = window;
  p.scale = scale;
  call.check_cpu_types();
  const py::gil_scoped_release release;
  run_attention(p, plan.split);
}

}  // namespace

void check_item(const AttentionItem& item, int64_t i, int64_t rows, int64_t q_heads, int64_t group, int64_t pages, int64_t listed) {
  HETSERVE_CHECK(item.n_rows >= 1 && item.q_row >= 0 && item.q_row <= rows - item.n_rows, "items[", i, "]: rows ", item.q_row, " + ", item.n_rows,
                 " of ", rows);
  HETSERVE_CHECK(item.head_group >= 0 && (item.head_group + int64_t{1}) * group <= q_heads, "items[", i, "]: head group ", item.head_group, " of ", group,
                 " heads, q has ", q_heads);
  HETSERVE_CHECK(item.length >= item.n_rows, "items[", i, "]: length ", item.length, " is less than its ", item.n_rows, " rows");
  HETSERVE_CHECK(item.page_begin >= 0 && item.page_begin <= listed - pages, "items[", i, "]: pages ", item.page_begin, " + ", pages, " of page_ids' ",
                 listed);
}

void bind_attention(py::module_& module) {
  py::class_<AttentionPlan>(module, "AttentionPlan")
      .def(py::init(&make_plan), py::arg("pool").none(false), py::arg("items"), py::arg("page_ids"), py::arg("rows"), py::arg("q_heads_total"), py::arg("group"),
           py::arg("threads") = 0)
      .def_property_readonly("items", [](const AttentionPlan& p) { return p.items.size(); })
      .def_property_readonly("tasks", [](const AttentionPlan& p) { return p.split.tasks.size(); })
      .def_property_readonly("merges", [](const AttentionPlan& p) { return p.split.merges.size(); })
      .def_property_readonly("threads", [](const AttentionPlan& p) { return p.split.threads; });
  module.def("attention", &attention, py::arg("plan"), py::arg("layer"), py::arg("q"), py::arg("out"), py::arg("scale"), py::arg("window") = 0);
}

}  // namespace hetserve::bind
