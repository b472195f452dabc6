"""Where a device's work is measured: its memory, its clock, what has to be read for its caches to forget, and how its worker would launch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hetserve import _C, machine
from hetserve.engine.accelerator import Accelerator, Run, make_accelerator
from hetserve.profile.rounds import Clock, own_clock
from hetserve.spec.cluster import Device

UNKNOWN_CACHE_BYTES = 2**26
COPY_BYTES = 2**30


@dataclass(frozen=True)
class Site:
    """One device, in the process that measures it."""

    at: Accelerator
    clock: Clock  # of a CPU
    flush_bytes: int  # how much has to be read for the caches to forget
    most_captured: int  # rows of the largest decode step, which a worker on a GPU captures

    @property
    def device(self) -> torch.device:
        return self.at.device

    @property
    def isa(self) -> str:
        """What kernels are made of here: a CPU's instruction set, a GPU's architecture."""
        if self.device.type == "cuda":
            return "sm_{}{}".format(*torch.cuda.get_device_capability(self.device))
        return str(_C.info()["isa"])

    def random(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)

    def launched(self, run: Run, rows: int) -> Run:
        """`run`, of a step of so many rows, as a worker launches it."""
        if not self.at.is_gpu or rows > self.most_captured:
            return run
        run()
        self.at.synchronize()
        return self.at.capture(run)

    def timed(self, run: Run) -> float:
        """Seconds that `run` takes here."""
        if self.at.is_gpu:
            return self.at.elapsed_s(run)
        began_s = self.clock()
        run()
        return self.clock() - began_s


def open_site(device: Device, most_captured: int) -> Site:
    """This process becomes the device's: as many threads as it has cores, reproducible numbers.

    Raises:
        UnsupportedError: this build has no kernels for it. ResourceError: there is no such GPU.
    """
    torch.set_num_threads(len(device.cores))
    _C.set_threads(len(device.cores))
    torch.manual_seed(0)
    at = make_accelerator(device.kind, device.index)
    return Site(at, own_clock(device.cores), 2 * _cache_bytes(at), most_captured)


def read_bytes(device: Device, site: Site, rounds: int, tick: Callable[[], None]) -> float:
    """Bytes per second from the device's memory: what its cores read; of a GPU what a large copy reads and writes. The best of `rounds`."""
    if not site.at.is_gpu:
        found = machine.read_bandwidth(device.cores, 2 * site.flush_bytes, rounds)
    else:
        source = torch.zeros(min(COPY_BYTES, device.memory_bytes // 4), dtype=torch.uint8, device=site.device)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)

        found = 2 * source.nbytes / min(site.timed(copy) for _ in range(1 + rounds))
    tick()
    return found


def _cache_bytes(at: Accelerator) -> int:
    """Of the last cache before the memory."""
    if at.device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(at.device)
        return int(getattr(properties, "L2_cache_size", UNKNOWN_CACHE_BYTES))
    return machine.caches().get("l3", UNKNOWN_CACHE_BYTES)
