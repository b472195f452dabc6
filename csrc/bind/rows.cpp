// Norms, rope and silu_mul for Python: checks, then one call.
#include "bind/dispatch.h"
#include "bind/pool.h"
#include "hetserve/check.h"
#include "hetserve/isa.h"
#include "hetserve/run.h"

namespace hetserve::bind {
namespace {

void check_same(const Heads& x, const Heads& y, const char* name) {
  HETSERVE_CHECK(x.rows == y.rows && x.heads == y.heads && x.dim == y.dim, name, ": expected [", x.rows, ", ", x.heads, ", ", x.dim, "] like x, got [", y.rows,
                 ", ", y.heads, ", ", y.dim, "]");
  HETSERVE_CHECK(x.dtype == y.dtype, name, ": is ", dtype_name(y.dtype), ", x is ", dtype_name(x.dtype));
}

NormParams norm_params(const py::object& x, const py::object& weight, const py::object& out, float eps) {
  const Heads from = as_heads(x, "x", Use::read), to = as_heads(out, "out", Use::write);
  check_same(from, to, "out");
  HETSERVE_CHECK(from.dim > 0, "x: the last dimension is empty");
  NormParams p{};
  p.x = from.data;
  p.weight = as_vector(weight, "weight", from.dim, from.dtype);
  p.out = to.data;
  p.rows = from.rows;
  p.heads = from.heads;
  p.dim = from.dim;
  p.x_row = from.row_stride;
  p.x_head = from.head_stride;
  p.out_row = to.row_stride;
  p.out_head = to.head_stride;
  p.eps = eps;
  p.dtype = from.dtype;
  return p;
}

void add_residual(NormParams& p, const py::object& residual) {
  const Heads r = as_heads(residual, "residual", Use::write);
  check_same({nullptr, p.rows, p.heads, p.dim, 0, 0, p.dtype}, r, "residual");
  p.residual = r.data;
  p.residual_row = r.row_stride;
  p.residual_head = r.head_stride;
}

void rms_norm(const py::object& x, const py::object& weight, const py::object& out, float eps) {
  const Call call;
  const NormParams p = norm_params(x, weight, out, eps);
  dispatch(call, run_rms_norm, &DeviceOps::rms_norm, p);
}

void add_rms_norm(const py::object& x, const py::object& residual, const py::object& weight, const py::object& out, float eps) {
  const Call call;
  NormParams p = norm_params(x, weight, out, eps);
  add_residual(p, residual);
  dispatch(call, run_rms_norm, &DeviceOps::rms_norm, p);
}

void layer_norm(const py::object& x, const py::object& weight, const py::object& bias, const py::object& out, float eps) {
  const Call call;
  NormParams p = norm_params(x, weight, out, eps);
  p.bias = as_vector(bias, "bias", p.dim, p.dtype);
  dispatch(call, run_layer_norm, &DeviceOps::layer_norm, p);
}

void add_layer_norm(const py::object& x, const py::object& residual, const py::object& weight, const py::object& bias, const py::object& out, float eps) {
  const Call call;
  NormParams p = norm_params(x, weight, out, eps);
  p.bias = as_vector(bias, "bias", p.dim, p.dtype);
  add_residual(p, residual);
  dispatch(call, run_layer_norm, &DeviceOps::layer_norm, p);
}

void check_positions(const View& positions, int64_t max_pos) {
  const auto* at = reinterpret_cast<const int32_t*>(positions.data);
  for (int64_t i = 0; i < positions.shape[0]; ++i) {
    HETSERVE_CHECK(at[i] >= 0 && at[i] < max_pos, "positions[", i, "] is ", at[i], ", cos_sin has positions 0 to ", max_pos - 1);
  }
}

void rope(const py::object& q, const py::object& k, const py::object& positions, const py::object& cos_sin, int64_t head_dim) {
  const Call call;
  const Rows queries = as_rows(q, "q", Use::write), keys = as_rows(k, "k", Use::write);
  const View at = as_int32(positions, "positions", 1), table = as_float32(cos_sin, "cos_sin", 3);
  HETSERVE_CHECK(table.shape[1] == 2 && table.shape[2] > 0, "cos_sin: expected [max_pos, 2, rot_dim / 2], got ", shape_text(table));
  HETSERVE_CHECK(head_dim > 0 && 2 * table.shape[2] <= head_dim, "head_dim ", head_dim, ": cos_sin turns ", 2 * table.shape[2], " of them");
  HETSERVE_CHECK(queries.rows == at.shape[0] && keys.rows == at.shape[0], "q has ", queries.rows, " rows, k ", keys.rows, ", positions ", at.shape[0]);
  HETSERVE_CHECK(queries.columns % head_dim == 0 && keys.columns % head_dim == 0, "head_dim ", head_dim, ": q has ", queries.columns, " columns, k ",
                 keys.columns);
  HETSERVE_CHECK(queries.dtype == keys.dtype, "q is ", dtype_name(queries.dtype), ", k ", dtype_name(keys.dtype));
  if (call.on_cpu()) check_positions(at, table.shape[0]);  // a device's are the caller's to check
  RopeParams p{};
  p.q = queries.data;
  p.k = keys.data;
  p.positions = reinterpret_cast<const int32_t*>(at.data);
  p.cos_sin = reinterpret_cast<const float*>(table.data);
  p.rows = queries.rows;
  p.q_heads = queries.columns / head_dim;
  p.kv_heads = keys.columns / head_dim;
  p.head_dim = head_dim;
  p.rot_half = table.shape[2];
  p.q_stride = queries.stride;
  p.k_stride = keys.stride;
  p.dtype = queries.dtype;
  dispatch(call, run_rope, &DeviceOps::rope, p);
}

void silu_mul(const py::object& gate_up, const py::object& out) {
  const Call call;
  const Rows from = as_rows(gate_up, "gate_up", Use::read), to = as_rows(out, "out", Use::write);
  HETSERVE_CHECK(from.rows == to.rows && from.columns == 2 * to.columns, "gate_up [", from.rows, ", ", from.columns, "], out [", to.rows, ", ", to.columns,
                 "]: expected twice as many columns");
  HETSERVE_CHECK(from.dtype == to.dtype, "gate_up is ", dtype_name(from.dtype), ", out ", dtype_name(to.dtype));
  const SiluMulParams p{from.data, to.data, from.rows, to.columns, from.stride, to.stride, from.dtype};
  dispatch(call, run_silu_mul, &DeviceOps::silu_mul, p);
}

void argmax(const py::object& x, const py::object& out) {
  const Call call;
  const Rows from = as_rows(x, "x", Use::read);
  const View to = as_int32(out, "out", 1);
  HETSERVE_CHECK(to.shape[0] == from.rows && from.columns > 0 && from.columns <= INT32_MAX, "x [", from.rows, ", ", from.columns, "], out ", shape_text(to));
  HETSERVE_CHECK(!call.on_cpu() || kernels().device != nullptr, "argmax: only for CUDA tensors");
  const ArgmaxParams p{from.data, reinterpret_cast<int32_t*>(to.data), from.rows, from.columns, from.stride, from.dtype};
  dispatch(call, run_argmax, &DeviceOps::argmax, p);
}

}  // namespace

void bind_rows(py::module_& module) {
  module.def("rms_norm", &rms_norm, py::arg("x"), py::arg("weight"), py::arg("out"), py::arg("eps"));
  module.def("add_rms_norm", &add_rms_norm, py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("out"), py::arg("eps"));
  module.def("layer_norm", &layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("eps"));
  module.def("add_layer_norm", &add_layer_norm, py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("eps"));
  module.def("rope", &rope, py::arg("q"), py::arg("k"), py::arg("positions"), py::arg("cos_sin"), py::arg("head_dim"));
  module.def("argmax", &argmax, py::arg("x"), py::arg("out"));
  module.def("silu_mul", &silu_mul, py::arg("gate_up"), py::arg("out"));
}

}  // namespace hetserve::bind
