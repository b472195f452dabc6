"""Prompts computed once for all choices of a request: whose full pages a waiting choice may refer to, and which are kept for it.

A choice shares with a sibling in a slot whose pages all lie on the primaries, where prompts are computed. When the last such sibling finishes, or
moves away, while choices still wait, the prompt's pages are kept for them on their own account; under pressure they are the first to go, and the
next choice computes the prompt again.
"""

from __future__ import annotations

import numpy as np

from hetserve.control.messages import Int32s
from hetserve.control.pages import Pools
from hetserve.control.states import PREFILL, RequestState, Sequence, Slots


class SharedPrompts:
    """The sharing of one group's prompts.

    Args:
        home: int32 [lanes] the primaries' pools.
    """

    def __init__(self, slots: Slots, pools: Pools, home: Int32s) -> None:
        self._slots = slots
        self._pools = pools
        self._home = home
        self.kept: dict[int, Int32s] = {}  # request -> its prompt's pages [lanes, rows], each with a reference of our own

    def find(self, sequence: Sequence) -> tuple[Int32s | None, bool]:
        """The pages [lanes, rows] a waiting sequence may share, and whether it should wait because a sibling is computing them."""
        state = sequence.request
        if state.request.n == 1 or state.cached_tokens == 0:
            return None, False
        if state.request.id in self.kept:
            return self.kept[state.request.id], False
        computing = False
        for sibling in state.sequences:
            if sibling.slot < 0 or sibling.group != state.group:
                continue
            if self._whole(sibling.slot, state):
                return self._prefix_of(sibling.slot, state), False
            computing |= self._slots.phase[sibling.slot] == PREFILL
        return None, computing

    def keep(self, slot: int) -> None:
        """Before a choice's pages on the primaries go: keeps the prompt's, if choices wait that could share them with nobody else."""
        sequence = self._slots.sequences[slot]
        assert sequence is not None
        state = sequence.request
        elsewhere = sequence.group != state.group  # in a decode group, where nobody starts
        if elsewhere or state.request.n == 1 or state.cached_tokens == 0 or state.request.id in self.kept or not state.waits():
            return
        others = [one.slot for one in state.sequences if one.slot >= 0 and one.group == state.group and one is not sequence]
        alone = not any(self._slots.phase[other] == PREFILL or self._whole(other, state) for other in others)
        if alone and self._whole(slot, state):
            pages = self._prefix_of(slot, state)
            self._pools.share(pages, self._home)
            self.kept[state.request.id] = pages

    def drop(self, request: int) -> None:
        """Gives back the pages kept for a request, if there are any."""
        pages = self.kept.pop(request, None)
        if pages is not None:
            self._pools.give(pages, self._home)

    def drop_one(self) -> bool:
        """Gives back the pages kept last; False when none are kept."""
        if not self.kept:
            return False
        self.drop(next(reversed(self.kept)))
        return True

    def _whole(self, slot: int, state: RequestState) -> bool:
        """Whether a slot has the prompt's full pages, on the primaries."""
        return bool(self._slots.computed[slot] >= state.cached_tokens and np.array_equal(self._slots.placement[slot], self._home))

    def _prefix_of(self, slot: int, state: RequestState) -> Int32s:
        return self._slots.pages[slot, :, : state.cached_tokens // self._slots.page_tokens].copy()
