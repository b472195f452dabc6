"""Sequences on their way from a prefill group to a decode group (Splitwise, HexGen-2): their KV is copied while their prompt is computed.

As soon as a chunk of a prompt is sent and a decode group has room for the whole sequence and its first token, what the chunk completes is
shipped behind its step, layer by layer, and so are all chunks after it. Where there was no room, everything is copied once the first token is
known and room has come. Room is given to the earliest arrival without any, so what is half shipped never waits for more: it is finished by the
prefill group alone. Of several decode groups with room the one gets a sequence that is most behind its share of the plan's flow.

A sequence keeps its slot and pages in the prefill group until its first token is known and everything has been copied; it then enters a slot of
the decode group with all but that token computed. The two groups may be cut into stages and ranks in different ways.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hetserve.control.group import Group
from hetserve.control.messages import Int32s, MoveKv, Place, RunStep
from hetserve.control.states import DECODE, PREFILL, Sequence


@dataclass(frozen=True)
class Route:
    """What one primary of the source sends one of the target's: the KV heads that both compute, in the layers that both have."""

    layers: tuple[int, int]
    heads: Int32s
    lanes_from: Int32s  # of these heads in the source
    lanes_to: Int32s  # and in the target
    source: Place
    target: Place


@dataclass(eq=False)
class Way:
    """From the source to one decode group.

    Attributes:
        share: of the source's sequences that are to take it; only ratios count.
        sent: tokens of sequences that have taken it.
        given: how often the target had got back pages when it was last asked for room.
    """

    target: Group
    share: float
    routes: list[Route]
    sent: int = 0
    given: int = -1


@dataclass(eq=False)
class Handoff:
    """One sequence, by its slot in the prefill group."""

    slot: int  # -1: the prefill group was lost meanwhile
    sequence: Sequence
    way: Way
    pages: Int32s  # [lanes, rows] in the decode group's primary pools
    copied: int = 0  # rows that are there, or will be when nothing waits
    waits: int = 0  # commands not reported yet
    over: bool = False  # the sequence ended meanwhile, or a copy failed: pages go back once nothing waits


def _routes(source: Group, target: Group) -> list[Route]:
    """Every pair of primaries that have heads and layers in common, stage by stage of the source, then of the target."""
    heads, found = source.config.kv_heads, []
    homes = [group.home.reshape(-1, heads) for group in (source, target)]
    for here, one in enumerate(source.spec.stages):
        for there, other in enumerate(target.spec.stages):
            layers = max(one.layers[0], other.layers[0]), min(one.layers[1], other.layers[1])
            if layers[0] >= layers[1]:
                continue
            pairs = list(zip(homes[0][here].tolist(), homes[1][there].tolist(), strict=True))
            for pair in dict.fromkeys(pairs):
                shared = np.array([head for head, both in enumerate(pairs) if both == pair], np.int32)
                places = [Place(group.index, pool, group.spec.tp_ranks[pool]) for group, pool in zip((source, target), pair, strict=True)]
                found.append(Route(layers, shared, here * heads + shared, there * heads + shared, *places))
    return found


class Handoffs:
    """All handoffs from one prefill group.

    Args:
        targets: decode groups, each with its share of the sequences.
    """

    def __init__(self, source: Group, targets: Iterable[tuple[Group, float]]) -> None:
        self.source = source
        self.ways = [Way(target, share, _routes(source, target)) for target, share in targets]
        self.active: dict[int, Handoff] = {}  # by slot in the source
        self.orphans: list[Handoff] = []  # of a source that was lost, while something may still be written
        self.commands: dict[int, Handoff] = {}  # not reported, by number
        self.failed = 0
        self.done = 0

    @property
    def open(self) -> bool:
        """Whether any decode group is up."""
        return any(way.target.up for way in self.ways)

    def advance(self, number: Callable[[], int]) -> list[MoveKv]:
        """Hands over what is complete, and starts copying for those that are ready, earliest arrival first, as far as the target has room."""
        self._complete()
        for way in self.ways:
            way.given = way.target.pools.given
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

    def roomier(self) -> bool:
        """Whether a decode group has got back pages since `advance` was last asked."""
        return any(way.given != way.target.pools.given for way in self.ways)

    def report(self, number: int, ok: bool) -> tuple[int, ...]:
        """A command was carried out, or failed (and is tried again). Returns the groups it was between."""
        handoff = self.commands.pop(number)
        handoff.waits -= 1
        if handoff.slot >= 0:
            self.source.slots.moving[handoff.slot] -= 1
        if not ok:
            self.failed += not handoff.over
            handoff.over = True
        if handoff.over and not handoff.waits:
            self._undo(handoff)
        return self.source.index, handoff.way.target.index

    def lose(self, gone: Collection[Group]) -> None:
        """Some groups have lost everything. What was on its way to one of them begins anew, or has gone with its source; what was on its way from
        the source to one that lives is undone as soon as nothing is written there any more."""
        for handoff in [one for one in (*self.active.values(), *self.orphans) if one.way.target in gone]:
            self.commands = {number: one for number, one in self.commands.items() if one is not handoff}
            if self.source not in gone and handoff.slot >= 0:
                self.source.touched = True
                self.source.slots.moving[handoff.slot] -= handoff.waits
            self._drop(handoff)
        if self.source in gone:
            lost, self.active = list(self.active.values()), {}
            self.orphans += lost
            for handoff in lost:
                handoff.slot, handoff.over = -1, True
                handoff.way.target.promised -= 1
                if not handoff.waits:
                    self._undo(handoff)

    def borrowed(self, target: Group) -> Iterator[Int32s]:
        """The pages held in a decode group."""
        return (handoff.pages for handoff in (*self.active.values(), *self.orphans) if handoff.way.target is target)

    # ---------------------------------------------------------------------------------------------------- copies

    def _is_next(self, slot: int) -> bool:
        """Whether no earlier arrival is without its room."""
        slots = self.source.slots
        without = (slots.phase == PREFILL) | (slots.phase == DECODE)
        without[list(self.active)] = False
        return int(slots.order[slot]) == int(slots.order[without].min())

    def _begin(self, slot: int) -> bool:
        """Takes pages in a decode group for a sequence and the one token it samples here; False when none has room."""
        slots = self.source.slots
        rows = int(slots.begun[slot]) // slots.page_tokens + 1
        roomy = [way for way in self.ways if self._has_room(way.target, rows)]
        if not roomy:
            return False
        tokens = int(slots.begun[slot])
        way = min(roomy, key=lambda one: (one.sent + tokens) / one.share)
        way.sent += tokens
        target = way.target
        target.promised += 1
        pages = target.pools.take(np.broadcast_to(target.home, (rows, len(target.home)))).T.copy()
        sequence = slots.sequences[slot]
        assert sequence is not None
        self.active[slot] = Handoff(slot, sequence, way, pages)
        return True

    @staticmethod
    def _has_room(target: Group, rows: int) -> bool:
        if not target.up or target.promised >= len(target.free_slots):
            return False
        alone = not target.promised and not target.running
        return target.pools.fit(target.home, rows, 0.0 if alone else target.config.watermark)

    def _copy(self, handoff: Handoff, rows: int, number: Callable[[], int], step: int = -1) -> list[MoveKv]:
        """Copies the rows from `handoff.copied` to `rows`, from primary to primary."""
        slots, slot = self.source.slots, handoff.slot
        if handoff.over or rows == handoff.copied:
            return []
        commands = []
        for route in handoff.way.routes:
            commands.append(
                MoveKv(
                    number(),
                    int(slots.request[slot]),
                    int(slots.choice[slot]),
                    route.layers,
                    route.heads,
                    slots.pages[slot][route.lanes_from, handoff.copied : rows],
                    handoff.pages[route.lanes_to, handoff.copied : rows],
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
                handoff.way.target.promised -= 1
                handoff.way.target.adopt(self.source.surrender(slot), handoff.pages, computed)
                self.done += 1

    def _has_ended(self, handoff: Handoff) -> bool:
        slots = self.source.slots
        return slots.sequences[handoff.slot] is not handoff.sequence or int(slots.phase[handoff.slot]) not in (PREFILL, DECODE)

    def _undo(self, handoff: Handoff) -> None:
        target = handoff.way.target
        target.touched = True
        target.pools.give(handoff.pages, target.home)
        if handoff.slot >= 0:
            target.promised -= 1
        self._drop(handoff)

    def _drop(self, handoff: Handoff) -> None:
        if handoff.slot < 0:
            self.orphans.remove(handoff)
        else:
            del self.active[handoff.slot]
