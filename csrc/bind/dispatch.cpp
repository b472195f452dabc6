// Where torch's current stream comes from.
#include "bind/dispatch.h"

#include <exception>

#include "hetserve/cuda.h"

namespace hetserve::bind {
namespace {

// torch's own number for the stream that the caller's code runs on; the function is looked up once, for the life of the interpreter.
Stream current_stream(int device) {
  static PyObject* const get = py::object(py::module_::import("torch").attr("_C").attr("_cuda_getCurrentRawStream")).release().ptr();
  const py::object stream = py::reinterpret_borrow<py::object>(get)(device);
  return reinterpret_cast<Stream>(stream.cast<uintptr_t>());
}

}  // namespace

OnDevice::OnDevice(int device) : ops(cuda_ops()), stream(current_stream(device)), before_(cuda_use_device(device)) {}

OnDevice::~OnDevice() {
  try {
    cuda_use_device(before_);
  } catch (const std::exception&) {  // a device that has failed; whoever uses it next is told
  }
}

}  // namespace hetserve::bind
