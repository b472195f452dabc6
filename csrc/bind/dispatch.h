// Runs a checked op where its tensors are: on this thread and torch's pool, or on torch's current stream of their device.
#pragma once

#include "bind/tensor.h"
#include "hetserve/device_ops.h"

namespace hetserve::bind {

// The device's table and torch's current stream for it, made current for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const DeviceOps& ops;
  const Stream stream;

 private:
  int before_;
};

template <class P>
void dispatch(const Call& call, void (*on_cpu)(const P&), void (*DeviceOps::*op)(const P&, Stream), const P& p) {
  if (call.on_cpu()) {
    call.check_cpu_types();
    const py::gil_scoped_release release;
    on_cpu(p);
    return;
  }
  const OnDevice device(call.device());
  const py::gil_scoped_release release;
  (device.ops.*op)(p, device.stream);
}

}  // namespace hetserve::bind
