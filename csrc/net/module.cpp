// hetserve._net: a layer's sends and receives in one call each, without the GIL. Docstrings and types live in hetserve/_net.pyi.
// Refuses to be imported beside another torch than it was built with, whose classes may look different, and with HETSERVE_NET=off.
#include <torch/csrc/utils/pybind.h>
#include <torch/headeronly/version.h>

#include <cstdlib>

#include "net/dispatch.h"
#include "net/exchange.h"

namespace hetserve::net {
namespace {

namespace py = pybind11;

using NoGil = py::call_guard<py::gil_scoped_release>;

void require_wanted() {
  const char* said = std::getenv("HETSERVE_NET");
  const std::string wanted = said == nullptr ? "" : said;
  if (wanted == "off") throw py::import_error("HETSERVE_NET is off");
  if (!wanted.empty()) throw py::value_error("HETSERVE_NET: expected off or nothing, got '" + wanted + "'");
}

void require_same_torch() {
  const std::string here = py::str(py::module_::import("torch").attr("__version__"));
  if (here.substr(0, here.find('+')) != TORCH_VERSION) {
    throw py::import_error("built with torch " TORCH_VERSION ", this is torch " + here + ": make install builds it again");
  }
}

void raise_lost(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const PeerLost& error) {
    PyErr_SetString(py::module_::import("hetserve.engine.transport.link").attr("PeerLost").ptr(), error.what());
  }
}

}  // namespace
}  // namespace hetserve::net

PYBIND11_MODULE(_net, module) {
  using namespace hetserve::net;
  require_wanted();
  require_same_torch();
  module.doc() = "A stage's messages to other devices, posted on torch's process groups of two.";
  py::register_local_exception_translator(&raise_lost);
  py::class_<Pair, std::shared_ptr<Pair>>(module, "Pair")
      .def(py::init<c10::intrusive_ptr<c10d::Backend>, int>(), py::arg("group"), py::arg("peer"))
      .def_property("lost", [](const Pair& pair) { return pair.lost.load(); }, [](Pair& pair, bool lost) { pair.lost = lost; });
  py::class_<Exchange, std::shared_ptr<Exchange>>(module, "Exchange")
      .def(py::init<std::shared_ptr<Pair>, int>(), py::arg("pair").none(false), py::arg("tag"))
      .def_property_readonly("lost", &Exchange::lost)
      .def("begin", &Exchange::begin, py::arg("outgoing"), py::arg("first"), py::arg("second"), py::arg("count"), py::arg("timeout_s"), NoGil())
      .def("send", &Exchange::send, NoGil())
      .def("receive", &Exchange::receive, NoGil())
      .def("finish", &Exchange::finish, NoGil());
  py::class_<Part, std::shared_ptr<Part>>(module, "Part")
      .def(py::init<std::shared_ptr<Exchange>, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(), py::arg("exchange").none(false),
           py::arg("pairs"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("first"), py::arg("second"));
  py::class_<Dispatch>(module, "Dispatch")
      .def(py::init<std::vector<std::shared_ptr<Part>>>(), py::arg("parts"))
      .def("send", &Dispatch::send, py::arg("q"), py::arg("k"), py::arg("v"), NoGil())
      .def("collect", &Dispatch::collect, py::arg("out"), NoGil());
}
