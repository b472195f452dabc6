"""Sequences on their way from a prefill group to a decode group: their KV is copied once their first token is known (Splitwise, HexGen-2).

A sequence keeps its slot and pages in the prefill group until everything has been copied; it then enters a slot of the decode group with all but
its last token computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hetserve.control.group import Group
from hetserve.control.messages import Int32s, MoveKv, Place
from hetserve.control.states import DECODE


@dataclass(eq=False)
class Handoff:
    """One sequence, by its slot in the prefill group."""

    slot: int
    pages: Int32s  # [lanes, rows] in the decode group's primary pools
    waits: int  # commands not reported yet
    over: bool = False  # the sequence ended meanwhile, or a copy failed: pages go back once nothing waits


class Handoffs:
    """All handoffs between two groups of the same stages."""

    def __init__(self, source: Group, target: Group) -> None:
        self.source = source
        self.target = target
        self.active: dict[int, Handoff] = {}  # by slot in the source
        self.commands: dict[int, Handoff] = {}  # not reported, by number
        self.failed = 0
        self.done = 0

    def advance(self, number: Callable[[], int]) -> list[MoveKv]:
        """Hands over what is complete, and starts copying for those that are ready, earliest arrival first, as far as the target has room."""
        self._complete()
        slots = self.source.slots
        ready = np.flatnonzero((slots.phase == DECODE) & (slots.known > slots.begun) & (slots.in_flight == 0) & (slots.moving == 0))
        commands: list[MoveKv] = []
        for slot in ready[np.argsort(slots.order[ready])].tolist():
            if slot in self.active:
                continue
            rows = -(-int(slots.known[slot]) // slots.page_tokens)
            home = self.target.home
            alone = not self.target.running and not self.active
            spare = 0.0 if alone else self.target.config.watermark
            if len(self.active) >= len(self.target.free_slots) or not self.target.pools.fit(home, rows, spare):
                break
            commands += self._begin(slot, rows, number)
        return commands

    def report(self, number: int, ok: bool) -> None:
        """A command was carried out, or failed (and is tried again)."""
        handoff = self.commands.pop(number)
        handoff.waits -= 1
        self.source.slots.moving[handoff.slot] -= 1
        if not ok:
            self.failed += 1
            handoff.over = True
        if handoff.over and not handoff.waits:
            self._undo(handoff)

    def clear(self) -> None:
        """Both groups lost everything."""
        self.active.clear()
        self.commands.clear()

    def borrowed(self) -> Iterator[Int32s]:
        """The pages held in the target."""
        return (handoff.pages for handoff in self.active.values())

    def _begin(self, slot: int, rows: int, number: Callable[[], int]) -> list[MoveKv]:
        slots, heads = self.source.slots, self.source.config.kv_heads
        pages = self.target.pools.take(np.broadcast_to(self.target.home, (rows, len(self.target.home)))).T.copy()
        filled = -(-int(slots.computed[slot]) // slots.page_tokens)
        commands = []
        for stage, spec in enumerate(self.source.spec.stages):
            lanes = slice(stage * heads, (stage + 1) * heads)
            commands.append(
                MoveKv(
                    number(),
                    int(slots.request[slot]),
                    int(slots.choice[slot]),
                    spec.layers,
                    np.arange(heads, dtype=np.int32),
                    slots.pages[slot, lanes, :filled].copy(),
                    pages[lanes, :filled].copy(),
                    Place(self.source.index, int(self.source.home[stage * heads])),
                    Place(self.target.index, int(self.target.home[stage * heads])),
                )
            )
        self.active[slot] = Handoff(slot, pages, len(commands))
        slots.moving[slot] += len(commands)
        self.commands.update({command.move: self.active[slot] for command in commands})
        return commands

    def _complete(self) -> None:
        slots = self.source.slots
        for slot, handoff in list(self.active.items()):
            if slots.phase[slot] != DECODE and not handoff.over:
                handoff.over = True
                if not handoff.waits:
                    self._undo(handoff)
            elif not handoff.waits:
                del self.active[slot]
                computed = int(slots.computed[slot])
                self.source.prompts.keep(slot)
                self.target.adopt(self.source.surrender(slot), handoff.pages, computed)
                self.done += 1

    def _undo(self, handoff: Handoff) -> None:
        self.target.pools.give(handoff.pages, self.target.home)
        del self.active[handoff.slot]
