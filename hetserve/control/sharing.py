"""Prompts computed once for all choices of a request: whose full pages a waiting choice may refer to, and which are kept for it.

A choice shares with a sibling in a slot. When the last such sibling finishes while choices still wait, the prompt's pages are kept for them
on their own account; under pressure they are the first to go, and the next choice computes the prompt again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.control.messages import Int32s
from hetserve.control.pages import Pools
from hetserve.control.states import PREFILL, RequestState, Sequence, Slots


@dataclass(frozen=True)
class Prefix:
    """Computed full pages of a request's prompt."""

    pages: Int32s  # [kv_heads, rows]
    placement: Int32s  # [kv_heads]


class SharedPrompts:
    """The sharing of one group's prompts."""

    def __init__(self, slots: Slots, pools: Pools) -> None:
        self._slots = slots
        self._pools = pools
        self.kept: dict[int, Prefix] = {}  # request -> its prompt's pages, each with a reference of our own

    def find(self, sequence: Sequence) -> tuple[Prefix | None, bool]:
        """The pages a waiting sequence may share, and whether it should wait because a sibling is computing them."""
        state = sequence.request
        if state.request.n == 1 or state.cached_tokens == 0:
            return None, False
        if state.request.id in self.kept:
            return self.kept[state.request.id], False
        computing = False
        for sibling in state.sequences:
            if sibling.slot < 0:
                continue
            if self._slots.computed[sibling.slot] >= state.cached_tokens:
                return self._prefix_of(sibling.slot, state), False
            computing |= self._slots.phase[sibling.slot] == PREFILL
        return None, computing

    def keep(self, slot: int) -> None:
        """Before a finished choice's pages go: keeps the prompt's, if choices wait that could share them with nobody else."""
        sequence = self._slots.sequences[slot]
        assert sequence is not None
        state = sequence.request
        if state.request.n == 1 or state.cached_tokens == 0 or state.request.id in self.kept or not state.waits():
            return
        alone = not any(one.slot >= 0 and one.slot != slot for one in state.sequences)
        if alone and self._slots.computed[slot] >= state.cached_tokens:
            prefix = self._prefix_of(slot, state)
            self._pools.share(prefix.pages, prefix.placement)
            self.kept[state.request.id] = prefix

    def drop(self, request: int) -> None:
        """Gives back the pages kept for a request, if there are any."""
        prefix = self.kept.pop(request, None)
        if prefix is not None:
            self._pools.give(prefix.pages, prefix.placement)

    def drop_one(self) -> bool:
        """Gives back the pages kept last; False when none are kept."""
        if not self.kept:
            return False
        self.drop(next(reversed(self.kept)))
        return True

    def _prefix_of(self, slot: int, state: RequestState) -> Prefix:
        rows = state.cached_tokens // self._slots.page_tokens
        return Prefix(self._slots.pages[slot, :, :rows].copy(), self._slots.placement[slot].copy())
