"""Asks the policies which head groups of a running sequence lie where, and starts the moves that bring them there.

Prompts are computed with all their KV on the stages' primaries; what is dealt to attention workers moves there behind them, so admission,
re-dispatch for balance and re-dispatch for memory are one mechanism.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetserve.control.config import ControllerConfig, GroupConfig, StageConfig
from hetserve.control.messages import ANY_RANK, NO_INTS, Int32s
from hetserve.control.moves import Moves
from hetserve.control.pages import Pools
from hetserve.control.placement import moved, pool_counts
from hetserve.control.states import DECODE, PREFILL, Slots
from hetserve.policy.pools import StagePools
from hetserve.policy.row import Policies

CHECK_STEPS = 16  # steps between two looks at the balance, at least; nobody is placed anew while a decoding sequence moves


@dataclass(frozen=True)
class _Stage:
    """A stage that has a choice."""

    number: int
    ranks: int
    pools: range
    costs: StagePools  # of empty pools

    def filled(self, held: NDArray[np.int64], cached: NDArray[np.int64], free: NDArray[np.int64]) -> StagePools:
        """Its pools with what lies there. held, cached, free: [pools] of the whole group."""
        here = slice(self.pools.start, self.pools.stop)
        return self.costs._replace(held=held[here], cached=cached[here], pages_free=free[here])


def _empty(stage: StageConfig) -> StagePools:
    nothing = np.zeros(len(stage.pools), np.int64)
    costs = [(pool.heads.head_s, pool.heads.token_s, pool.heads.fixed_s, pool.heads.shared) for pool in stage.pools]
    return StagePools(nothing, nothing, nothing, *np.array(costs).T)


class Dispatcher:
    """Placement of one group's sequences. Does nothing where no stage has attention workers."""

    def __init__(self, spec: GroupConfig, config: ControllerConfig, policies: Policies, slots: Slots, pools: Pools, moves: Moves) -> None:
        self._config = config
        self._policies = policies
        self._slots = slots
        self._pools = pools
        self._moves = moves
        self._steps = 0
        self.missing = np.zeros(len(spec.pools), bool)  # pools of lost devices
        self._stages = [
            _Stage(number, stage.ranks, pools, _empty(stage))
            for number, (stage, pools) in enumerate(zip(spec.stages, spec.pool_ranges, strict=True))
            if len(stage.pools) > stage.ranks
        ]
        self.active = bool(self._stages)
        self._workers = np.array(spec.tp_ranks) == ANY_RANK  # [pools]
        self._reserve = np.zeros(len(spec.pools), np.int64)  # [pools] pages left free on primaries for prompts
        for stage in self._stages:
            for pool in stage.pools[: stage.ranks]:
                self._reserve[pool] = int(config.staging * spec.pools[pool].pages)

    def place(self, slots: list[int]) -> None:
        """Deals the head groups of sequences that have just started, all together."""
        if self.active and slots:
            self._deal(np.array(slots))

    def rebalance(self) -> None:
        """Once in CHECK_STEPS reported steps: re-places sequences if the policy finds the pools too far from the best balance."""
        self._steps += 1
        slots = self._slots
        if not self.active or self._steps < CHECK_STEPS or any(slots.phase[slot] == DECODE for slot in self._moves.active):
            return
        self._steps = 0
        resting = np.flatnonzero((slots.phase == DECODE) & self._rested()).astype(np.int32)
        if not len(resting):
            return
        held, cached = self._loads(resting)
        free = self._free(NO_INTS) - self._reserve
        tokens, rows = self._sizes(resting)
        for stage in self._stages:
            counts = pool_counts(slots.placement[resting][:, self._lanes(stage)], stage.pools)
            now = stage.filled(held, cached, free)
            chosen = self._policies.rebalance(self._config.kv_heads, stage.ranks, counts, tokens, rows, now)
            if len(chosen) and self._deal(resting[chosen]):
                return

    def replace(self, slot: int) -> bool:
        """Deals one running sequence anew; whether it moves now."""
        if not self.movable(slot):
            return False
        return self._deal(np.array([slot])) or self._deal(np.array([slot]), staging=False)

    def movable(self, slot: int) -> bool:
        """Whether a sequence may be dealt anew now."""
        return bool(self.active and self._slots.phase[slot] == DECODE and slot not in self._moves.active and self._rested()[slot])

    # --------------------------------------------------------------------------------------------------- numbers

    def _rested(self) -> NDArray[np.bool_]:
        """[slots] A sequence rests for a page's worth of tokens between two moves."""
        slots = self._slots
        return slots.known >= slots.settled + slots.page_tokens

    def _sizes(self, chosen: Int32s) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """([chosen] tokens, [chosen] pages that each of its head groups has and the one that it will begin)."""
        slots = self._slots
        return slots.known[chosen].astype(np.int64), slots.room[chosen].astype(np.int64) // slots.page_tokens + 1

    def _lanes(self, stage: _Stage, rank: int | None = None) -> slice:
        """The lanes of a stage, or those that one of its ranks computes."""
        first, count = stage.number * self._config.kv_heads, self._config.kv_heads
        if rank is None:
            return slice(first, first + count)
        share = count // stage.ranks
        return slice(first + rank * share, first + (rank + 1) * share)

    def _free(self, without: Int32s) -> NDArray[np.int64]:
        """[pools] pages free, those that moves under way will free, and those the slots `without` hold; none on lost devices."""
        slots = self._slots
        free = self._pools.free_each().astype(np.int64) + self._moves.releasing()
        for slot in without.tolist():
            free += np.bincount(slots.placement[slot], minlength=len(free)) * (int(slots.room[slot]) // slots.page_tokens)
        free[self.missing] = 0
        return free

    def _loads(self, without: Int32s) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """([pools] head groups, [pools] head groups * tokens) of everybody running but `without`, where they are or are going."""
        slots = self._slots
        others = (slots.phase == PREFILL) | (slots.phase == DECODE)
        others[without] = False
        goal = slots.goal[others]
        held = np.bincount(goal.ravel(), minlength=len(self.missing))
        tokens = np.repeat(slots.known[others], goal.shape[1])
        return held, np.bincount(goal.ravel(), weights=tokens, minlength=len(self.missing)).astype(np.int64)

    # --------------------------------------------------------------------------------------------------- dealing

    def _deal(self, chosen: Int32s, staging: bool = True) -> bool:
        """Asks for the placement of `chosen` and starts what moves it takes; whether any started.

        On workers the page that every head group there will begin next stays free: where they are filled to the brim, each page more has somebody
        move or give way (of 1,000 requests of OPT-30B on hetis-testbed 836 did, in the simulator; now 6).

        Args:
            staging: leave free what prompts need on primaries.
        """
        slots = self._slots
        held, cached = self._loads(chosen)
        reserve = held * self._workers + (self._reserve if staging else 0)
        free = np.maximum(self._free(chosen) - reserve, 0)
        goals = slots.placement[chosen].copy()
        tokens, rows = self._sizes(chosen)
        for stage in self._stages:
            counts = self._policies.heads(self._config.kv_heads, stage.ranks, tokens, rows, stage.filled(held, cached, free))
            for goal, each in zip(goals, counts, strict=True):
                if each[0, 0] >= 0:
                    for rank in range(stage.ranks):
                        lanes = self._lanes(stage, rank)
                        goal[lanes] = moved(goal[lanes], stage.pools, each[rank])
        started = [not self.missing[goal].any() and self._moves.begin(int(slot), goal) for slot, goal in zip(chosen, goals, strict=True)]
        return any(started)
