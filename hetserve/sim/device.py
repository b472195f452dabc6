"""A made-up group of workers: applies a step's changes, says how long the pass takes and what it samples. No weights, no KV, only counts.

It knows how long each answer is; the controller never does. A token is MORE until an answer has its length, and then END, which every
simulated request has as its stop token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hetserve.control.messages import Int32s, MoveKv, RunStep, Start
from hetserve.cost.costs import HeadCost
from hetserve.cost.roofline import StepCost
from hetserve.sim.faults import LOST

END = 0
MORE = 1


@dataclass(frozen=True)
class SimStage:
    """What one stage costs: its primaries' dense work, and decode attention on each of its pools, which work at the same time."""

    cost: StepCost
    heads: tuple[HeadCost, ...]
    devices: tuple[str, ...]  # of its pools, its primaries first
    ranks: int = 1

    @property
    def primary(self) -> str:
        """Stands for all its primaries, which work together."""
        return self.devices[0]

    @property
    def primaries(self) -> tuple[str, ...]:
        return self.devices[: self.ranks]


@dataclass
class Pass:
    """One step on its way through the stages of a group."""

    step: int
    group: int
    parts_s: list[tuple[float, float, float]]  # of each stage: decode attention, products of decoding rows, products of prompts
    tokens: Int32s  # what it samples
    begun_s: float = 0.0  # in the first stage
    stage_begun_s: float = 0.0  # in the one it is in
    moves: list[MoveKv] = field(default_factory=list)  # that follow it
    era: int = 0


class SimGroup:
    """The slots and stages of one group.

    Args:
        slots: how many there are.
        stages, kv_heads: what a step costs.
        output_tokens: request -> tokens of each of its answers.
        slower: device -> how many times slower it is than its costs say; those it does not have are as they should be.
    """

    def __init__(
        self, slots: int, stages: Sequence[SimStage], kv_heads: int, output_tokens: Mapping[int, int], slower: Mapping[str, float] | None = None
    ) -> None:
        self._slower = slower if slower is not None else {}
        self._stages = stages
        self._output_tokens = output_tokens
        firsts = np.cumsum([0, *(len(stage.heads) for stage in stages)])
        self._pools = [slice(first, last) for first, last in pairwise(firsts.tolist())]
        self._stage_of = np.repeat(np.arange(len(stages)), np.diff(firsts)).tolist()
        ranks = [np.arange(kv_heads) // (kv_heads // stage.ranks) for stage in stages]
        self._home = np.concatenate([first + rank for first, rank in zip(firsts[:-1], ranks, strict=True)]).astype(np.int32)
        self._home_heads = np.bincount(self._home, minlength=firsts[-1])
        self.placement = np.zeros((slots, len(self._home)), np.int32)
        self.heads = np.zeros((slots, firsts[-1]), np.int64)  # how many head groups of a slot lie in each pool
        self._head_s, self._token_s, self._fixed_s, self._shared = np.array(
            [(cost.head_s, cost.token_s, cost.fixed_s, cost.shared) for stage in stages for cost in stage.heads]
        ).T
        self.standing = np.zeros(slots, bool)
        self.computed = np.zeros(slots, np.int64)  # tokens whose KV is there
        self.left = np.zeros(slots, np.int64)  # tokens the answer still has to come
        self.busy_s = [0.0] * len(stages)  # of each stage
        self.waiting: list[deque[Pass]] = [deque() for _ in stages]  # for each stage, the one it works on first
        self.era = 0  # how often it has lost everything

    @property
    def stages(self) -> Sequence[SimStage]:
        return self._stages

    def admit(self, step: RunStep) -> Pass:
        """Applies a step's changes and says what it will take each stage, alone, and what it will sample."""
        self._apply(step)
        rows = np.flatnonzero(self.standing)
        sampled = np.concatenate([rows, step.chunk_slots[step.chunk_samples == 1]])
        attention_s = self._attention_s(rows)
        parts_s = [self._parts_s(number, step, rows, len(sampled), attention_s[number]) for number in range(len(self._stages))]
        self.computed[rows] += 1
        self.computed[step.chunk_slots] += step.chunk_tokens
        self.left[sampled] -= 1
        tokens = np.where(self.left[sampled] == 0, END, MORE).astype(np.int32)
        return Pass(step.step, step.group, parts_s, tokens, era=self.era)

    def forget(self) -> None:
        """Its primaries have lost all they knew, and what they were working on."""
        self.era += 1
        self.standing[:] = False
        for waiting in self.waiting:
            waiting.clear()

    def stage_of(self, pool: int) -> int:
        """Which stage's a pool is."""
        return self._stage_of[pool]

    def _apply(self, step: RunStep) -> None:
        self.standing[step.ends] = False
        for start in step.starts:
            self._start(start)
        for one in step.replaces:
            self.placement[one.slot][one.lanes] = one.pools
            self.heads[one.slot] = np.bincount(self.placement[one.slot], minlength=self.heads.shape[1])
        self.standing[step.leaves] = False
        self.standing[step.joins] = True

    def _start(self, start: Start) -> None:
        self.standing[start.slot] = False
        self.placement[start.slot] = self._home
        self.heads[start.slot] = self._home_heads
        self.computed[start.slot] = start.cached_tokens
        self.left[start.slot] = self._output_tokens[start.request] - (len(start.tokens) - start.prompt_tokens)

    def _parts_s(self, number: int, step: RunStep, rows: NDArray[np.int64], samples: int, attention_s: float) -> tuple[float, float, float]:
        before, size = self.computed[step.chunk_slots], step.chunk_tokens
        pairs = float((size * (before + size / 2)).sum())
        cost, chunks = self._stages[number].cost, int(size.sum())
        dense_s = cost.step_s(len(rows) + chunks, samples, 0, pairs)
        decode_s = cost.step_s(len(rows), len(rows), 0, 0.0) if len(rows) and chunks else 0.0 if chunks else dense_s
        slower = self._slowest(self._stages[number].primaries)
        return attention_s, slower * decode_s, slower * (dense_s - decode_s)

    def _attention_s(self, rows: NDArray[np.int64]) -> list[float]:
        """Decode attention of each stage, on the slowest of its pools, which slow each other as soon as two of them hold something."""
        if not len(rows):
            return [0.0] * len(self._stages)
        heads = self.heads[rows]
        held = heads.sum(0)
        seconds = self._head_s * held + self._token_s * (self.computed[rows] @ heads)
        if self._slower:
            times = [self._slower.get(device, 1.0) for stage in self._stages for device in stage.devices]
            seconds *= [0.0 if slower == LOST else slower for slower in times]  # nobody waits for what is gone
        seconds = np.where(held > 0, seconds, 0.0)
        found = []
        for pools in self._pools:
            together = np.count_nonzero(held[pools]) > 1
            each = seconds[pools] * self._shared[pools] if together else seconds[pools]
            found.append(float((each + np.where(held[pools] > 0, self._fixed_s[pools], 0.0)).max()))
        return found

    def _slowest(self, devices: Sequence[str]) -> float:
        return max(self._slower.get(device, 1.0) for device in devices) if self._slower else 1.0
