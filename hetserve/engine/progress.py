"""How far a stage is in its steps, for whoever copies pages behind them. The stage says so layer by layer and never waits for anybody here."""

from __future__ import annotations

import threading

import torch

from hetserve.engine.model.decoder import Attend


class StageStopped(Exception):
    """The stage takes no more steps, so what is waited for will not come."""


class Progress:
    """One stage's. Steps come in the order of their numbers, and pass layers in theirs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at = (-1, -1)  # (step, layer) passed last
        self._stopped = False

    def noting(self, step: int, attend: Attend) -> Attend:
        """`attend`, which notes each layer that the step has passed: its keys and values are stored and have been attended to."""

        def noted(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = attend(layer, q, k, v)
            self.passed(step, layer)
            return out

        return noted

    def passed(self, step: int, layer: int) -> None:
        with self._changed:
            self._at = (step, layer)
            self._changed.notify_all()

    def wait(self, step: int, layer: int) -> None:
        """Returns once the step has passed the layer.

        Raises:
            StageStopped: it never will.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._at >= (step, layer))
            if self._at < (step, layer):
                raise StageStopped

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
