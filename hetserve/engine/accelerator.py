"""Where a worker's tensors lie and how its work gets there: a CPU, a GPU, or a GPU whose kernels run on fibers of the CPU, for tests.

On a CPU an op is done when its call returns. On a GPU it is put on the current stream: whoever needs its outcome on the host waits for it
(`synchronize`, or a `Mark`), and what is sent there comes from pinned memory: a copy from any other waits for all that was put there before.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from hetserve import _C
from hetserve.errors import ResourceError, UnsupportedError
from hetserve.spec.cluster import CUDA, EMULATED

Run = Callable[[], None]


class Mark(Protocol):
    """A moment in the work that was put on a device."""

    def wait(self) -> None:
        """Returns once the device has come that far."""


class Accelerator(Protocol):
    """One device, for everything of a worker."""

    device: torch.device  # of weights, KV and activations
    layout: str  # of KV pages: "packed" for the CPU's kernels, "plain" for a GPU's
    is_gpu: bool  # attention takes plans in device memory, steps can be captured

    def begin_thread(self) -> None:
        """Makes it the calling thread's device, and its stream for steps the current one: both belong to a thread."""

    def host(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory on the host that the device copies from and to without waiting for the host."""

    def send(self, values: NDArray[Any]) -> torch.Tensor:
        """The same on the device, for what is put on the current stream from now on. Waits for nothing; on a CPU it is no copy."""

    def mark(self, soon: bool = False) -> Mark:
        """Now, on the current stream.

        Args:
            soon: whoever waits for it needs it at once, and the device is nearly there: the wait takes a core, and no time to wake up.
        """

    def synchronize(self) -> None:
        """Waits for the current stream."""

    def background(self) -> AbstractContextManager[object]:
        """What is put on the device inside gives way to everything else (for as long as the thread stays inside)."""

    def warm_up(self, run: Run) -> None:
        """To be called with what will be captured: a first run may load and allocate what a capture must not."""

    def capture(self, run: Run) -> Run:
        """What does again, on the same memory, what `run` puts on the device. It has been warmed up, or has run before.

        Captures of one device share memory: what one leaves for another, or for the host, stays referred to, and they run in the order of their
        capture.
        """

    def elapsed_s(self, run: Run) -> float:
        """Seconds that the device takes for what `run` puts on the current stream, waiting for the host between them counted. Waits for the end."""


class _Done:
    """A mark of a device that is never behind."""

    def wait(self) -> None:
        return


class CpuAccelerator:
    device = torch.device("cpu")
    layout = "packed"
    is_gpu = False

    def host(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def send(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values)

    def mark(self, soon: bool = False) -> Mark:
        return _Done()

    def synchronize(self) -> None:
        return

    def background(self) -> AbstractContextManager[object]:
        return nullcontext()

    def begin_thread(self) -> None:
        return

    def warm_up(self, run: Run) -> None:
        return

    def capture(self, run: Run) -> Run:
        return run

    def elapsed_s(self, run: Run) -> float:
        began_s = time.perf_counter()
        run()
        return time.perf_counter() - began_s


class EmulatedGpu(CpuAccelerator):
    """The CPU, with a GPU's kernels, plans and page layout."""

    layout = "plain"
    is_gpu = True

    def __init__(self) -> None:
        _C.use_isa("cuda-emulated")


class CudaGpu:
    """One NVIDIA GPU, and the current device of the thread that makes this."""

    layout = "plain"
    is_gpu = True
    _capturing = threading.Lock()  # torch captures one graph of a process at a time
    _kept: torch.cuda.CUDAGraph | None = (
        None  # the first: memory for graphs ends with the last that has it, and torch then captures none for it any more
    )

    def __init__(self, index: int) -> None:
        if not _C.info()["cuda"]:
            raise UnsupportedError("hetserve was built without CUDA kernels", "`make install` builds them where nvcc 12 or newer is")
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise ResourceError(f"there is no GPU {index} here that torch can use", "`hetserve doctor` lists GPUs, and how torch was built")
        self.device = torch.device("cuda", index)
        self._background = torch.cuda.Stream(self.device, priority=0)
        self._steps = torch.cuda.Stream(self.device, priority=-1)  # before what runs in the background
        self._pool = torch.cuda.graph_pool_handle()
        self.begin_thread()

    def begin_thread(self) -> None:
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(self._steps)

    def host(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, values: NDArray[Any]) -> torch.Tensor:
        return sent(torch.from_numpy(values), self.device)

    def mark(self, soon: bool = False) -> Mark:
        return _Event(sleeps=not soon)

    def synchronize(self) -> None:
        torch.cuda.current_stream().synchronize()

    def background(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._background)

    def warm_up(self, run: Run) -> None:
        run()

    def capture(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        with self._capturing, _no_collection():
            graph.capture_begin(self._pool, "thread_local")  # other threads move KV meanwhile
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # what went wrong is more worth telling than that the capture did
                    graph.capture_end()
                raise
            graph.capture_end()
        self._kept = self._kept or graph
        return graph.replay

    def elapsed_s(self, run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3  # of milliseconds


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What lies on the host, for what is put on the device's current stream from now on. Waits for nothing; on a CPU it is no copy."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)  # torch keeps pinned memory until its copy is done


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected meanwhile: among it may be graphs and events, whose end would end a capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Event:
    """A mark on a CUDA stream."""

    def __init__(self, sleeps: bool) -> None:
        self._event = torch.cuda.Event(blocking=sleeps)  # to wake up takes some 30 us
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()


def make_accelerator(kind: str, index: int = 0) -> Accelerator:
    """The device of a worker of that kind, as cluster files name it.

    Raises:
        UnsupportedError: this build has no kernels for it. ResourceError: there is no such GPU.
    """
    if kind == CUDA:
        return CudaGpu(index)
    return EmulatedGpu() if kind == EMULATED else CpuAccelerator()
