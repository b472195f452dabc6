"""Sequences on their way from a prefill group to a decode group (Splitwise, HexGen-2): their KV is copied while their prompt is computed.

As soon as a chunk of a prompt is sent and the decode group has room for the whole sequence and its first token, what the chunk completes is
shipped behind its step, layer by layer, and so are all chunks after it. Where there was no room, everything is copied once the first token is
known and room has come. Room is given to the earliest arrival without any, so what is half shipped never waits for more: it is finished by the
prefill group alone.

A sequence keeps its slot and pages in the prefill group until its first token is known and everything has been copied; it then enters a slot of
the decode group with all but that token computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hetserve.control.group import Group
from hetserve.control.messages import Int32s, MoveKv, Place, RunStep
from hetserve.control.states import DECODE, PREFILL, Sequence


@dataclass(eq=False)
class Handoff:
    """One sequence, by its slot in the prefill group."""

    slot: int
    sequence: Sequence
    pages: Int32s  # [lanes, rows] in the decode group's primary pools
    copied: int = 0  # rows that are there, or will be when nothing waits
    waits: int = 0  # commands not reported yet
    over: bool = False  # the sequence ended meanwhile, or a copy failed: pages go back once nothing waits


@dataclass(frozen=True)
class Route:
    """What one primary of the source sends one of the target's: all KV heads of a stage, or those of a tensor-parallel rank."""

    layers: tuple[int, int]
    lanes: Int32s
    heads: Int32s
    source: Place
    target: Place


def _route(source: Group, target: Group, lanes: Int32s) -> Route:
    heads, here, there = source.config.kv_heads, int(source.home[lanes[0]]), int(target.home[lanes[0]])
    places = Place(source.index, here, source.spec.tp_ranks[here]), Place(target.index, there, target.spec.tp_ranks[there])
    return Route(source.spec.stages[int(lanes[0]) // heads].layers, lanes, (lanes % heads).astype(np.int32), *places)


class Handoffs:
    """All handoffs between two groups of the same stages."""

    def __init__(self, source: Group, target: Group) -> None:
        self.source = source
        self.target = target
        self.active: dict[int, Handoff] = {}  # by slot in the source
        self.commands: dict[int, Handoff] = {}  # not reported, by number
        self.failed = 0
        self.done = 0
        homes = list(zip(source.home.tolist(), target.home.tolist(), strict=True))
        self._routes = [_route(source, target, np.array([lane for lane, one in enumerate(homes) if one == both])) for both in dict.fromkeys(homes)]

    def advance(self, number: Callable[[], int]) -> list[MoveKv]:
        """Hands over what is complete, and starts copying for those that are ready, earliest arrival first, as far as the target has room."""
        self._complete()
        slots = self.source.slots
        ready = np.flatnonzero((slots.phase == DECODE) & (slots.known > slots.begun) & (slots.in_flight == 0) & (slots.moving == 0))
        commands: list[MoveKv] = []
        for slot in ready[np.argsort(slots.order[ready])].tolist():
            if slot in self.active:
                continue
            if not self._begin(slot):
                break
            commands += self._copy(self.active[slot], slots.filled(slot), number)
        return commands

    def follow(self, step: RunStep, number: Callable[[], int]) -> list[MoveKv]:
        """What is to be copied behind a step that is about to be sent: the pages its chunks complete. The workers hear of it before the step."""
        slots = self.source.slots
        commands: list[MoveKv] = []
        for index in np.argsort(slots.order[step.chunk_slots]).tolist():
            slot = int(step.chunk_slots[index])
            if slot in self.active or (self._is_next(slot) and self._begin(slot)):
                rows = slots.filled(slot) if step.chunk_samples[index] else slots.full(slot)
                commands += self._copy(self.active[slot], rows, number, step.step)
        return commands

    def report(self, number: int, ok: bool) -> None:
        """A command was carried out, or failed (and is tried again)."""
        handoff = self.commands.pop(number)
        handoff.waits -= 1
        self.source.slots.moving[handoff.slot] -= 1
        if not ok:
            self.failed += not handoff.over
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

    # ---------------------------------------------------------------------------------------------------- copies

    def _is_next(self, slot: int) -> bool:
        """Whether no earlier arrival is without its room."""
        slots = self.source.slots
        without = (slots.phase == PREFILL) | (slots.phase == DECODE)
        without[list(self.active)] = False
        return int(slots.order[slot]) == int(slots.order[without].min())

    def _begin(self, slot: int) -> bool:
        """Takes pages in the target for a sequence and the one token it samples here; False when there is no room."""
        slots, home = self.source.slots, self.target.home
        rows = int(slots.begun[slot]) // slots.page_tokens + 1
        alone = not self.target.running and not self.active
        spare = 0.0 if alone else self.target.config.watermark
        if len(self.active) >= len(self.target.free_slots) or not self.target.pools.fit(home, rows, spare):
            return False
        pages = self.target.pools.take(np.broadcast_to(home, (rows, len(home)))).T.copy()
        sequence = slots.sequences[slot]
        assert sequence is not None
        self.active[slot] = Handoff(slot, sequence, pages)
        return True

    def _copy(self, handoff: Handoff, rows: int, number: Callable[[], int], step: int = -1) -> list[MoveKv]:
        """Copies the rows from `handoff.copied` to `rows`, from primary to primary."""
        slots, slot = self.source.slots, handoff.slot
        if handoff.over or rows == handoff.copied:
            return []
        commands = []
        for route in self._routes:
            commands.append(
                MoveKv(
                    number(),
                    int(slots.request[slot]),
                    int(slots.choice[slot]),
                    route.layers,
                    route.heads,
                    slots.pages[slot][route.lanes, handoff.copied : rows],
                    handoff.pages[route.lanes, handoff.copied : rows],
                    route.source,
                    route.target,
                    step,
                )
            )
        handoff.copied = rows
        handoff.waits += len(commands)
        slots.moving[slot] += len(commands)
        self.commands.update({command.move: handoff for command in commands})
        return commands

    def _complete(self) -> None:
        """Hands over what is there with its first token; gives up what has ended."""
        slots = self.source.slots
        for slot, handoff in list(self.active.items()):
            if handoff.waits or handoff.over:
                handoff.over |= self._has_ended(handoff)
            elif self._has_ended(handoff):
                self._undo(handoff)
            elif slots.phase[slot] == DECODE and slots.known[slot] > slots.begun[slot]:
                assert handoff.copied == slots.filled(slot)
                del self.active[slot]
                computed = int(slots.computed[slot])
                self.source.prompts.keep(slot)
                self.target.adopt(self.source.surrender(slot), handoff.pages, computed)
                self.done += 1

    def _has_ended(self, handoff: Handoff) -> bool:
        slots = self.source.slots
        return slots.sequences[handoff.slot] is not handoff.sequence or int(slots.phase[handoff.slot]) not in (PREFILL, DECODE)

    def _undo(self, handoff: Handoff) -> None:
        self.target.pools.give(handoff.pages, self.target.home)
        del self.active[handoff.slot]
