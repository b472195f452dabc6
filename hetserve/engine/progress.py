"""How far a stage is in its steps, for whoever copies pages behind them. The stage says so layer by layer and never waits for anybody here."""

from __future__ import annotations

import threading
from collections import deque

import torch

from hetserve.engine.accelerator import Accelerator, Mark
from hetserve.engine.model.decoder import Attend

KEPT = 256  # layers passed last that are known one by one; whoever waits for an earlier one waits for the first of these


class StageStopped(Exception):
    """The stage takes no more steps, so what is waited for will not come."""


class Progress:
    """One stage's. Steps come in the order of their numbers, and pass layers in theirs.

    Args:
        at: the stage's device. On a GPU, a layer that was passed has only been put on the stream of the steps.
    """

    def __init__(self, at: Accelerator) -> None:
        self._at = at
        self._changed = threading.Condition()
        self._passed: deque[tuple[tuple[int, int], Mark]] = deque(maxlen=KEPT)  # ((step, layer), where the device has done it)
        self._stopped = False

    def noting(self, step: int, attend: Attend) -> Attend:
        """`attend`, which notes each layer that the step has passed: its keys and values are stored and have been attended to."""

        def noted(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = attend(layer, q, k, v)
            self.passed(step, layer)
            return out

        return noted

    def passed(self, step: int, layer: int) -> None:
        """To be called where the step runs, on its stream."""
        mark = self._at.mark()
        with self._changed:
            self._passed.append(((step, layer), mark))
            self._changed.notify_all()

    def wait(self, step: int, layer: int) -> None:
        """Returns once the step has passed the layer, on the device too.

        Raises:
            StageStopped: it never will.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._mark(step, layer) is not None)
            mark = self._mark(step, layer)
        if mark is None:
            raise StageStopped
        mark.wait()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _mark(self, step: int, layer: int) -> Mark | None:
        return next((mark for at, mark in self._passed if at >= (step, layer)), None)
