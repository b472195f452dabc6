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


# Per core. bfloat16 GEMM: AMX and AVX2 from measurements on a 2-core Xeon with AMX, AVX512-BF16 a twelfth of AMX (both: ratios stated with the
# transports), plain AVX-512 a third of that. float32: 16 or 8 lanes x 2 FMA units at about 2.5 GHz, half of it reached.
DENSE_FLOPS = {
    "bfloat16": {"amx": 400e9, "avx512bf16": 60e9, "avx512": 20e9, "avx2": 10e9},
    "float32": {"amx": 60e9, "avx512bf16": 60e9, "avx512": 60e9, "avx2": 35e9},
}
READ_BYTES = 12e9  # of one core of a server CPU whose other cores read too
STEP_S = 2e-3


def device_rates(device: Device, dtype: str) -> Rates:
    """Rates of a CPU device from its cores and its isa cap; without a cap AVX512-BF16 is assumed. A source for plans, not for results."""
    isa = device.isa or "avx512bf16"
    flops = DENSE_FLOPS["float32" if dtype == "float32" else "bfloat16"][isa]
    return Rates(flops * len(device.cores), READ_BYTES * len(device.cores), STEP_S, f"roofline: {len(device.cores)} cores, {isa}")
