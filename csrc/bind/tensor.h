// Tensors as raw pointers with their shape, read from Python objects by duck typing (data_ptr, shape, stride, dtype, is_cpu): no torch headers.
// Every as_* function checks what it promises and throws std::invalid_argument naming the argument.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "hetserve/dtype.h"

namespace hetserve::bind {

namespace py = pybind11;

enum class Element : int32_t { float32, bfloat16, int32, uint8, float16 };

constexpr int kCpu = -1;

// The tensors of one call: all on the CPU, or all on one CUDA device. Made first in every function that takes tensors; whatever reads a tensor adds its
// device to the innermost Call of the thread, which refuses a mixture.
class Call {
 public:
  Call();
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  int device() const { return device_; }
  bool on_cpu() const { return device_ == kCpu; }

  // Throws for float16 on the CPU, which has no kernels for it (those of a device, run on the CPU by tests, do).
  void check_cpu_types() const;

  static void add(int device, const char* argument);
  static void add_float16();

 private:
  Call* outer_;
  int device_ = kCpu;
  bool any_ = false;
  bool float16_ = false;
  const char* first_ = "";
};

constexpr int kMaxDims = 6;

// A checked look at a tensor: valid while the Python object lives and is not resized.
struct View {
  uint8_t* data;
  int dims;
  int64_t shape[kMaxDims];
  int64_t stride[kMaxDims];  // elements
  Element element;

  int64_t count() const;
  bool contiguous() const;
};

int64_t element_bytes(Element element);

// Any CPU tensor of a known element type.
View as_tensor(const py::object& object, const char* name);

// A contiguous tensor of that type and number of dimensions; a numpy array will do as well, for reading.
View as_int32(const py::object& object, const char* name, int dims);
View as_float32(const py::object& object, const char* name, int dims);

// T [rows, columns] of float32, bfloat16 or, on a device, float16, columns contiguous, rows any distance apart.
struct Rows {
  uint8_t* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;  // elements
  DType dtype;
};

enum class Use { read, write };

// A tensor that is written must not overlap itself.
Rows as_rows(const py::object& object, const char* name, Use use);

// T [rows, heads, dim]; a 2-D tensor is [rows, 1, dim].
struct Heads {
  uint8_t* data;
  int64_t rows;
  int64_t heads;
  int64_t dim;
  int64_t row_stride;
  int64_t head_stride;
  DType dtype;
};

Heads as_heads(const py::object& object, const char* name, Use use);

// T [dim], contiguous, of that type.
const void* as_vector(const py::object& object, const char* name, int64_t dim, DType dtype);

// "float32", "bfloat16" or "float16", as text or as a torch dtype.
DType as_dtype(const py::object& object);
const char* dtype_name(DType dtype);

// A [..] text of a shape, for messages.
std::string shape_text(const View& view);

}  // namespace hetserve::bind
