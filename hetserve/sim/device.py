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
    rows: int  # decoding sequences and prompts' tokens
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
        self.standing = np.zeros(slots, bool)
        self._rows: NDArray[np.int64] | None = np.zeros(0, np.int64)  # the slots that stand, ascending; None: not known
        self._held = np.zeros(firsts[-1], np.int64)  # [pools] head groups of those that stand
        self._cached = np.zeros(firsts[-1], np.int64)  # [pools] the same times the tokens that each has
        self.computed = np.zeros(slots, np.int64)  # tokens whose KV is there
        self.left = np.zeros(slots, np.int64)  # tokens the answer still has to come
        self.busy_s = [0.0] * len(stages)  # of each stage
        self.attended_s = [0.0] * int(firsts[-1])  # of each pool: decode attention, as long as it takes while nothing slows it
        self.waiting: list[deque[Pass]] = [deque() for _ in stages]  # for each stage, the one it works on first
        self.sending: list[deque[Pass]] = [deque() for _ in stages]  # from each stage to the next, the one on its way first
        self.era = 0  # how often it has lost everything

    @property
    def stages(self) -> Sequence[SimStage]:
        return self._stages

    def admit(self, step: RunStep) -> Pass:
        """Applies a step's changes and says what it will take each stage, alone, and what it will sample."""
        self._apply(step)
        if self._rows is None:
            self._rows = np.flatnonzero(self.standing)
        rows, size = self._rows, step.chunk_tokens
        sampled, chunks, pairs = rows, 0, 0.0
        if len(size):
            sampled, chunks = np.concatenate([rows, step.chunk_slots[step.chunk_samples == 1]]), int(size.sum())
            pairs = float((size * (self.computed[step.chunk_slots] + size / 2)).sum())
            self.computed[step.chunk_slots] += size
        parts_s = [self._parts_s(number, len(rows), chunks, len(sampled), pairs) for number in range(len(self._stages))]
        self.computed[rows] += 1
        self._cached += self._held
        left = self.left[sampled] - 1
        self.left[sampled] = left
        tokens = np.where(left == 0, np.int32(END), np.int32(MORE))
        return Pass(step.step, step.group, parts_s, tokens, len(rows) + chunks, era=self.era)

    def forget(self) -> None:
        """Its primaries have lost all they knew, and what they were working on."""
        self.era += 1
        self.standing[:] = False
        self._held[:] = self._cached[:] = 0
        self._rows = None
        for passes in (*self.waiting, *self.sending):
            passes.clear()

    def stage_of(self, pool: int) -> int:
        """Which stage's a pool is."""
        return self._stage_of[pool]

    def _apply(self, step: RunStep) -> None:
        if len(step.ends):
            self._stand(step.ends[self.standing[step.ends]], False)
        for start in step.starts:
            self._start(start)
        for one in step.replaces:
            stands = self.standing[one.slot]
            if stands:
                self._stand(np.array([one.slot]), False)
            self.placement[one.slot][one.lanes] = one.pools
            self.heads[one.slot] = np.bincount(self.placement[one.slot], minlength=self.heads.shape[1])
            if stands:
                self._stand(np.array([one.slot]), True)
        if len(step.leaves):
            self._stand(step.leaves, False)
        if len(step.joins):
            self._stand(step.joins, True)

    def _start(self, start: Start) -> None:
        if self.standing[start.slot]:
            self._stand(np.array([start.slot]), False)
        self.placement[start.slot] = self._home
        self.heads[start.slot] = self._home_heads
        self.computed[start.slot] = start.cached_tokens
        self.left[start.slot] = self._output_tokens[start.request] - (len(start.tokens) - start.prompt_tokens)

    def _stand(self, slots: NDArray[np.integer], stands: bool) -> None:
        """Slots that did not stand do now, or the other way round."""
        heads, sign = self.heads[slots], 1 if stands else -1
        self.standing[slots] = stands
        self._held += sign * heads.sum(0)
        self._cached += sign * (self.computed[slots] @ heads)
        self._rows = None

    def _parts_s(self, number: int, rows: int, chunks: int, samples: int, pairs: float) -> tuple[float, float, float]:
        """Of one stage: rows that decode, tokens of prompts, rows that are sampled, pairs of the prompts' attention."""
        cost = self._stages[number].cost
        dense_s = cost.step_s(rows + chunks, samples, 0, pairs)
        decode_s = dense_s if not chunks else cost.step_s(rows, rows, 0, 0.0) if rows else 0.0
        slower = self._slowest(self._stages[number].primaries)
        return self._attention_s(number), slower * decode_s, slower * (dense_s - decode_s)

    def _attention_s(self, number: int) -> float:
        """Decode attention of one stage, on the slowest of its pools, which slow each other as soon as two of them hold something."""
        stage, pools = self._stages[number], self._pools[number]
        held, cached = self._held[pools].tolist(), self._cached[pools].tolist()
        together, slowest_s = sum(count > 0 for count in held) > 1, 0.0
        for pool, (device, cost, count, tokens) in enumerate(zip(stage.devices, stage.heads, held, cached, strict=True), pools.start):
            if count:
                slower = self._slower.get(device, 1.0)
                own_s = slower * (cost.head_s * count + cost.token_s * tokens) if slower != LOST else 0.0  # nobody waits for what is gone
                whole_s = own_s * (cost.shared if together else 1) + cost.fixed_s
                self.attended_s[pool] += whole_s
                slowest_s = max(slowest_s, whole_s)
        return slowest_s

    def _slowest(self, devices: Sequence[str]) -> float:
        return max(self._slower.get(device, 1.0) for device in devices) if self._slower else 1.0
