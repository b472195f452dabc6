"""Timing on a device, and the two floors under every figure: the bytes that must move and the operations that must be done."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from hetserve.engine.accelerator import Accelerator

ROUNDS, WARM_UP = 7, 2
REPEATS = 10  # calls at a time, fewer of a slow one
AT_ONCE_S = 0.01
COPY_BYTES = 2 << 30
DENSE_FLOPS = 989e12  # of an H100 or H200 in bfloat16, by its data sheet
NO_LIMIT_BYTES = 1 << 40  # of an emulated GPU
Run = Callable[[], object]


def timed(at: Accelerator, contestants: Mapping[str, Run]) -> dict[str, float]:
    """Seconds a call of each, the median of ROUNDS rounds in which they take turns."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    repeats = {name: REPEATS for name in contestants}
    for number in range(WARM_UP + ROUNDS):
        for name, call in contestants.items():
            count = repeats[name] if number else 1
            took_s = at.elapsed_s(repeated(call, count)) / count
            if number == 1:  # the first call of all may have loaded something
                repeats[name] = max(1, min(REPEATS, int(AT_ONCE_S / max(took_s, 1e-9))))
            if number >= WARM_UP:
                found[name].append(took_s)
    return {name: statistics.median(times) for name, times in found.items()}


def repeated(call: Run, count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            call()

    return run


def graphed(at: Accelerator, call: Run) -> Run:
    """`call` as a captured graph, so that launches from Python do not count. It stays referred to, and so does the memory that the graph reads."""
    once = repeated(call, 1)
    once()
    at.synchronize()
    return partial(_first, at.capture(once), call)


def _first(run: Run, kept: Run) -> None:
    run()


def copying(at: Accelerator, copy_bytes: int = COPY_BYTES) -> tuple[Run, int]:
    """A large copy, and the bytes that it reads and writes: the measure of bandwidth."""
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=at.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * copy_bytes


def copy_bandwidth(at: Accelerator, copy_bytes: int = COPY_BYTES) -> float:
    """Bytes read and written a second by a large copy."""
    copy, moved_bytes = copying(at, copy_bytes)
    found = moved_bytes / timed(at, {"copy": copy})["copy"]
    del copy
    give_back()
    return found


def floors(moved_bytes: float, flops: float, bandwidth: float) -> dict[str, float]:
    """Seconds that so many bytes take at a copy's bandwidth, and so many operations at the peak of the data sheet."""
    return {"bytes": moved_bytes, "flops": flops, "floor_bytes_s": moved_bytes / bandwidth, "floor_flops_s": flops / DENSE_FLOPS}


def give_back() -> None:
    """Memory that nothing holds goes back to the GPU. After a fault of a GPU nothing can, and nobody may lose the fault over it."""
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def free_bytes(at: Accelerator) -> int:
    """Of the device's memory, what torch could still get."""
    return int(torch.cuda.mem_get_info(at.device)[0]) if at.device.type == "cuda" else NO_LIMIT_BYTES


def l2_bytes(at: Accelerator) -> int:
    return int(getattr(torch.cuda.get_device_properties(at.device), "L2_cache_size", 64 << 20)) if at.device.type == "cuda" else 0


def tried(row: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row with what `run` finds; or with why it found nothing: no room for it, or a fault. Frees what it took."""
    found: dict[str, Any]
    try:
        found = run()
    except torch.OutOfMemoryError as error:
        found = {"skipped": f"out of memory: {str(error).splitlines()[0]}"}
    except Exception as error:  # one case that fails is no reason to lose the others
        found = {"right": False, "fault": f"{type(error).__name__}: {error}"}
    if "right" not in found:
        gc.collect()  # of a case that found no room much may be left
    give_back()
    return row | found


def differ(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value; infinite where something is not a number."""
    share = ((got.float() - want.float()).abs().max() / want.float().abs().max().clamp(min=1e-30)).item()
    return share if share == share else math.inf
