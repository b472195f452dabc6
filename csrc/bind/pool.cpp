// KvPool for Python. Allocates nothing: the caller hands in the memory and decides about huge pages, NUMA and sharing.
#include "bind/pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <memory>

#include "hetserve/check.h"

namespace hetserve::bind {
namespace {

constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxPageTokens = 256;

Layout as_layout(const std::string& name) {
  HETSERVE_CHECK(name == "packed" || name == "plain", "layout: expected 'packed' or 'plain', got '", name, "'");
  return name == "packed" ? Layout::packed : Layout::plain;
}

int64_t total_bytes(const Pages& g) { return pool_bytes(g.layers, g.pages, g.page_tokens, g.head_dim, g.dtype); }

std::shared_ptr<KvPool> make_pool(py::object storage, int64_t layers, int64_t pages, int64_t page_tokens, int64_t head_dim, const py::object& dtype,
                                  const std::string& layout) {
  const Call call;
  const View view = as_tensor(storage, "storage");
  const Pages g{view.data, layers, pages, page_tokens, head_dim, as_dtype(dtype), as_layout(layout)};
  if (g.dtype == DType::float16) Call::add_float16();
  if (call.on_cpu()) call.check_cpu_types();
  const int64_t needed = total_bytes(g), has = view.count() * element_bytes(view.element);
  HETSERVE_CHECK(view.contiguous(), "storage: must be contiguous, shape ", shape_text(view));
  HETSERVE_CHECK(has >= needed, "storage: has ", has, " bytes, the pool needs ", needed);
  HETSERVE_CHECK(reinterpret_cast<uintptr_t>(view.data) % 64 == 0, "storage: its address must be a multiple of 64");
  HETSERVE_CHECK(g.page_tokens % pack_width(g) == 0 && g.head_dim % pack_width(g) == 0, "page_tokens ", page_tokens, " and head_dim ", head_dim,
                 " must be multiples of ", pack_width(g), " in the packed layout");
  return std::make_shared<KvPool>(KvPool{g, std::move(storage), call.device()});
}

// Asks the kernel for huge pages under the whole 4 KiB pages of a tensor's memory; true if it agreed. A hint: contents are kept.
bool advise_huge(const py::object& storage) {
  const View view = as_tensor(storage, "storage");
  HETSERVE_CHECK(view.contiguous(), "storage: must be contiguous, shape ", shape_text(view));
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(view.data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(view.data) + view.count() * element_bytes(view.element)) / page * page;
  return begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
}

}  // namespace

int64_t pool_bytes(int64_t layers, int64_t pages, int64_t page_tokens, int64_t head_dim, DType dtype) {
  HETSERVE_CHECK(layers > 0 && pages > 0 && page_tokens > 0 && head_dim > 0, "layers ", layers, ", pages ", pages, ", page_tokens ", page_tokens,
                 ", head_dim ", head_dim, ": all must be positive");
  HETSERVE_CHECK(head_dim % 8 == 0 && head_dim <= kMaxHeadDim, "head_dim ", head_dim, ": must be a multiple of 8, at most ", kMaxHeadDim);
  HETSERVE_CHECK(page_tokens <= kMaxPageTokens, "page_tokens ", page_tokens, ": at most ", kMaxPageTokens);
  HETSERVE_CHECK(pages <= INT32_MAX / page_tokens, "pages ", pages, ": slot numbers must fit in int32, at most ", INT32_MAX / page_tokens);
  int64_t bytes = 2 * page_tokens * head_dim * dtype_bytes(dtype) * pages;
  HETSERVE_CHECK(!__builtin_mul_overflow(bytes, layers, &bytes), "layers ", layers, ": the pool's size overflows");
  return bytes;
}

void check_layer(const KvPool& pool, int64_t layer) {
  HETSERVE_CHECK(layer >= 0 && layer < pool.pages.layers, "layer ", layer, ": the pool has layers 0 to ", pool.pages.layers - 1);
}

void check_layers(const KvPool& pool, int64_t first_layer, int64_t last_layer) {
  HETSERVE_CHECK(0 <= first_layer && first_layer <= last_layer && last_layer <= pool.pages.layers, "layers ", first_layer, " to ", last_layer,
                 " (exclusive): the pool has ", pool.pages.layers);
}

void check_page_ids(const KvPool& pool, const int32_t* ids, int64_t n, const char* name) {
  const uint32_t pages = static_cast<uint32_t>(pool.pages.pages);
  bool outside = false;
  for (int64_t i = 0; i < n; ++i) outside |= static_cast<uint32_t>(ids[i]) >= pages;  // a negative id is a huge unsigned one
  if (!outside) return;
  for (int64_t i = 0; i < n; ++i) {
    HETSERVE_CHECK(ids[i] >= 0 && ids[i] < pool.pages.pages, name, ": page id ", ids[i], " at ", i, ", the pool has pages 0 to ", pool.pages.pages - 1);
  }
}

void bind_pool(py::module_& module) {
  py::class_<KvPool, std::shared_ptr<KvPool>>(module, "KvPool")
      .def(py::init(&make_pool), py::arg("storage"), py::arg("layers"), py::arg("pages"), py::arg("page_tokens"), py::arg("head_dim"), py::arg("dtype"),
           py::arg("layout") = "packed")
      .def_static("bytes", [](int64_t layers, int64_t pages, int64_t page_tokens, int64_t head_dim,
                              const py::object& dtype) { return pool_bytes(layers, pages, page_tokens, head_dim, as_dtype(dtype)); },
                  py::arg("layers"), py::arg("pages"), py::arg("page_tokens"), py::arg("head_dim"), py::arg("dtype"))
      .def_property_readonly("layers", [](const KvPool& p) { return p.pages.layers; })
      .def_property_readonly("pages", [](const KvPool& p) { return p.pages.pages; })
      .def_property_readonly("page_tokens", [](const KvPool& p) { return p.pages.page_tokens; })
      .def_property_readonly("head_dim", [](const KvPool& p) { return p.pages.head_dim; })
      .def_property_readonly("dtype", [](const KvPool& p) { return dtype_name(p.pages.dtype); })
      .def_property_readonly("layout", [](const KvPool& p) { return p.pages.layout == Layout::packed ? "packed" : "plain"; })
      .def_property_readonly("layer_page_bytes", [](const KvPool& p) { return 2 * half_page_bytes(p.pages); })
      .def_property_readonly("page_bytes", [](const KvPool& p) { return 2 * half_page_bytes(p.pages) * p.pages.layers; });
  module.def("advise_huge", &advise_huge, py::arg("storage"));
}

}  // namespace hetserve::bind
