"""Asks the policies which head groups of a running sequence lie where, and starts the moves that bring them there.

Prompts are computed with all their KV on the stages' primaries; what is dealt to attention workers moves there afterwards, so admission,
re-dispatch for balance and re-dispatch for memory are one mechanism.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetserve.control.config import ControllerConfig, GroupConfig
from hetserve.control.messages import NO_INTS, Int32s
from hetserve.control.moves import Moves
from hetserve.control.pages import Pools
from hetserve.control.placement import moved, pool_counts
from hetserve.control.states import DECODE, PREFILL, Slots
from hetserve.policy.row import Policies

CHECK_STEPS = 16  # steps between two looks at the balance; one sequence moves at a time


class Dispatcher:
    """Placement of one group's sequences. Does nothing where every stage has one pool."""

    def __init__(self, spec: GroupConfig, config: ControllerConfig, policies: Policies, slots: Slots, pools: Pools, moves: Moves) -> None:
        self._config = config
        self._policies = policies
        self._slots = slots
        self._pools = pools
        self._moves = moves
        self._steps = 0
        self.missing = np.zeros(len(spec.pools), bool)  # pools of lost devices
        self._stages = spec.pool_ranges
        self.active = any(len(stage) > 1 for stage in self._stages)
        costs = [pool.heads for pool in spec.pools]
        self._head_s = np.array([cost.head_s for cost in costs])
        self._token_s = np.array([cost.token_s for cost in costs])
        self._fixed_s = np.array([cost.fixed_s for cost in costs])

    def place(self, slots: list[int]) -> None:
        """Deals the head groups of sequences that have just started, all together."""
        if self.active and slots:
            self._deal(np.array(slots), self._reserve())

    def rebalance(self) -> None:
        """Once in CHECK_STEPS reported steps: re-places one sequence if the policy finds the pools too far from the best balance."""
        self._steps += 1
        if not self.active or self._steps % CHECK_STEPS or self._moves.active:
            return
        slots = self._slots
        running = np.flatnonzero((slots.phase == DECODE) & self._rested())
        if not len(running):
            return
        for number, pools in enumerate(self._stages):
            counts = pool_counts(slots.placement[running][:, self._lanes(number)], pools)
            free = self._free(NO_INTS)[pools.start : pools.stop]
            tokens = slots.known[running].astype(np.int64)
            chosen = self._policies.rebalance(self._config.kv_heads, counts, tokens, slots.order[running], free, *self._costs(pools))
            if chosen >= 0:
                self.replace(int(running[chosen]))
                return

    def replace(self, slot: int) -> bool:
        """Deals one running sequence anew; whether it moves now. A sequence rests for a page's worth of tokens between two moves."""
        slots = self._slots
        if not self.active or slots.phase[slot] != DECODE or slot in self._moves.active or not self._rested()[slot]:
            return False
        return self._deal(np.array([slot]), self._reserve()) or self._deal(np.array([slot]), np.zeros(len(self.missing), np.int64))

    # --------------------------------------------------------------------------------------------------- numbers

    def _rested(self) -> NDArray[np.bool_]:
        slots = self._slots
        return slots.known >= slots.settled + slots.page_tokens

    def _lanes(self, stage: int) -> slice:
        return slice(stage * self._config.kv_heads, (stage + 1) * self._config.kv_heads)

    def _costs(self, pools: range) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        here = slice(pools.start, pools.stop)
        return self._head_s[here], self._token_s[here], self._fixed_s[here]

    def _reserve(self) -> NDArray[np.int64]:
        """[pools] pages the dispatcher leaves free on primaries for prompts."""
        reserve = np.zeros(len(self.missing), np.int64)
        for pools in self._stages:
            if len(pools) > 1:
                reserve[pools.start] = int(self._config.staging * self._pools.pools[pools.start].pages)
        return reserve

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

    def _deal(self, chosen: Int32s, reserve: NDArray[np.int64]) -> bool:
        """Asks for the placement of `chosen` and starts what moves it takes; whether any started."""
        slots = self._slots
        held, cached = self._loads(chosen)
        free = np.maximum(self._free(chosen) - reserve, 0)
        goals = slots.placement[chosen].copy()
        tokens = slots.known[chosen].astype(np.int64)
        rows = slots.room[chosen].astype(np.int64) // slots.page_tokens + 1
        for number, pools in enumerate(self._stages):
            if len(pools) == 1:
                continue
            here, lanes = slice(pools.start, pools.stop), self._lanes(number)
            costs = self._costs(pools)
            counts = self._policies.heads(self._config.kv_heads, 1, tokens, rows, held[here], cached[here], free[here], *costs)
            for index in range(len(chosen)):
                if counts[index, 0, 0] >= 0:
                    goals[index, lanes] = moved(goals[index, lanes], pools, counts[index, 0])
        started = [not self.missing[goal].any() and self._moves.begin(int(slot), goal) for slot, goal in zip(chosen, goals, strict=True)]
        return any(started)
