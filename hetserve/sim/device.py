"""A made-up worker: applies a step's changes, says how long the pass takes and what it samples. No weights, no KV, only counts.

It knows how long each answer is; the controller never does. A token is MORE until an answer has its length, and then END, which every
simulated request has as its stop token.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hetserve.control.messages import Int32s, RunStep, Start
from hetserve.cost.roofline import StepCost

END = 0
MORE = 1


class SimWorker:
    """The slots of one group.

    Args:
        slots: how many there are.
        cost: the time of a step.
        output_tokens: request -> tokens of each of its answers.
    """

    def __init__(self, slots: int, cost: StepCost, output_tokens: Mapping[int, int]) -> None:
        self._cost = cost
        self._output_tokens = output_tokens
        self.standing = np.zeros(slots, bool)
        self.computed = np.zeros(slots, np.int64)  # tokens whose KV is there
        self.left = np.zeros(slots, np.int64)  # tokens the answer still has to come
        self.busy_s = 0.0
        self.free_at_s = 0.0

    def run(self, step: RunStep, now_s: float) -> tuple[Int32s, float, float]:
        """Runs a step after those sent before it. Returns the sampled tokens, when it is done, and how long it ran."""
        self.standing[step.ends] = False
        for start in step.starts:
            self._start(start)
        self.standing[step.leaves] = False
        self.standing[step.joins] = True
        rows = np.flatnonzero(self.standing)
        sampled = np.concatenate([rows, step.chunk_slots[step.chunk_samples == 1]])
        step_s = self._step_s(step, rows, len(sampled))
        self.computed[rows] += 1
        self.computed[step.chunk_slots] += step.chunk_tokens
        self.left[sampled] -= 1
        tokens = np.where(self.left[sampled] == 0, END, MORE).astype(np.int32)
        self.free_at_s = max(self.free_at_s, now_s) + step_s
        self.busy_s += step_s
        return tokens, self.free_at_s, step_s

    def _start(self, start: Start) -> None:
        self.standing[start.slot] = False
        self.computed[start.slot] = start.cached_tokens
        self.left[start.slot] = self._output_tokens[start.request] - (len(start.tokens) - start.prompt_tokens)

    def _step_s(self, step: RunStep, rows: np.ndarray, samples: int) -> float:
        before, size = self.computed[step.chunk_slots], step.chunk_tokens
        pairs = float((size * (before + size / 2)).sum())
        return self._cost.step_s(len(rows) + int(size.sum()), samples, int(self.computed[rows].sum()), pairs)
