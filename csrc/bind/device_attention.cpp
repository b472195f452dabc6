// DeviceAttentionPlan for Python: a step's attention in device memory of fixed size, so that one captured graph serves every step that fits.
#include <algorithm>
#include <cstring>
#include <memory>

#include "bind/dispatch.h"
#include "bind/pool.h"
#include "hetserve/check.h"
#include "hetserve/cuda.h"
#include "hetserve/device_plan.h"
#include "hetserve/isa.h"

namespace hetserve::bind {
namespace {

constexpr int64_t kAlign = 256;

// Byte offsets in both memories; the partial results are the device's alone.
struct Arrays {
  int64_t heads, tasks, merges, page_ids, host_bytes, partials, device_bytes;
};

Arrays arrays(int64_t items, int64_t pages, const DeviceCapacity& most, int64_t head_dim) {
  Arrays a{};
  int64_t at = kAlign;  // the counts
  const auto place = [&at](int64_t bytes) {
    const int64_t here = at;
    at = (at + bytes + kAlign - 1) / kAlign * kAlign;
    return here;
  };
  a.heads = place(items * static_cast<int64_t>(sizeof(AttentionHead)));
  a.tasks = place(most.tasks * static_cast<int64_t>(sizeof(AttentionTask)));
  a.merges = place(most.merges * static_cast<int64_t>(sizeof(AttentionMerge)));
  a.page_ids = place(pages * static_cast<int64_t>(sizeof(int32_t)));
  a.host_bytes = at;
  a.partials = place(most.partials * (head_dim + 2) * static_cast<int64_t>(sizeof(float)));
  a.device_bytes = at;
  return a;
}

struct DeviceAttentionPlan {
  std::shared_ptr<const KvPool> pool;
  int64_t q_heads, group, most_items, most_rows, most_pages;
  int blocks;
  DeviceCapacity most;
  Arrays at;
  py::object memory, staging;  // keep the memory alive
  uint8_t* device;
  uint8_t* host;
  int64_t rows = -1;  // of the step that it is set to; -1: none yet
};

int blocks_of(int device) { return device == kCpu ? kEmulatedBlocks : cuda_blocks(device); }

DeviceCapacity capacity(int64_t items, int64_t item_rows, int64_t group, int blocks) {
  HETSERVE_CHECK(items > 0 && item_rows > 0 && group > 0, "items ", items, ", item_rows ", item_rows, ", group ", group, ": all must be positive");
  const DeviceCapacity most = device_capacity(items, item_rows, group, blocks);
  HETSERVE_CHECK(most.tasks <= INT32_MAX && most.partials <= INT32_MAX, "items ", items, ", item_rows ", item_rows, ": too many for one step");
  return most;
}

py::tuple plan_bytes(const KvPool& pool, int64_t group, int64_t items, int64_t item_rows, int64_t pages) {
  const Arrays a = arrays(items, pages, capacity(items, item_rows, group, blocks_of(pool.device)), pool.pages.head_dim);
  return py::make_tuple(a.device_bytes, a.host_bytes);
}

uint8_t* checked_memory(const py::object& tensor, const char* name, int device, int64_t needed) {
  const Call call;
  const View view = as_tensor(tensor, name);
  HETSERVE_CHECK(call.device() == device, name, ": expected on the ", device == kCpu ? "CPU" : "pool's device");
  HETSERVE_CHECK(view.element == Element::uint8 && view.dims == 1 && view.contiguous() && view.shape[0] >= needed, name, ": expected uint8 [", needed,
                 "], got shape ", shape_text(view));
  HETSERVE_CHECK(reinterpret_cast<uintptr_t>(view.data) % 16 == 0, name, ": its address must be a multiple of 16");
  return view.data;
}

std::unique_ptr<DeviceAttentionPlan> make_plan(std::shared_ptr<KvPool> pool, int64_t q_heads_total, int64_t group, int64_t items, int64_t item_rows,
                                               int64_t pages, py::object memory, py::object staging) {
  HETSERVE_CHECK(pool->device != kCpu || kernels().device != nullptr, "pool: is on the CPU: its steps are an AttentionPlan's");
  HETSERVE_CHECK(group >= 1 && q_heads_total >= group && q_heads_total % group == 0, "q_heads_total ", q_heads_total, ", group ", group);
  HETSERVE_CHECK(pool->pages.head_dim <= kDeviceMaxHeadDim, "head_dim ", pool->pages.head_dim, ": at most ", kDeviceMaxHeadDim, " on a device");
  HETSERVE_CHECK(pages > 0 && pages <= INT32_MAX, "pages ", pages);
  auto plan = std::make_unique<DeviceAttentionPlan>();
  plan->q_heads = q_heads_total;
  plan->group = group;
  plan->most_items = items;
  plan->most_rows = item_rows;
  plan->most_pages = pages;
  plan->blocks = blocks_of(pool->device);
  plan->most = capacity(items, item_rows, group, plan->blocks);
  plan->at = arrays(items, pages, plan->most, pool->pages.head_dim);
  plan->device = checked_memory(memory, "memory", pool->device, plan->at.device_bytes);
  plan->host = checked_memory(staging, "staging", kCpu, plan->at.host_bytes);
  plan->memory = std::move(memory);
  plan->staging = std::move(staging);
  plan->pool = std::move(pool);
  return plan;
}

const DeviceOps& ops_of(const DeviceAttentionPlan& plan) { return plan.pool->device == kCpu ? *kernels().device : cuda_ops(); }

template <class T>
void put(DeviceAttentionPlan& plan, int64_t offset, const std::vector<T>& values) {
  if (!values.empty()) std::memcpy(plan.host + offset, values.data(), values.size() * sizeof(T));
}

// Checks a step, cuts it and sends it to the device, on the current stream.
void set_step(DeviceAttentionPlan& plan, const py::object& items, const py::object& page_ids, int64_t rows) {
  const Call call;
  const View given = as_int32(items, "items", 2), ids = as_int32(page_ids, "page_ids", 1);
  HETSERVE_CHECK(call.on_cpu(), "items and page_ids: expected on the CPU");
  HETSERVE_CHECK(given.shape[1] == 6, "items: expected [n, 6], got ", shape_text(given));
  HETSERVE_CHECK(given.shape[0] <= plan.most_items && ids.shape[0] <= plan.most_pages, "items: ", given.shape[0], " with ", ids.shape[0],
                 " pages, the plan has room for ", plan.most_items, " with ", plan.most_pages);
  const auto* list = reinterpret_cast<const AttentionItem*>(given.data);
  int64_t item_rows = 0;
  for (int64_t i = 0; i < given.shape[0]; ++i) {
    check_item(list[i], i, rows, plan.q_heads, plan.group, (int64_t{list[i].length} + plan.pool->pages.page_tokens - 1) / plan.pool->pages.page_tokens,
               ids.shape[0]);
    item_rows += list[i].n_rows;
  }
  HETSERVE_CHECK(item_rows <= plan.most_rows, "items: ", item_rows, " rows in all, the plan has room for ", plan.most_rows);
  check_page_ids(*plan.pool, reinterpret_cast<const int32_t*>(ids.data), ids.shape[0], "page_ids");
  const SplitPlan split = device_split(list, given.shape[0], plan.group, plan.blocks);
  const int32_t counts[] = {static_cast<int32_t>(split.tasks.size()), static_cast<int32_t>(split.merges.size())};
  std::memcpy(plan.host, counts, sizeof counts);
  put(plan, plan.at.heads, split.heads);
  put(plan, plan.at.tasks, split.tasks);
  put(plan, plan.at.merges, split.merges);
  std::memcpy(plan.host + plan.at.page_ids, ids.data, ids.shape[0] * sizeof(int32_t));
  plan.rows = rows;
  const int64_t bytes = plan.at.page_ids + ids.shape[0] * static_cast<int64_t>(sizeof(int32_t));
  if (plan.pool->device == kCpu) {
    ops_of(plan).copy(plan.device, plan.host, bytes, nullptr);
  } else {
    const OnDevice device(plan.pool->device);
    device.ops.copy(plan.device, plan.host, bytes, device.stream);
  }
}

void attention(DeviceAttentionPlan& plan, int64_t layer, const py::object& q, const py::object& out, float scale, int64_t window) {
  const Call call;
  Call::add(plan.pool->device, "plan");
  check_layer(*plan.pool, layer);
  HETSERVE_CHECK(plan.rows >= 0, "plan: is not set to a step yet");
  HETSERVE_CHECK(window >= 0, "window ", window, ": expected 0 (none) or a number of tokens");
  const Rows from = as_rows(q, "q", Use::read), to = as_rows(out, "out", Use::write);
  const int64_t columns = plan.q_heads * plan.pool->pages.head_dim;
  for (const Rows* x : {&from, &to}) {
    HETSERVE_CHECK(x->rows >= plan.rows && x->columns == columns, "q and out: expected [", plan.rows, " or more, ", columns, "], got [", x->rows, ", ", x->columns, "]");
    HETSERVE_CHECK(x->dtype == plan.pool->pages.dtype, "q and out: are ", dtype_name(x->dtype), ", the pool is ", dtype_name(plan.pool->pages.dtype));
  }
  AttentionParams p{};
  p.pages = plan.pool->pages;
  p.layer = layer;
  p.q = from.data;
  p.out = to.data;
  p.page_ids = reinterpret_cast<const int32_t*>(plan.device + plan.at.page_ids);
  p.heads = reinterpret_cast<const AttentionHead*>(plan.device + plan.at.heads);
  p.partials = reinterpret_cast<float*>(plan.device + plan.at.partials);
  p.q_stride = from.stride;
  p.out_stride = to.stride;
  p.group = plan.group;
  p.window = window;
  p.scale = scale;
  const DeviceSplit split{reinterpret_cast<const AttentionTask*>(plan.device + plan.at.tasks), reinterpret_cast<const AttentionMerge*>(plan.device + plan.at.merges),
                          reinterpret_cast<const int32_t*>(plan.device), static_cast<int32_t>(plan.most.tasks), static_cast<int32_t>(plan.most.merges)};
  if (call.on_cpu()) {
    ops_of(plan).attention(p, split, nullptr);
  } else {
    const OnDevice device(call.device());
    device.ops.attention(p, split, device.stream);
  }
}

py::list rows_of(const int32_t* first, size_t rows, size_t columns) {
  py::list list;
  for (size_t i = 0; i < rows; ++i) {
    py::tuple row(columns);
    for (size_t k = 0; k < columns; ++k) row[k] = first[i * columns + k];
    list.append(row);
  }
  return list;
}

// How items would be cut, for tests: (tasks, merges, partials).
py::tuple cut(const py::object& items, int64_t group, int blocks) {
  const View given = as_int32(items, "items", 2);
  HETSERVE_CHECK(given.shape[1] == 6 && group > 0 && blocks > 0, "items ", shape_text(given), ", group ", group, ", blocks ", blocks);
  const SplitPlan split = device_split(reinterpret_cast<const AttentionItem*>(given.data), given.shape[0], group, blocks);
  static_assert(sizeof(AttentionTask) == 9 * sizeof(int32_t) && sizeof(AttentionMerge) == 6 * sizeof(int32_t));
  return py::make_tuple(rows_of(reinterpret_cast<const int32_t*>(split.tasks.data()), split.tasks.size(), 9),
                        rows_of(reinterpret_cast<const int32_t*>(split.merges.data()), split.merges.size(), 6), split.partials);
}

py::tuple most_of(int64_t items, int64_t item_rows, int64_t group, int blocks) {
  const DeviceCapacity most = capacity(items, item_rows, group, blocks);
  return py::make_tuple(most.tasks, most.merges, most.partials);
}

}  // namespace

void bind_device_attention(py::module_& module) {
  module.def("device_split", &cut, py::arg("items"), py::arg("group"), py::arg("blocks"));
  module.def("device_capacity", &most_of, py::arg("items"), py::arg("item_rows"), py::arg("group"), py::arg("blocks"));
  py::class_<DeviceAttentionPlan>(module, "DeviceAttentionPlan")
      .def(py::init(&make_plan), py::arg("pool").none(false), py::arg("q_heads_total"), py::arg("group"), py::arg("items"), py::arg("item_rows"),
           py::arg("pages"), py::arg("memory"), py::arg("staging"))
      .def_static("bytes", &plan_bytes, py::arg("pool"), py::arg("group"), py::arg("items"), py::arg("item_rows"), py::arg("pages"))
      .def("set", &set_step, py::arg("items"), py::arg("page_ids"), py::arg("rows"));
  module.def("attention", &attention, py::arg("plan"), py::arg("layer"), py::arg("q"), py::arg("out"), py::arg("scale"), py::arg("window") = 0);
}

}  // namespace hetserve::bind
