"""Moves of sequences' head groups from pool to pool within a group (Hetis's Hauler): who moves, what has been copied, when to switch.

A sequence that is dealt away when it starts has its prompt shipped behind the steps that compute it: the pages that a chunk completes follow the
chunk's step layer by layer, the tail page with the last chunk. It decodes at its new place from its first decode step on, and waits for that, so
nothing has to be copied a second time; its first token, sampled by the last chunk's step, waits for nothing.

A sequence that already decodes goes on where it is while its full pages, which never change, are copied. Then it sits out until no step in flight
has it, its last pages are copied, and the next step is told where its KV lies now.

Pages are held on both sides until then; a move that fails leaves all as it was, and the sequence decodes at home.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hetserve.control.config import GroupConfig
from hetserve.control.messages import Int32s, MoveKv, Place, Replace, RunStep
from hetserve.control.pages import Pools
from hetserve.control.sharing import SharedPrompts
from hetserve.control.states import PREFILL, Slots


@dataclass(eq=False)
class Move:
    """Some lanes of one slot on their way."""

    slot: int
    lanes: Int32s  # [l]
    targets: Int32s  # [l] pools
    pages: Int32s  # [l, rows] in the target pools
    copied: int = 0  # rows that are there, or will be when nothing waits
    last: bool = False  # the sequence sits out, and what is copied now is all there is
    waits: int = 0  # commands not reported yet
    over: bool = False  # given up: pages go back once nothing waits


class Moves:
    """The moves of one group.

    Args:
        index: the group's number.
        spec: its stages and pools.
        kv_heads: head groups of a stage.
        slots, pools, prompts: the group's books, which moves change.
    """

    def __init__(self, index: int, spec: GroupConfig, kv_heads: int, slots: Slots, pools: Pools, prompts: SharedPrompts) -> None:
        self._index = index
        self._spec = spec
        self._ranks = spec.tp_ranks
        self._kv_heads = kv_heads
        self._slots = slots
        self._pools = pools
        self._prompts = prompts
        self.active: dict[int, Move] = {}  # by slot
        self.commands: dict[int, tuple[Move, MoveKv]] = {}  # not reported, by number
        self.replaces: list[Replace] = []  # for the next step
        self.begun = 0
        self.done = 0
        self.failed = 0

    def begin(self, slot: int, placement: Int32s) -> bool:
        """Starts towards a placement [lanes]; False when its pages are not there, and nothing is changed."""
        slots = self._slots
        assert slot not in self.active
        lanes = np.flatnonzero(placement != slots.placement[slot]).astype(np.int32)
        targets = placement[lanes]
        rows = int(slots.room[slot]) // slots.page_tokens
        if not len(lanes) or not self._pools.fit(targets, rows):
            return False
        self.active[slot] = Move(slot, lanes, targets, self._take(targets, rows))
        slots.goal[slot] = placement
        slots.settled[slot] = slots.known[slot]
        self.begun += 1
        return True

    def advance(self, number: Callable[[], int]) -> list[MoveKv]:
        """What is to be copied now; switches those that are done. `number` gives the next command's."""
        commands: list[MoveKv] = []
        for move in list(self.active.values()):
            if not move.waits:
                commands += self._advance(move, number)
        return commands

    def follow(self, step: RunStep, number: Callable[[], int]) -> list[MoveKv]:
        """What is to be copied behind a step that is about to be sent: the pages its chunks complete. The workers hear of it before the step."""
        slots = self._slots
        commands: list[MoveKv] = []
        for slot, samples in zip(step.chunk_slots.tolist(), step.chunk_samples.tolist(), strict=True):
            move = self.active.get(slot)
            if move is None or move.over:
                continue
            if samples:
                move.last = True
                slots.paused[slot] = True
            commands += self._copy(move, slots.filled(slot) if samples else slots.full(slot), number, step.step)
        return commands

    def report(self, number: int, ok: bool) -> tuple[int, ...]:
        """A command was carried out, or failed. Returns the group it was in."""
        move, _ = self.commands.pop(number)
        move.waits -= 1
        self._slots.moving[move.slot] -= 1
        if not ok:
            self.failed += not move.over
            self._give_up(move)
        if move.over and not move.waits:
            self._undo(move)
        return (self._index,)

    def drop(self, slot: int) -> None:
        """The slot's sequence is over or waits again: its move, if there is one, is given up."""
        self.replaces = [one for one in self.replaces if one.slot != slot]
        if slot in self.active:
            self._cancel(self.active[slot])

    def lose(self, pool: int) -> None:
        """A pool's device is gone. What was to be copied to it has failed; a target that was to receive from it may be writing yet, and says itself
        when it no longer does."""
        for number, (move, command) in list(self.commands.items()):
            if pool == command.target.pool:
                self.report(number, ok=False)
            elif pool == command.source.pool:
                self.failed += not move.over
                self._give_up(move)
        for move in list(self.active.values()):
            if pool in move.targets.tolist():
                self._cancel(move)

    def releasing(self) -> Int32s:
        """int32 [pools] pages that come back when the moves under way are done."""
        pages = np.zeros(len(self._pools.pools), np.int32)
        for move in self.active.values():
            if not move.over:
                pages += np.bincount(self._slots.placement[move.slot][move.lanes], minlength=len(pages)).astype(np.int32) * move.pages.shape[1]
        return pages

    def held(self) -> Iterator[tuple[Int32s, Int32s]]:
        """(pages [l, rows], pools [l]) of every move's own pages."""
        for move in self.active.values():
            yield move.pages, move.targets

    # ----------------------------------------------------------------------------------------------------- steps

    def _advance(self, move: Move, number: Callable[[], int]) -> list[MoveKv]:
        slots, slot = self._slots, move.slot
        if slots.phase[slot] == PREFILL:
            return []  # what its chunks write is shipped behind them
        if not move.last:
            if slots.known[slot] <= slots.begun[slot]:
                return []  # it was dealt anew before its first token is out
            full = (int(slots.known[slot]) - 1) // slots.page_tokens  # of rows whose KV is reported to be stored
            if full - move.copied > 1:
                return self._copy(move, full, number)
            move.last = True
            slots.paused[slot] = True
        if move.copied == slots.filled(slot):  # also while the step that computed the end of its prompt, and has passed all layers, is in flight
            self._switch(move)
            return []
        return [] if slots.in_flight[slot] else self._copy(move, slots.filled(slot), number)

    def _copy(self, move: Move, rows: int, number: Callable[[], int], step: int = -1) -> list[MoveKv]:
        """Copies the rows from `move.copied` to `rows`; gives the move up when the targets have no pages for them."""
        slots = self._slots
        if rows == move.copied:
            return []
        if not self._extend(move, int(slots.room[move.slot]) // slots.page_tokens):
            self.failed += 1
            self._cancel(move)
            return []
        commands = []
        sources = slots.placement[move.slot][move.lanes]
        for source, target in sorted(set(zip(sources.tolist(), move.targets.tolist(), strict=True))):
            some = (sources == source) & (move.targets == target)
            lanes = move.lanes[some]
            commands.append(
                MoveKv(
                    number(),
                    int(slots.request[move.slot]),
                    int(slots.choice[move.slot]),
                    self._spec.stages[int(lanes[0]) // self._kv_heads].layers,
                    lanes % self._kv_heads,
                    slots.pages[move.slot][lanes, move.copied : rows].copy(),
                    move.pages[some, move.copied : rows].copy(),
                    Place(self._index, source, self._ranks[source]),
                    Place(self._index, target, self._ranks[target]),
                    step,
                )
            )
            self.commands[commands[-1].move] = (move, commands[-1])
        move.copied = rows
        move.waits += len(commands)
        slots.moving[move.slot] += len(commands)
        return commands

    def _switch(self, move: Move) -> None:
        """Everything is there: the next step is told, and the old pages are free, but for a prompt that choices wait to share."""
        slots, slot = self._slots, move.slot
        rows = int(slots.room[slot]) // slots.page_tokens
        if not self._extend(move, rows):
            self.failed += 1
            self._cancel(move)
            return
        self._prompts.keep(slot)
        old = slots.pages[slot][move.lanes, :rows]
        self._pools.give(old, slots.placement[slot][move.lanes])
        slots.pages[slot][move.lanes, :rows] = move.pages
        slots.placement[slot][move.lanes] = move.targets
        slots.paused[slot] = False
        self.replaces.append(Replace(slot, move.lanes, move.targets, move.pages))
        self.done += 1
        del self.active[slot]

    def _cancel(self, move: Move) -> None:
        self._give_up(move)
        if not move.waits:
            self._undo(move)

    def _give_up(self, move: Move) -> None:
        """The sequence stays where it is; the move's pages go back in `_undo`."""
        slots = self._slots
        move.over = True
        slots.paused[move.slot] = False
        slots.goal[move.slot] = slots.placement[move.slot]

    def _undo(self, move: Move) -> None:
        self._pools.give(move.pages, move.targets)
        del self.active[move.slot]

    def _extend(self, move: Move, rows: int) -> bool:
        """Gives the move as many rows of target pages as its sequence has by now."""
        more = rows - move.pages.shape[1]
        if more <= 0:
            return True
        if not self._pools.fit(move.targets, more):
            return False
        move.pages = np.concatenate([move.pages, self._take(move.targets, more)], 1)
        return True

    def _take(self, targets: Int32s, rows: int) -> Int32s:
        """int32 [l, rows] fresh pages."""
        if not rows:
            return np.zeros((len(targets), 0), np.int32)
        return self._pools.take(np.broadcast_to(targets, (rows, len(targets)))).T.copy()
