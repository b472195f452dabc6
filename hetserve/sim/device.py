"""A made-up group of workers: applies a step's changes, says how long the pass takes and what it samples. No weights, no KV, only counts.

It knows how long each answer is; the controller never does. A token is MORE until an answer has its length, and then END, which every
simulated request has as its stop token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hetserve.control.messages import Int32s, RunStep, Start
from hetserve.cost.costs import HeadCost
from hetserve.cost.roofline import StepCost

END = 0
MORE = 1


@dataclass(frozen=True)
class SimStage:
    """What one stage costs: its primary's dense work, and decode attention on each of its pools, which work at the same time."""

    cost: StepCost
    heads: tuple[HeadCost, ...]


class SimGroup:
    """The slots and stages of one group.

    Args:
        slots: how many there are.
        stages, kv_heads: what a step costs.
        output_tokens: request -> tokens of each of its answers.
    """

    def __init__(self, slots: int, stages: Sequence[SimStage], kv_heads: int, output_tokens: Mapping[int, int]) -> None:
        self._stages = stages
        self._output_tokens = output_tokens
        firsts = np.cumsum([0, *(len(stage.heads) for stage in stages)])
        self._pools = [range(first, last) for first, last in pairwise(firsts.tolist())]
        self._home = np.repeat(firsts[:-1], kv_heads).astype(np.int32)
        self.placement = np.zeros((slots, len(self._home)), np.int32)
        self.standing = np.zeros(slots, bool)
        self.computed = np.zeros(slots, np.int64)  # tokens whose KV is there
        self.left = np.zeros(slots, np.int64)  # tokens the answer still has to come
        self.busy_s = 0.0  # of the busiest stage
        self.spans_s: list[tuple[float, float]] = []  # when each stage began and ended the last step
        self._busy_s = np.zeros(len(stages))
        self._free_at_s = np.zeros(len(stages))

    def run(self, step: RunStep, now_s: float) -> tuple[Int32s, float, float]:
        """Runs a step through all stages, each after the steps sent before it. Returns the sampled tokens, when it is done, and how long it ran."""
        self._apply(step)
        rows = np.flatnonzero(self.standing)
        sampled = np.concatenate([rows, step.chunk_slots[step.chunk_samples == 1]])
        begun_s = done_s = max(now_s, float(self._free_at_s[0]))
        self.spans_s.clear()
        for number in range(len(self._stages)):
            stage_s = self._stage_s(number, step, rows, len(sampled))
            done_s = max(done_s, float(self._free_at_s[number])) + stage_s
            self.spans_s.append((done_s - stage_s, done_s))
            self._free_at_s[number] = done_s
            self._busy_s[number] += stage_s
        self.busy_s = float(self._busy_s.max())
        self.computed[rows] += 1
        self.computed[step.chunk_slots] += step.chunk_tokens
        self.left[sampled] -= 1
        tokens = np.where(self.left[sampled] == 0, END, MORE).astype(np.int32)
        return tokens, done_s, done_s - begun_s

    def behind_s(self, pool: int, layers: int, move_s: float) -> float:
        """When a move is done that follows the last step from a pool and takes `move_s` by itself, an even share of it each of its layers.

        The stage passes its layers evenly too, and a layer is sent once it is passed and the one before it is there. So the last one leaves when the
        stage is done, or, where the wire is slower, all leave one after another from when the first is passed.
        """
        begun_s, done_s = next(span for pools, span in zip(self._pools, self.spans_s, strict=True) if pool in pools)
        layer_s = (done_s - begun_s) / layers
        return max(done_s + move_s / layers, begun_s + layer_s + move_s)

    def _apply(self, step: RunStep) -> None:
        self.standing[step.ends] = False
        for start in step.starts:
            self._start(start)
        for one in step.replaces:
            self.placement[one.slot][one.lanes] = one.pools
        self.standing[step.leaves] = False
        self.standing[step.joins] = True

    def _start(self, start: Start) -> None:
        self.standing[start.slot] = False
        self.placement[start.slot] = self._home
        self.computed[start.slot] = start.cached_tokens
        self.left[start.slot] = self._output_tokens[start.request] - (len(start.tokens) - start.prompt_tokens)

    def _stage_s(self, number: int, step: RunStep, rows: NDArray[np.int64], samples: int) -> float:
        before, size = self.computed[step.chunk_slots], step.chunk_tokens
        pairs = float((size * (before + size / 2)).sum())
        dense_s = self._stages[number].cost.step_s(len(rows) + int(size.sum()), samples, 0, pairs)
        return dense_s + max(self._attention_s(number, rows))

    def _attention_s(self, number: int, rows: NDArray[np.int64]) -> list[float]:
        """Decode attention on each of a stage's pools, which slow each other as soon as two of them hold something."""
        held, seconds = [], []
        for pool, cost in zip(self._pools[number], self._stages[number].heads, strict=True):
            heads = (self.placement[rows] == pool).sum(1)
            held.append(int(heads.sum()))
            seconds.append(cost.head_s * held[-1] + cost.token_s * int((heads * self.computed[rows]).sum()))
        alone = sum(count > 0 for count in held) == 1
        costs = zip(seconds, held, self._stages[number].heads, strict=True)
        return [own_s * (1 if alone else cost.shared) + cost.fixed_s if count else 0.0 for own_s, count, cost in costs]
