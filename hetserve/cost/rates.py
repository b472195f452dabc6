"""How fast a device is when nobody has measured it: peaks a core reaches in practice, with where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.spec.cluster import Device


@dataclass(frozen=True)
class Rates:
    """What one device sustains."""

    dense_flops: float  # floating-point operations per second, large matrices
    read_bytes: float  # bytes per second from memory
    step_s: float  # fixed time of a step: launching, small operations
    source: str  # "roofline", "fit" or "profile", and of what


# Per core, large matrices through oneDNN or MKL. bfloat16: 500 to 1,000 GFLOP/s with AMX and 15 with AVX2 alone on one Xeon, a twelfth of AMX with
# AVX512-BF16 there, 144 on an EPYC (Zen 4); a third of AVX512-BF16 for AVX-512 without it. float32: 66 on that EPYC, half of it with AVX2.
DENSE_FLOPS = {
    "bfloat16": {"amx": 700e9, "avx512bf16": 100e9, "avx512": 33e9, "avx2": 15e9},
    "float32": {"amx": 65e9, "avx512bf16": 65e9, "avx512": 65e9, "avx2": 33e9},
}
READ_BYTES = 16e9  # per core: 17 to 18 GB/s alone on that Xeon, 34 to 35 on two cores; 16 on the EPYC
STEP_S = 2e-3


def device_rates(device: Device, dtype: str) -> Rates:
    """Rates of a CPU device from its cores and its isa cap; without a cap AVX512-BF16 is assumed. A source for plans, not for results."""
    isa = device.isa or "avx512bf16"
    flops = DENSE_FLOPS["float32" if dtype == "float32" else "bfloat16"][isa]
    dense, attention = (device.stretch.dense, device.stretch.attention) if device.stretch else (1.0, 1.0)
    source = f"roofline: {len(device.cores)} cores, {isa}{', stretched' if device.stretch else ''}"
    return Rates(flops * len(device.cores) / dense, READ_BYTES * len(device.cores) / attention, STEP_S * dense, source)
