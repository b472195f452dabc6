// Reads tensors by duck typing. Costs well under a microsecond a tensor: attribute names are interned once, dtypes compared by identity.
#include "bind/tensor.h"

#include <algorithm>
#include <array>
#include <vector>

#include "hetserve/check.h"
#include "hetserve/cuda.h"
#include "hetserve/isa.h"

namespace hetserve::bind {
namespace {

const char* const kElementNames[] = {"float32", "bfloat16", "int32", "uint8", "float16"};

thread_local Call* innermost = nullptr;

std::string device_text(int device) { return device == kCpu ? "the CPU" : "cuda:" + std::to_string(device); }

py::object attribute(const py::object& object, PyObject* name, const char* argument) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name);
  if (value == nullptr) {
    PyErr_Clear();
    fail_check("is a tensor", __FILE__, __LINE__, argument, ": expected a tensor, got ", Py_TYPE(object.ptr())->tp_name);
  }
  return py::reinterpret_steal<py::object>(value);
}

// Interned for the life of the interpreter.
PyObject* name_of(const char* text) { return PyUnicode_InternFromString(text); }

Element parse_element(const py::object& dtype, const char* argument) {
  std::string text = py::str(dtype);
  const size_t dot = text.rfind('.');  // torch.float32
  if (dot != std::string::npos) text = text.substr(dot + 1);
  for (int i = 0; i < 5; ++i) {
    if (text == kElementNames[i]) return static_cast<Element>(i);
  }
  fail_check("known dtype", __FILE__, __LINE__, argument, ": expected float32, bfloat16, float16, int32 or uint8, got ", std::string(py::str(dtype)));
}

// torch's dtype objects are immortal singletons: their addresses are remembered, under the GIL.
Element element_of(const py::object& dtype, const char* argument) {
  static std::array<std::pair<PyObject*, Element>, 8> known{};
  static size_t count = 0;
  for (size_t i = 0; i < count; ++i) {
    if (known[i].first == dtype.ptr()) return known[i].second;
  }
  const Element element = parse_element(dtype, argument);
  if (count < known.size()) known[count++] = {dtype.inc_ref().ptr(), element};
  return element;
}

int64_t integer(PyObject* value, const char* argument) {
  const long long result = PyLong_AsLongLong(value);
  if (result == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    fail_check("is an integer", __FILE__, __LINE__, argument, ": a size, stride or address is no integer");
  }
  return result;
}

void read_dims(const py::object& tuple, const char* argument, int64_t* to, int* dims) {
  HETSERVE_CHECK(PyTuple_Check(tuple.ptr()), argument, ": shape and stride() must be tuples");
  const Py_ssize_t n = PyTuple_GET_SIZE(tuple.ptr());
  HETSERVE_CHECK(n <= kMaxDims, argument, ": ", n, " dimensions, at most ", kMaxDims, " are supported");
  for (Py_ssize_t i = 0; i < n; ++i) to[i] = integer(PyTuple_GET_ITEM(tuple.ptr(), i), argument);
  *dims = static_cast<int>(n);
}

py::object call(const py::object& object, PyObject* method, const char* argument) {
  PyObject* value = PyObject_CallMethodNoArgs(object.ptr(), method);
  if (value == nullptr) {
    PyErr_Clear();
    fail_check("is a dense tensor", __FILE__, __LINE__, argument, ": expected a dense tensor, got ", Py_TYPE(object.ptr())->tp_name);
  }
  return py::reinterpret_steal<py::object>(value);
}

void check_sane(const View& view, const char* argument) {
  for (int i = 0; i < view.dims; ++i) {
    HETSERVE_CHECK(view.shape[i] >= 0 && view.stride[i] >= 0, argument, ": negative size or stride, shape ", shape_text(view));
  }
  const int64_t bytes = element_bytes(view.element);
  HETSERVE_CHECK(reinterpret_cast<uintptr_t>(view.data) % bytes == 0, argument, ": its address is not a multiple of ", bytes);
  HETSERVE_CHECK(view.data != nullptr || view.count() == 0, argument, ": has no memory");
}

// numpy arrays and other readers of the buffer protocol, for int32 and float32.
View from_buffer(const py::object& object, const char* argument) {
  const py::buffer_info info = py::reinterpret_borrow<py::buffer>(object).request();
  HETSERVE_CHECK(info.ndim <= kMaxDims, argument, ": ", info.ndim, " dimensions, at most ", kMaxDims, " are supported");
  const bool int32 = info.item_type_is_equivalent_to<int32_t>();
  HETSERVE_CHECK(int32 || info.item_type_is_equivalent_to<float>(), argument, ": expected int32 or float32, got format ", info.format);
  View view{};
  view.data = static_cast<uint8_t*>(info.ptr);
  view.dims = static_cast<int>(info.ndim);
  view.element = int32 ? Element::int32 : Element::float32;
  for (int i = 0; i < view.dims; ++i) {
    view.shape[i] = info.shape[i];
    HETSERVE_CHECK(info.strides[i] % info.itemsize == 0, argument, ": stride of ", info.strides[i], " bytes is not whole elements");
    view.stride[i] = info.strides[i] / info.itemsize;
  }
  check_sane(view, argument);
  Call::add(kCpu, argument);
  return view;
}

// The index of the CUDA device that a tensor is on, or kCpu.
int device_of(const py::object& object, const char* argument) {
  static PyObject* const is_cpu = name_of("is_cpu");
  static PyObject* const is_cuda = name_of("is_cuda");
  static PyObject* const get_device = name_of("get_device");
  if (attribute(object, is_cpu, argument).ptr() == Py_True) return kCpu;
  if (!cuda_built()) fail_check("is_cpu", __FILE__, __LINE__, argument, ": expected a CPU tensor; this build of hetserve has no CUDA kernels");
  HETSERVE_CHECK(attribute(object, is_cuda, argument).ptr() == Py_True, argument, ": expected a CPU or CUDA tensor");
  return static_cast<int>(integer(call(object, get_device, argument).ptr(), argument));
}

View from_torch(const py::object& object, const char* argument) {
  static PyObject* const dtype = name_of("dtype");
  static PyObject* const shape = name_of("shape");
  static PyObject* const stride = name_of("stride");
  static PyObject* const data_ptr = name_of("data_ptr");
  Call::add(device_of(object, argument), argument);
  View view{};
  view.element = element_of(attribute(object, dtype, argument), argument);
  read_dims(attribute(object, shape, argument), argument, view.shape, &view.dims);
  int stride_dims = 0;
  read_dims(call(object, stride, argument), argument, view.stride, &stride_dims);
  HETSERVE_CHECK(stride_dims == view.dims, argument, ": ", view.dims, " sizes but ", stride_dims, " strides");
  view.data = reinterpret_cast<uint8_t*>(integer(call(object, data_ptr, argument).ptr(), argument));
  check_sane(view, argument);
  return view;
}

View as_indices(const py::object& object, const char* name, int dims, Element element) {
  static PyObject* const data_ptr = name_of("data_ptr");
  const bool torch = PyObject_HasAttr(object.ptr(), data_ptr) != 0;
  const View view = torch || !PyObject_CheckBuffer(object.ptr()) ? from_torch(object, name) : from_buffer(object, name);
  HETSERVE_CHECK(view.element == element, name, ": expected ", kElementNames[static_cast<int>(element)], ", got ",
                 kElementNames[static_cast<int>(view.element)]);
  HETSERVE_CHECK(view.dims == dims, name, ": expected ", dims, " dimensions, got shape ", shape_text(view));
  HETSERVE_CHECK(view.contiguous(), name, ": must be contiguous, shape ", shape_text(view));
  return view;
}

DType activation_type(Element element, const char* name) {
  if (element == Element::float32) return DType::float32;
  if (element == Element::float16) return DType::float16;
  HETSERVE_CHECK(element == Element::bfloat16, name, ": expected float32, bfloat16 or float16, got ", kElementNames[static_cast<int>(element)]);
  return DType::bfloat16;
}

DType activation_type(const View& view, const char* name) {
  if (view.element == Element::float16) Call::add_float16();
  return activation_type(view.element, name);
}

}  // namespace

Call::Call() : outer_(innermost) { innermost = this; }

Call::~Call() { innermost = outer_; }

void Call::check_cpu_types() const {
  HETSERVE_CHECK(!float16_ || kernels().device != nullptr, "dtype: float16 is for CUDA tensors; kernels for the CPU have float32 and bfloat16");
}

void Call::add_float16() {
  if (innermost != nullptr) innermost->float16_ = true;
}

void Call::add(int device, const char* argument) {
  Call* call = innermost;
  HETSERVE_CHECK(call != nullptr || device == kCpu, argument, ": expected a CPU tensor, is on ", device_text(device));
  if (call == nullptr) return;
  HETSERVE_CHECK(!call->any_ || call->device_ == device, argument, ": is on ", device_text(device), ", ", call->first_, " on ", device_text(call->device_));
  if (!call->any_) call->first_ = argument;
  call->any_ = true;
  call->device_ = device;
}

int64_t View::count() const {
  int64_t n = 1;
  for (int i = 0; i < dims; ++i) n *= shape[i];
  return n;
}

bool View::contiguous() const {
  int64_t expected = 1;
  for (int i = dims - 1; i >= 0; --i) {
    if (shape[i] > 1 && stride[i] != expected) return count() == 0;
    expected *= shape[i];
  }
  return true;
}

int64_t element_bytes(Element element) {
  constexpr int64_t bytes[] = {4, 2, 4, 1, 2};
  return bytes[static_cast<int>(element)];
}

std::string shape_text(const View& view) {
  std::string text = "[";
  for (int i = 0; i < view.dims; ++i) text += (i > 0 ? ", " : "") + std::to_string(view.shape[i]);
  return text + "]";
}

View as_tensor(const py::object& object, const char* name) { return from_torch(object, name); }

View as_int32(const py::object& object, const char* name, int dims) { return as_indices(object, name, dims, Element::int32); }

View as_float32(const py::object& object, const char* name, int dims) { return as_indices(object, name, dims, Element::float32); }

Rows as_rows(const py::object& object, const char* name, Use use) {
  const View view = from_torch(object, name);
  const DType dtype = activation_type(view, name);
  HETSERVE_CHECK(view.dims == 2, name, ": expected [rows, columns], got shape ", shape_text(view));
  HETSERVE_CHECK(view.shape[1] <= 1 || view.stride[1] == 1, name, ": columns must be contiguous, their stride is ", view.stride[1]);
  HETSERVE_CHECK(use == Use::read || view.shape[0] <= 1 || view.stride[0] >= view.shape[1], name, ": is written, so its rows must not overlap; stride ",
                 view.stride[0], " for ", view.shape[1], " columns");
  return {view.data, view.shape[0], view.shape[1], view.stride[0], dtype};
}

Heads as_heads(const py::object& object, const char* name, Use use) {
  View view = from_torch(object, name);
  const DType dtype = activation_type(view, name);
  HETSERVE_CHECK(view.dims == 2 || view.dims == 3, name, ": expected [rows, dim] or [rows, heads, dim], got shape ", shape_text(view));
  if (view.dims == 2) {
    view.shape[2] = view.shape[1];
    view.stride[2] = view.stride[1];
    view.shape[1] = 1;
    view.stride[1] = view.shape[2];
  }
  const int64_t* n = view.shape;
  const int64_t* stride = view.stride;
  HETSERVE_CHECK(n[2] <= 1 || stride[2] == 1, name, ": the last dimension must be contiguous, its stride is ", stride[2]);
  const bool apart = (n[1] <= 1 || stride[1] >= n[2]) && (n[0] <= 1 || stride[0] >= (n[1] - 1) * stride[1] + n[2]);
  HETSERVE_CHECK(use == Use::read || apart, name, ": is written, so its rows and heads must not overlap; strides ", stride[0], ", ", stride[1]);
  return {view.data, n[0], n[1], n[2], stride[0], stride[1], dtype};
}

const void* as_vector(const py::object& object, const char* name, int64_t dim, DType dtype) {
  const View view = from_torch(object, name);
  HETSERVE_CHECK(activation_type(view, name) == dtype, name, ": expected ", dtype_name(dtype), " like the rows");
  HETSERVE_CHECK(view.dims == 1 && view.shape[0] == dim && view.contiguous(), name, ": expected a contiguous [", dim, "], got shape ", shape_text(view));
  return view.data;
}

DType as_dtype(const py::object& object) {
  return activation_type(parse_element(object, "dtype"), "dtype");
}

const char* dtype_name(DType dtype) {
  constexpr Element elements[] = {Element::float32, Element::bfloat16, Element::float16};
  return kElementNames[static_cast<int>(elements[static_cast<int>(dtype)])];
}

}  // namespace hetserve::bind
