"""Reports steps that a GPU is still busy with once it is done, so that whoever puts steps there need not wait: the next one is prepared meanwhile."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hetserve.engine.accelerator import Accelerator, Mark
from hetserve.engine.wire import StepResult

CLOSE_S = 2.0


@dataclass(frozen=True)
class Unfinished:
    """A step that has been put on the device.

    Attributes:
        mark: where the device has done it.
        tokens: int32 [sampled] on the host, there once the device has passed the mark.
        result: its tokens and times are still to come.
        began_s, launched_s: when its preparation began and when all of it had been put there, by `time.perf_counter`.
    """

    mark: Mark
    tokens: torch.Tensor
    result: StepResult
    began_s: float
    launched_s: float

    def finished(self, since_s: float) -> StepResult:
        """Waits for the device. A step's time counts from its beginning, or from the end of the step before, `since_s`, if that was later."""
        self.mark.wait()
        end_s = time.perf_counter()
        parts_s = self.result.parts_s | {"sample": end_s - self.launched_s}
        return replace(self.result, tokens=self.tokens.numpy().copy(), step_s=end_s - max(self.began_s, since_s), parts_s=parts_s)


class Finisher:
    """A thread that waits for steps in the order they were put on the device.

    Args:
        device: this worker's name.
        report: takes the results, from that thread.
        failed: takes a fault of the device, from that thread too; none of the steps after it is reported.
        at: the device.
    """

    def __init__(self, device: str, report: Callable[[StepResult], None], failed: Callable[[Exception], None], at: Accelerator) -> None:
        self._report = report
        self._failed = failed
        self._at = at
        self._steps: queue.SimpleQueue[Unfinished | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"finisher {device}", daemon=True)
        self._thread.start()

    def put(self, step: Unfinished) -> None:
        """Takes a step. Returns at once."""
        self._steps.put(step)

    def close(self) -> None:
        """Those under way are waited for, but not for long."""
        self._steps.put(None)
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        end_s = 0.0
        try:
            self._at.begin_thread()
            while (step := self._steps.get()) is not None:
                result = step.finished(end_s)
                end_s = time.perf_counter()
                self._report(result)
        except Exception as error:  # of the device: it takes no more work, and whoever waits for this step may send no more messages
            self._failed(error)
