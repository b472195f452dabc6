"""NVIDIA aiconfigurator's tables (Apache-2.0): matrix products, attention and collectives of vLLM's kernels on A100-SXM and H100-SXM, times in ms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hetserve.cost.fits import Table
from hetserve.cost.kernels import CUSTOM_BYTES
from hetserve.cost.library import chip_of, wire_of
from hetserve.profile.published.files import Folder, text

DEVICES = {"a100_sxm": "A100-SXM-80GB", "h100_sxm": "H100-SXM-80GB", "h200_sxm": "H200-SXM-141GB", "l40s": "L40S-48GB"}
SOURCE = "aiconfigurator"
LEAST = 512  # rows and columns of weights; no layer of a model worth several GPUs has fewer
MOST_ROWS = 16384  # of a step
MOST_TOKENS = 32768  # of a context
LEAST_HEADS = 4
NUMBERS = {"half": 2, "bfloat16": 2, "int8": 1}  # bytes of an element of a collective


def tables(folder: Folder) -> list[Table]:
    """Of every device there is a folder of."""
    found = []
    for name, device in DEVICES.items():
        for pattern, read in (("gemm_perf", _gemm), ("generation_attention", _decode), ("context_attention", _prefill)):
            found += [read(folder, path, device) for path in folder.files(f"{SOURCE}/{name}/{pattern}*.csv")]
        for pattern, kind in (("custom_allreduce", "custom"), ("nccl", "nccl")):
            found += [_all_reduce(folder, path, device, kind) for path in folder.files(f"{SOURCE}/{name}/{pattern}*.csv")]
    return found


def _gemm(folder: Folder, path: Path, device: str) -> Table:
    rows = folder.table(path, {name: "f" for name in ("m", "n", "k", "latency")})
    rows = rows[(rows.n >= LEAST) & (rows.k >= LEAST) & (rows.m <= MOST_ROWS)]
    m, n, k, latency_ms = (rows[name].to_numpy(float) for name in ("m", "n", "k", "latency"))
    return Table(device, SOURCE, "gemm", chip_of(device), {"m": m, "n": n, "k": k}, latency_ms * 1e-3, text((n, k)))


def _decode(folder: Folder, path: Path, device: str) -> Table:
    columns = ("batch_size", "isl", "num_heads", "num_key_value_heads", "step", "latency")
    rows = folder.table(path, {name: "f" for name in columns})
    rows = rows[(rows.num_heads >= LEAST_HEADS) & (rows.step + rows.isl <= MOST_TOKENS)]
    sequences, one, q_heads, kv_heads, step, latency_ms = (rows[name].to_numpy(float) for name in columns)
    inputs = {"sequences": sequences, "tokens": sequences * (step + one), "longest": step + one, "q_heads": q_heads, "kv_heads": kv_heads}
    return Table(device, SOURCE, "decode", chip_of(device), inputs, latency_ms * 1e-3, text((q_heads, kv_heads)))


def _prefill(folder: Folder, path: Path, device: str) -> Table:
    columns = ("batch_size", "isl", "num_heads", "num_key_value_heads", "step", "latency")
    rows = folder.table(path, {name: "f" for name in columns})
    rows = rows[(rows.num_heads >= LEAST_HEADS) & (rows.batch_size * rows.isl <= MOST_ROWS)]
    count, new, q_heads, kv_heads, before, latency_ms = (rows[name].to_numpy(float) for name in columns)
    inputs = {"pairs": count * new * (before + (new + 1) / 2), "rows": count * new, "longest": before + new, "q_heads": q_heads}
    return Table(device, SOURCE, "prefill", chip_of(device), inputs, latency_ms * 1e-3, text((q_heads, kv_heads)))


def _all_reduce(folder: Folder, path: Path, device: str, kind: str) -> Table:
    """vLLM's own all-reduce as captured in a graph, or NCCL's. Message sizes are in elements."""
    dtype = "allreduce_dtype" if kind == "custom" else "nccl_dtype"
    rows = folder.table(path, {"op_name": "s", "kernel_source": "s", dtype: "s", "num_gpus": "f", "message_size": "f", "latency": "f"})
    rows = rows[(rows.op_name == "all_reduce") & rows.kernel_source.isin(("NCCL", "vLLM_custom_graph")) & rows[dtype].isin(list(NUMBERS))]
    ranks, elements, latency_ms = (rows[name].to_numpy(float) for name in ("num_gpus", "message_size", "latency"))
    size_bytes = elements * np.array([NUMBERS[name] for name in rows[dtype]], float)
    table = Table(device, SOURCE, kind, wire_of(device).bytes_per_s, {"ranks": ranks, "size_bytes": size_bytes}, latency_ms * 1e-3, text((ranks,)))
    return table.rows(size_bytes < CUSTOM_BYTES) if kind == "custom" else table
