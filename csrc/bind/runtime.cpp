// info, threads and the choice of instruction set for Python.
#include <pybind11/stl.h>

#include "bind/pool.h"
#include "hetserve/check.h"
#include "hetserve/cuda.h"
#include "hetserve/isa.h"
#include "hetserve/parallel.h"

namespace hetserve::bind {
namespace {

py::dict info() {
  py::dict facts;
  facts["isa"] = kernels().name;
  facts["isas"] = usable_isas();
  facts["linear_rows"] = kernels().linear_rows;
  facts["cuda"] = cuda_built();
  facts["compiler"] = "g++ " __VERSION__;
  facts["threads"] = max_threads();
  return facts;
}

void set_threads(int n) {
  HETSERVE_CHECK(n >= 1 && n <= 1024, "threads: expected 1 to 1024, got ", n);
  HETSERVE_CHECK(set_max_threads(n) || n == 1, "threads: ", n, " of them are torch's, and torch is not imported");
}

}  // namespace

void bind_runtime(py::module_& module) {
  kernels();  // an unusable HETSERVE_ISA fails the import
  module.def("info", &info);
  module.def("get_threads", &max_threads);
  module.def("set_threads", &set_threads, py::arg("n"));
  module.def("use_isa", &use_isa, py::arg("name"));
}

}  // namespace hetserve::bind
