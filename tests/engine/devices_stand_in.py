"""Accelerators for tests of what moves tensors: pages as a GPU has them, with the CPU's own kernels, and one that is behind what it was given."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

import pytest
import torch

from hetserve import _C
from hetserve.engine.accelerator import Accelerator, CpuAccelerator, CudaGpu, Mark

WAIT_S = 20


class PlainGpu(CpuAccelerator):
    """Like an emulated GPU, but kernels are the CPU's: the process's instruction set stays as it is, and tests are fast."""

    layout = "plain"
    is_gpu = True


class LateMark:
    """A mark that the device passes when the test says so."""

    def __init__(self) -> None:
        self.passed = threading.Event()
        self.waited = 0

    def wait(self) -> None:
        self.waited += 1
        assert self.passed.wait(WAIT_S), "nobody let the device go on"


@dataclass
class LateGpu(PlainGpu):
    """Its marks are late once `late` is set; until then it is never behind."""

    late: bool = False
    marks: list[LateMark] = field(default_factory=list)
    made: list[torch.Tensor] = field(default_factory=list)  # all memory it gave on the host

    def mark(self, soon: bool = False) -> Mark:
        mark = LateMark()
        if not self.late:
            mark.passed.set()
        self.marks.append(mark)
        return mark

    def host(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        self.made.append(super().host(*shape, dtype=dtype))
        return self.made[-1]

    def go_on(self) -> None:
        for mark in self.marks:
            mark.passed.set()


def make_at(kind: str) -> Accelerator:
    """A CPU, what stands for a GPU, or a GPU. Without one the test is skipped, or fails where HETSERVE_TEST_GPU=required says there should be one."""
    if kind != "cuda":
        return {"cpu": CpuAccelerator, "gpu": PlainGpu}[kind]()
    if not _C.info()["cuda"] or not torch.cuda.is_available():
        what = "no GPU, or a build without CUDA kernels"
        (pytest.fail if os.environ.get("HETSERVE_TEST_GPU") == "required" else pytest.skip)(what)
    return CudaGpu(0)
