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

// Byte offsets in the device's memory and in each half of the staging memory; the partial results are the device's alone.
struct Arrays {
  int64_t words, heads, tasks, merges, page_ids, host_bytes, partials, device_bytes;
};

Arrays arrays(int64_t items, int64_t pages, int64_t words, const DeviceCapacity& most, int64_t head_dim) {
  Arrays a{};
  int64_t at = kAlign;  // the counts
  const auto place = [&at](int64_t bytes) {
    const int64_t here = at;
    at = (at + bytes + kAlign - 1) / kAlign * kAlign;
    return here;
  };
  a.words = place(words * static_cast<int64_t>(sizeof(int32_t)));
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
  int half = 0;       // of the staging memory: where the next step is put
  int64_t rows = -1;  // of the step that it is set to; -1: none yet
};

int blocks_of(int device) { return device == kCpu ? kEmulatedBlocks : cuda_blocks(device); }

DeviceCapacity capacity(int64_t items, int64_t item_rows, int64_t group, int blocks) {
  HETSERVE_CHECK(items > 0 && item_rows > 0 && group > 0, "items ", items, ", item_rows ", item_rows, ", group ", group, ": all must be positive");
  const DeviceCapacity most = device_capacity(items, item_rows, group, blocks);
  HETSERVE_CHECK(most.tasks <= INT32_MAX && most.partials <= INT32_MAX, "items ", items, ", item_rows ", item_rows, ": too many for one step");
  return most;
}

// Of any step with so many rows of q: each of their head groups is in one item at most.
DeviceCapacity most_of_rows(const DeviceAttentionPlan& plan, int64_t rows) {
  const int64_t pairs = rows * (plan.q_heads / plan.group);
  return device_capacity(std::min(plan.most_items, pairs), std::min(plan.most_rows, pairs), plan.group, plan.blocks);
}

py::tuple plan_bytes(const KvPool& pool, int64_t group, int64_t items, int64_t item_rows, int64_t pages, int64_t words) {
  const Arrays a = arrays(items, pages, words, capacity(items, item_rows, group, blocks_of(pool.device)), pool.pages.head_dim);
  return py::make_tuple(a.device_bytes, 2 * a.host_bytes);
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
                                               int64_t pages, py::object memory, py::object staging, int64_t words) {
  HETSERVE_CHECK(pool->device != kCpu || kernels().device != nullptr, "pool: is on the CPU: its steps are an AttentionPlan's");
  HETSERVE_CHECK(group >= 1 && q_heads_total >= group && q_heads_total % group == 0, "q_heads_total ", q_heads_total, ", group ", group);
  HETSERVE_CHECK(pool->pages.head_dim <= kDeviceMaxHeadDim, "head_dim ", pool->pages.head_dim, ": at most ", kDeviceMaxHeadDim, " on a device");
  HETSERVE_CHECK(pages > 0 && pages <= INT32_MAX && words >= 0 && words <= INT32_MAX, "pages ", pages, ", words ", words);
  auto plan = std::make_unique<DeviceAttentionPlan>();
  plan->q_heads = q_heads_total;
  plan->group = group;
  plan->most_items = items;
  plan->most_rows = item_rows;
  plan->most_pages = pages;
  plan->blocks = blocks_of(pool->device);
  plan->most = capacity(items, item_rows, group, plan->blocks);
  plan->at = arrays(items, pages, words, plan->most, pool->pages.head_dim);
  plan->device = checked_memory(memory, "memory", pool->device, plan->at.device_bytes);
  plan->host = checked_memory(staging, "staging", kCpu, 2 * plan->at.host_bytes);
  plan->memory = std::move(memory);
  plan->staging = std::move(staging);
  plan->pool = std::move(pool);
  return plan;
}

const DeviceOps& ops_of(const DeviceAttentionPlan& plan) { return plan.pool->device == kCpu ? *kernels().device : cuda_ops(); }

template <class T>
void put(uint8_t* to, const std::vector<T>& values) {
  if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(T));
}

// Copies the page ids of every item one after the other, and lets `heads` begin there. Returns how many there are.
int64_t put_page_ids(const DeviceAttentionPlan& plan, const AttentionItem* items, const int32_t* ids, std::vector<AttentionHead>& heads, int32_t* to) {
  const int64_t page_tokens = plan.pool->pages.page_tokens;
  int64_t used = 0;
  bool own = true;
  for (size_t i = 0; i < heads.size(); ++i) {
    const int64_t pages = (int64_t{items[i].length} + page_tokens - 1) / page_tokens;
    HETSERVE_CHECK(used + pages <= plan.most_pages, "items: more pages than the plan has room for, ", plan.most_pages);
    own &= copy_page_ids(ids + items[i].page_begin, pages, plan.pool->pages.pages, to + used);
    heads[i].page_begin = static_cast<int32_t>(used);
    used += pages;
  }
  if (!own) check_page_ids(*plan.pool, to, used, "page_ids");
  return used;
}

// Checks a step, cuts it and puts it into a half of the staging memory. Returns the bytes to be sent.
int64_t stage_step(DeviceAttentionPlan& plan, const View& given, const View& ids, int64_t rows) {
  const auto* list = reinterpret_cast<const AttentionItem*>(given.data);
  const int64_t n = given.shape[0], page_tokens = plan.pool->pages.page_tokens, pairs = rows * (plan.q_heads / plan.group);
  int64_t item_rows = 0;
  for (int64_t i = 0; i < n; ++i) {
    check_item(list[i], i, rows, plan.q_heads, plan.group, (int64_t{list[i].length} + page_tokens - 1) / page_tokens, ids.shape[0]);
    item_rows += list[i].n_rows;
  }
  HETSERVE_CHECK(n <= plan.most_items && item_rows <= plan.most_rows, "items: ", n, " with ", item_rows, " rows in all, the plan has room for ",
                 plan.most_items, " with ", plan.most_rows);
  HETSERVE_CHECK(item_rows <= pairs, "items: ", item_rows, " rows in all, and ", pairs, " pairs of a row and a head group: some are named twice");
  SplitPlan split = device_split(list, n, plan.group, plan.blocks);
  uint8_t* const host = plan.host + plan.half * plan.at.host_bytes;
  const int64_t used = put_page_ids(plan, list, reinterpret_cast<const int32_t*>(ids.data), split.heads, reinterpret_cast<int32_t*>(host + plan.at.page_ids));
  const int32_t counts[] = {static_cast<int32_t>(split.tasks.size()), static_cast<int32_t>(split.merges.size())};
  std::memcpy(host, counts, sizeof counts);
  put(host + plan.at.heads, split.heads);
  put(host + plan.at.tasks, split.tasks);
  put(host + plan.at.merges, split.merges);
  return plan.at.page_ids + used * static_cast<int64_t>(sizeof(int32_t));
}

// Puts a step and the caller's words on the device, in one copy on the current stream.
void set_step(DeviceAttentionPlan& plan, const py::object& items, const py::object& page_ids, int64_t rows) {
  const Call call;
  const View given = as_int32(items, "items", 2), ids = as_int32(page_ids, "page_ids", 1);
  HETSERVE_CHECK(call.on_cpu(), "items and page_ids: expected on the CPU");
  HETSERVE_CHECK(given.shape[1] == 6, "items: expected [n, 6], got ", shape_text(given));
  const uint8_t* const host = plan.host + plan.half * plan.at.host_bytes;
  if (plan.pool->device == kCpu) {
    ops_of(plan).copy(plan.device, host, stage_step(plan, given, ids, rows), nullptr);
  } else {
    const OnDevice device(plan.pool->device);
    const py::gil_scoped_release release;
    device.ops.copy(plan.device, host, stage_step(plan, given, ids, rows), device.stream);
  }
  plan.rows = rows;
  plan.half = 1 - plan.half;
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
  const DeviceCapacity most = most_of_rows(plan, from.rows);
  const DeviceSplit split{reinterpret_cast<const AttentionTask*>(plan.device + plan.at.tasks), reinterpret_cast<const AttentionMerge*>(plan.device + plan.at.merges),
                          reinterpret_cast<const int32_t*>(plan.device), static_cast<int32_t>(most.tasks), static_cast<int32_t>(most.merges)};
  if (call.on_cpu()) {
    ops_of(plan).attention(p, split, nullptr);
  } else {
    const OnDevice device(call.device());
    const py::gil_scoped_release release;
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
           py::arg("pages"), py::arg("memory"), py::arg("staging"), py::arg("words") = 0)
      .def_static("bytes", &plan_bytes, py::arg("pool"), py::arg("group"), py::arg("items"), py::arg("item_rows"), py::arg("pages"), py::arg("words") = 0)
      .def_property_readonly("first_word", [](const DeviceAttentionPlan& p) { return p.at.words; })
      .def_property_readonly("half", [](const DeviceAttentionPlan& p) { return p.half; })
      .def("most", [](const DeviceAttentionPlan& p, int64_t rows) {
        const DeviceCapacity most = most_of_rows(p, rows);
        return py::make_tuple(most.tasks, most.merges);
      }, py::arg("rows"))
      .def("set", &set_step, py::arg("items"), py::arg("page_ids"), py::arg("rows"));
  module.def("attention", &attention, py::arg("plan"), py::arg("layer"), py::arg("q"), py::arg("out"), py::arg("scale"), py::arg("window") = 0);
}

}  // namespace hetserve::bind
