// kv_store, page_copy, page_gather, page_scatter, heads_pack and heads_unpack for Python: checks, then one call.
#include <algorithm>
#include <memory>
#include <vector>

#include "bind/dispatch.h"
#include "bind/pool.h"
#include "hetserve/check.h"
#include "hetserve/cuda.h"
#include "hetserve/run.h"

namespace hetserve::bind {
namespace {

void add_pool(const KvPool& pool) { Call::add(pool.device, "pool"); }

// Memory that is not where the call's tensors are: kernels of the call's device may reach it all the same.
void check_reach(const Call& call, int device, const void* memory, const char* name) {
  HETSERVE_CHECK(device == call.device() || (!call.on_cpu() && cuda_reaches(call.device(), memory)), name,
                 ": is neither on the call's device nor where its kernels reach: in pinned memory, or on a device that it has a path to");
}

const int32_t* ints(const View& view) { return reinterpret_cast<const int32_t*>(view.data); }

void check_slots(const KvPool& pool, const View& slots) {
  const int64_t end = pool.pages.pages * pool.pages.page_tokens;
  bool outside = false;
  for (int64_t i = 0; i < slots.count(); ++i) outside |= ints(slots)[i] < -1 || ints(slots)[i] >= end;
  if (!outside) return;
  for (int64_t i = 0; i < slots.count(); ++i) {
    HETSERVE_CHECK(ints(slots)[i] >= -1 && ints(slots)[i] < end, "slots: ", ints(slots)[i], " at ", i, ", the pool has slots 0 to ", end - 1);
  }
}

void kv_store(const KvPool& pool, int64_t layer, const py::object& k, const py::object& v, const py::object& slots) {
  const Call call;
  check_layer(pool, layer);
  add_pool(pool);
  const Rows keys = as_rows(k, "k", Use::read), values = as_rows(v, "v", Use::read);
  const View to = as_int32(slots, "slots", 2);
  if (call.on_cpu()) check_slots(pool, to);  // a device's indices, here and below, are the caller's to check
  const int64_t columns = to.shape[1] * pool.pages.head_dim;
  for (const Rows* x : {&keys, &values}) {
    HETSERVE_CHECK(x->rows == to.shape[0] && x->columns == columns, "k and v: expected [", to.shape[0], ", ", columns, "] for slots ", shape_text(to),
                   ", got [", x->rows, ", ", x->columns, "]");
    HETSERVE_CHECK(x->dtype == pool.pages.dtype, "k and v: are ", dtype_name(x->dtype), ", the pool is ", dtype_name(pool.pages.dtype));
  }
  const KvStoreParams p{pool.pages, layer, keys.data, values.data, ints(to), to.shape[0], to.shape[1], keys.stride, values.stride};
  dispatch(call, run_kv_store, &DeviceOps::kv_store, p);
}

// Threads write pages in any order: a page may be written once, and not be read as another's source.
void check_targets(const KvPool& pool, const int32_t* dst, const int32_t* src, int64_t n, bool same_memory) {
  std::vector<int32_t> from(pool.pages.pages, -1);  // page -> position in dst
  for (int64_t i = 0; i < n; ++i) {
    HETSERVE_CHECK(from[dst[i]] < 0, "page ", dst[i], " is written twice, at ", from[dst[i]], " and ", i);
    from[dst[i]] = static_cast<int32_t>(i);
  }
  for (int64_t i = 0; same_memory && i < n; ++i) {
    HETSERVE_CHECK(from[src[i]] < 0 || from[src[i]] == i, "page ", src[i], " is read at ", i, " and written at ", from[src[i]]);
  }
}

void page_copy(const KvPool& src, const py::object& src_pages, const KvPool& dst, const py::object& dst_pages, int64_t first_layer, int64_t last_layer) {
  const Call call;
  check_layers(src, first_layer, last_layer);
  check_layers(dst, first_layer, last_layer);
  add_pool(src.device == kCpu ? dst : src);  // a device pushes where it can, and fetches from the host
  check_reach(call, src.device, src.pages.data, "src_pool");
  check_reach(call, dst.device, dst.pages.data, "dst_pool");
  const Pages &a = src.pages, &b = dst.pages;
  HETSERVE_CHECK(a.dtype == b.dtype && a.head_dim == b.head_dim && a.page_tokens == b.page_tokens, "pools differ: ", dtype_name(a.dtype), " ", a.page_tokens,
                 " x ", a.head_dim, " and ", dtype_name(b.dtype), " ", b.page_tokens, " x ", b.head_dim);
  const View from = as_int32(src_pages, "src_pages", 1), to = as_int32(dst_pages, "dst_pages", 1);
  HETSERVE_CHECK(from.shape[0] == to.shape[0], "src_pages has ", from.shape[0], " ids, dst_pages ", to.shape[0]);
  if (call.on_cpu()) {
    check_page_ids(src, ints(from), from.shape[0], "src_pages");
    check_page_ids(dst, ints(to), to.shape[0], "dst_pages");
    check_targets(dst, ints(to), ints(from), to.shape[0], a.data == b.data);
  }
  const PageCopyParams p{a, b, ints(from), ints(to), from.shape[0], first_layer, last_layer};
  dispatch(call, run_page_copy, &DeviceOps::page_copy, p);
}

View reachable(const Call& call, const py::object& tensor, const char* name) {
  const Call own;
  const View view = as_tensor(tensor, name);
  check_reach(call, own.device(), view.data, name);
  return view;
}

PageRowsParams page_rows(const Call& call, const KvPool& pool, const py::object& pages, int64_t first_layer, int64_t last_layer, const py::object& rows,
                         const char* name) {
  check_layers(pool, first_layer, last_layer);
  add_pool(pool);
  const View ids = as_int32(pages, "pages", 1), to = reachable(call, rows, name);
  if (call.on_cpu()) check_page_ids(pool, ints(ids), ids.shape[0], "pages");
  const Pages& g = pool.pages;
  const int64_t expected[] = {ids.shape[0], last_layer - first_layer, 2, g.page_tokens, g.head_dim};
  HETSERVE_CHECK(to.dims == 5 && std::equal(expected, expected + 5, to.shape), name, ": expected [", expected[0], ", ", expected[1], ", 2, ", expected[3], ", ",
                 expected[4], "], got ", shape_text(to));
  constexpr Element elements[] = {Element::float32, Element::bfloat16, Element::float16};
  const Element element = elements[static_cast<int>(g.dtype)];
  HETSERVE_CHECK(to.element == element && to.contiguous(), name, ": expected contiguous ", dtype_name(g.dtype));
  return {g, ints(ids), to.data, ids.shape[0], first_layer, last_layer};
}

void page_gather(const KvPool& pool, const py::object& pages, int64_t first_layer, int64_t last_layer, const py::object& out) {
  const Call call;
  const PageRowsParams p = page_rows(call, pool, pages, first_layer, last_layer, out, "out");
  dispatch(call, run_page_gather, &DeviceOps::page_gather, p);
}

void page_scatter(const KvPool& pool, const py::object& pages, int64_t first_layer, int64_t last_layer, const py::object& src) {
  const Call call;
  const PageRowsParams p = page_rows(call, pool, pages, first_layer, last_layer, src, "src");
  if (call.on_cpu()) check_targets(pool, p.page_ids, p.page_ids, p.n, false);
  dispatch(call, run_page_scatter, &DeviceOps::page_scatter, p);
}

// packed [m, span * head_dim] tells head_dim; x must hold whole heads of it.
HeadsParams heads(const Call& call, const Rows& x, const py::object& pairs, int64_t span, const Rows& packed) {
  const View list = as_int32(pairs, "pairs", 2);
  HETSERVE_CHECK(list.shape[1] == 2, "pairs: expected [m, 2], got ", shape_text(list));
  HETSERVE_CHECK(list.shape[0] == packed.rows, "pairs: ", list.shape[0], " of them for ", packed.rows, " packed rows");
  HETSERVE_CHECK(x.dtype == packed.dtype, "dtypes differ: ", dtype_name(x.dtype), " and ", dtype_name(packed.dtype));
  HETSERVE_CHECK(span >= 1 && packed.columns > 0 && packed.columns % span == 0 && x.columns % packed.columns == 0, "span ", span, ": packed rows of ",
                 packed.columns, " columns, x has ", x.columns);
  const int64_t groups = x.columns / packed.columns;
  for (int64_t i = 0; call.on_cpu() && i < list.shape[0]; ++i) {
    const int32_t row = ints(list)[2 * i], head = ints(list)[2 * i + 1];
    HETSERVE_CHECK(row >= 0 && row < x.rows && head >= 0 && head < groups, "pairs[", i, "]: (", row, ", ", head, "), x has ", x.rows, " rows and ", groups,
                   " head groups");
  }
  return {x.data, packed.data, ints(list), list.shape[0], x.stride, packed.stride, packed.columns * dtype_bytes(x.dtype), x.dtype};
}

void heads_pack(const py::object& x, const py::object& pairs, int64_t span, const py::object& out) {
  const Call call;
  const HeadsParams p = heads(call, as_rows(x, "x", Use::read), pairs, span, as_rows(out, "out", Use::write));
  dispatch(call, run_heads_pack, &DeviceOps::heads_pack, p);
}

void heads_unpack(const py::object& src, const py::object& pairs, int64_t span, const py::object& x) {
  const Call call;
  const HeadsParams p = heads(call, as_rows(x, "x", Use::write), pairs, span, as_rows(src, "src", Use::read));
  dispatch(call, run_heads_unpack, &DeviceOps::heads_unpack, p);
}

}  // namespace

void bind_kv(py::module_& module) {
  module.def("kv_store", &kv_store, py::arg("pool"), py::arg("layer"), py::arg("k"), py::arg("v"), py::arg("slots"));
  module.def("page_copy", &page_copy, py::arg("src_pool"), py::arg("src_pages"), py::arg("dst_pool"), py::arg("dst_pages"), py::arg("first_layer"),
             py::arg("last_layer"));
  module.def("page_gather", &page_gather, py::arg("pool"), py::arg("pages"), py::arg("first_layer"), py::arg("last_layer"), py::arg("out"));
  module.def("page_scatter", &page_scatter, py::arg("pool"), py::arg("pages"), py::arg("first_layer"), py::arg("last_layer"), py::arg("src"));
  module.def("heads_pack", &heads_pack, py::arg("x"), py::arg("pairs"), py::arg("span"), py::arg("out"));
  module.def("heads_unpack", &heads_unpack, py::arg("src"), py::arg("pairs"), py::arg("span"), py::arg("x"));
}

}  // namespace hetserve::bind
