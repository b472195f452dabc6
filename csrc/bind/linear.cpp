// Products of few rows for Python: checks, then one call.
#include "bind/pool.h"
#include "hetserve/check.h"
#include "hetserve/run.h"

namespace hetserve::bind {
namespace {

void linear(const py::object& x, const py::object& weight, const py::object& bias, bool relu, const py::object& out) {
  const Call call;
  const Rows from = as_rows(x, "x", Use::read), to = as_rows(out, "out", Use::write);
  const View blocks = as_tensor(weight, "weight");
  HETSERVE_CHECK(from.dtype == DType::bfloat16 && to.dtype == DType::bfloat16, "x is ", dtype_name(from.dtype), ", out ", dtype_name(to.dtype),
                 ": expected bfloat16");
  HETSERVE_CHECK(blocks.element == Element::bfloat16 && blocks.dims == 5 && blocks.contiguous() && blocks.shape[2] == kLinearPairs &&
                     blocks.shape[3] == kLinearColumns && blocks.shape[4] == 2,
                 "weight: expected contiguous bfloat16 [outputs / 64, inputs / 32, 16, 64, 2], got ", shape_text(blocks));
  LinearParams p{};
  p.inputs = blocks.shape[1] * kLinearPairs * 2;
  p.outputs = blocks.shape[0] * kLinearColumns;
  HETSERVE_CHECK(from.columns == p.inputs && to.columns == p.outputs && from.rows == to.rows, "x [", from.rows, ", ", from.columns, "], out [", to.rows, ", ",
                 to.columns, "]: the weight turns ", p.inputs, " columns into ", p.outputs);
  p.x = reinterpret_cast<const bf16*>(from.data);
  p.weight = reinterpret_cast<const bf16*>(blocks.data);
  p.bias = bias.is_none() ? nullptr : static_cast<const bf16*>(as_vector(bias, "bias", p.outputs, DType::bfloat16));
  p.out = reinterpret_cast<bf16*>(to.data);
  p.rows = from.rows;
  p.x_stride = from.stride;
  p.out_stride = to.stride;
  p.relu = relu;
  HETSERVE_CHECK(call.on_cpu(), "linear: only for CPU tensors; a device has libraries for it");
  const py::gil_scoped_release release;
  run_linear(p);
}

}  // namespace

void bind_linear(py::module_& module) {
  module.def("linear", &linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("relu"), py::arg("out"));
}

}  // namespace hetserve::bind
