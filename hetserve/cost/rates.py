"""How fast a device is when nobody has measured it: what a core or a GPU reaches in practice, with where each number comes from."""

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
# A GPU's name is in no cluster file, so this is the slowest of those with published measurements: products in 16 bits as layers of an RTX 3090 (67 of
# its 71 TFLOP/s; an A40 reaches 124, an H100 939), weights read as by an A40 (558 GB/s; an RTX 3090 797, an H100 2,889): llmservingsim, vidur,
# aiconfigurator. float32 is not in them: three quarters of the 19.5 TFLOP/s that an A100 has on paper. Older ones (T4, P100) are slower.
GPU_FLOPS = {"bfloat16": 67e12, "float32": 15e12}
GPU_READ_BYTES = 558e9
STEP_S = 2e-3  # with GPUs too: scheduling, inputs, sampling and outputs took vLLM 1.9 and 2.1 ms at 8 sequences (vidur: A100, A40)


def device_rates(device: Device, dtype: str) -> Rates:
    """Rates of a CPU device from its cores and its isa cap; without a cap AVX512-BF16 is assumed. All GPUs are alike, emulated ones too, whose plans
    are to be a GPU's. A source for plans, not for results."""
    kind = "float32" if dtype == "float32" else "bfloat16"
    if device.is_gpu:
        return Rates(GPU_FLOPS[kind], GPU_READ_BYTES, STEP_S, "roofline: a GPU, as slow as an RTX 3090 or A40")
    isa = device.isa or "avx512bf16"
    dense, attention = (device.stretch.dense, device.stretch.attention) if device.stretch else (1.0, 1.0)
    source = f"roofline: {len(device.cores)} cores, {isa}{', stretched' if device.stretch else ''}"
    return Rates(DENSE_FLOPS[kind][isa] * len(device.cores) / dense, READ_BYTES * len(device.cores) / attention, STEP_S * dense, source)
