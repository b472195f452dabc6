// hetserve._C: the data plane for Python. Docstrings and types live in hetserve/_C.pyi.
#include "bind/pool.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "hetserve's kernels on raw pointers; every argument is checked before use (ValueError).";
  hetserve::bind::bind_runtime(module);
  hetserve::bind::bind_pool(module);
  hetserve::bind::bind_attention(module);
  hetserve::bind::bind_device_attention(module);
  hetserve::bind::bind_kv(module);
  hetserve::bind::bind_linear(module);
  hetserve::bind::bind_rows(module);
}
