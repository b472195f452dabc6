"""One group's running sequences, their pages and the steps in flight: who starts, who gives way, what a reported step means.

Which tokens go into a step is decided in `form`; who waits and who is told, in `controller`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetserve.control.config import ControllerConfig, GroupConfig
from hetserve.control.dispatch import Dispatcher
from hetserve.control.messages import ANY_RANK, NO_INTS, Int32s, Start, StepDone, Tokens
from hetserve.control.moves import Moves
from hetserve.control.pages import Pools
from hetserve.control.queue import Queue
from hetserve.control.sharing import SharedPrompts
from hetserve.control.states import CLOSED, DECODE, FREE, LEAVING, LOST, NO_TARGET, PREFILL, Sequence, Slots
from hetserve.policy.row import Policies

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Standing:
    """The workers' standing set as of the last step sent, spelled out once for as long as it does not change."""

    rows: Int32s  # slots, ascending
    requests: tuple[int, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True)
class SentStep:
    """What must be remembered of a step until it is reported."""

    step: int
    rows: Int32s  # [sampled] slots in sampling order
    requests: tuple[int, ...]  # [sampled]
    choices: tuple[int, ...]  # [sampled]
    samples: Mask  # [slots] those in rows
    members: Mask  # [slots] all slots that took part


@dataclass(frozen=True)
class Ending:
    """A sequence that a reported step completed."""

    slot: int
    reason: str  # "stop" or "length"


class Group:
    """State of one group. `form` fills steps from it; `absorb` takes their results in."""

    def __init__(self, index: int, config: ControllerConfig, policies: Policies) -> None:
        self.index = index
        self.config = config
        self.policies = policies
        self.spec: GroupConfig = config.groups[index]
        self.stages = len(self.spec.stages)
        self.depth = self.stages if self.stages > 1 else config.depth  # with several stages a sequence is in one step at a time
        self.home: Int32s = np.array(self.spec.home(config.kv_heads), np.int32)  # [lanes] primaries
        self.queue = Queue()
        self.missing: dict[str, str] = {}  # lost device -> why
        self.preemptions = 0
        self.touched = True  # something has happened since the controller last looked whether it can go on
        self.reset()

    def reset(self) -> None:
        """Empty slots and pools, nothing in flight: how a group begins, and begins again after a loss."""
        config, self.touched = self.config, True
        self.pools = Pools(tuple(pool.pages for pool in self.spec.pools))
        self.slots = Slots(config.max_seqs, len(self.home), config.page_tokens, config.max_model_len)
        self.prompts = SharedPrompts(self.slots, self.pools, self.home)
        self.moves = Moves(self.index, self.spec, config.kv_heads, self.slots, self.pools, self.prompts)
        self.dispatcher = Dispatcher(self.spec, config, self.policies, self.slots, self.pools, self.moves)
        self._mark_missing()
        self.free_slots = list(range(config.max_seqs))  # a heap: the lowest free slot is used first
        self.in_flight: deque[SentStep] = deque()
        self.standing = Standing(NO_INTS, (), ())
        self.prefills: list[int] = []  # slots in phase PREFILL, in order of arrival
        self.ends: list[int] = []  # slots given up since the last step sent
        self.adopted: list[Start] = []  # sequences taken over from a prefill group since then
        self.again: list[Sequence] = []  # sequences that gave way and wait for a slot again, somewhere
        self.promised = 0  # free slots for sequences that are on their way here
        self.going = 0  # slots in phase LEAVING, CLOSED or LOST: their pages are on their way back

    @property
    def up(self) -> bool:
        """Whether every stage has all its primaries; without an attention worker the group goes on."""
        return not any(pool.device in self.missing for stage in self.spec.stages for pool in stage.primaries)

    @property
    def running(self) -> int:
        """Sequences in slots that are not over."""
        return int(np.count_nonzero((self.slots.phase != FREE) & (self.slots.phase != CLOSED)))

    def kv_tokens(self) -> int:
        """Tokens of running sequences whose KV is resident."""
        slots = self.slots
        return int(slots.computed[(slots.phase == PREFILL) | (slots.phase == DECODE)].sum())

    def tokens(self) -> int:
        """Known tokens of everything this group is responsible for; -1 when it is down."""
        slots = self.slots
        return self.queue.tokens + int(slots.known[slots.phase != FREE].sum()) if self.up else -1

    def capacity_tokens(self) -> int:
        """Tokens of one sequence that the pools hold at most when it is alone on the primaries."""
        heads = self.config.kv_heads
        rows = min(pool.pages // (heads // stage.ranks) for stage in self.spec.stages for pool in stage.primaries)
        return rows * self.config.page_tokens

    # ------------------------------------------------------------------------------------------------ sequences

    def start(self, sequence: Sequence, prefix: Int32s | None) -> tuple[int, Int32s]:
        """Puts a sequence into a slot with pages on the primaries for all its known tokens. Returns the slot and the pages [rows, lanes]."""
        slots, size, placement = self.slots, self.config.page_tokens, self.home
        slot = heapq.heappop(self.free_slots)
        rows = -(-len(sequence.tokens) // size)
        slots.open(slot, sequence, placement)
        shared = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            self.pools.share(prefix, placement)
            slots.pages[slot, :, :shared] = prefix
            slots.computed[slot] = shared * size
        fresh = self.pools.take(np.broadcast_to(placement, (rows - shared, len(placement))))
        slots.pages[slot, :, shared:rows] = fresh.T
        slots.room[slot] = rows * size
        self.prefills.append(slot)
        if prefix is not None and not sequence.request.waits():
            self.prompts.drop(sequence.request.request.id)
        return slot, slots.pages[slot, :, :rows].T.copy()

    def adopt(self, sequence: Sequence, pages: Int32s, computed: int) -> None:
        """Takes a sequence over with pages [lanes, rows] on the primaries that hold the KV of its first `computed` tokens."""
        slots, self.touched = self.slots, True
        slot = heapq.heappop(self.free_slots)
        request, tokens = sequence.request.request, sequence.tokens
        slots.open(slot, sequence, self.home)
        rows = pages.shape[1]
        slots.pages[slot, :, :rows] = pages
        slots.room[slot] = rows * self.config.page_tokens
        slots.computed[slot] = computed
        sequence.group = self.index
        self.prefills.append(slot)
        self.adopted.append(Start(slot, request.id, sequence.choice, tokens, len(request.prompt), computed, request.sampling))

    def surrender(self, slot: int) -> Sequence:
        """Gives up the slot of a sequence that goes on in another group."""
        self.touched = True
        self.pools.give(self.slots.held(slot), self.slots.placement[slot])
        known = [start for start in self.adopted if start.slot != slot]
        if len(known) == len(self.adopted):  # the workers have heard of it
            self.ends.append(slot)
        self.adopted = known
        heapq.heappush(self.free_slots, slot)
        return self.slots.clear(slot)

    def end(self, slot: int) -> None:
        """The slot's sequence is over: its pages go back once no step in flight uses them."""
        slots = self.slots
        sequence = slots.sequences[slot]
        assert sequence is not None and not sequence.done
        sequence.done = True
        self._take_out(slot, CLOSED)

    def preempt(self, slot: int) -> None:
        """The slot's sequence goes back to waiting, with its tokens as what is to be computed again."""
        self.preemptions += 1
        self._take_out(slot, LEAVING)

    def _take_out(self, slot: int, phase: int) -> None:
        slots, self.touched = self.slots, True
        if slots.phase[slot] == PREFILL:
            self.prefills.remove(slot)
        if slots.phase[slot] < LEAVING:
            self.going += 1
        slots.set_phase(slot, phase)
        self.moves.drop(slot)
        if slots.in_flight[slot] == 0 and slots.moving[slot] == 0:
            self._release(slot)

    def _release(self, slot: int) -> None:
        """Gives up a slot that no step in flight uses; a preempted sequence waits again."""
        slots = self.slots
        again = slots.phase[slot] != CLOSED
        if not again:
            self.prompts.keep(slot)
        sequence = self.surrender(slot)
        self.going -= 1
        if again:
            self.again.append(sequence)

    # ------------------------------------------------------------------------------------------------- results

    def absorb(self, event: StepDone) -> tuple[Tokens, list[Ending]]:
        """Takes in the oldest step's tokens. The endings are not carried out yet: the caller ends each.

        Tokens of sequences that are over are dropped here, so nobody hears of tokens past a stop.
        """
        sent = self.in_flight.popleft()
        slots, self.touched = self.slots, True
        rows, tokens, requests, choices, samples = sent.rows, event.tokens, sent.requests, sent.choices, sent.samples
        assert sent.step == event.step and len(tokens) == len(rows), (sent.step, event.step, len(tokens), len(rows))
        slots.in_flight -= sent.members
        places: tuple[int, ...] = tuple(range(len(rows)))
        if self.going:
            alive = slots.phase[rows] < CLOSED
            places = tuple(np.flatnonzero(alive).tolist())
            rows, tokens = rows[alive], tokens[alive]
            requests, choices = tuple(requests[i] for i in places), tuple(choices[i] for i in places)
            samples = samples & (slots.phase < CLOSED)
        slots.tokens[rows, slots.known[rows]] = tokens
        slots.last[rows] = tokens
        slots.known += samples
        return Tokens(event.step, requests, choices, tuple(tokens.tolist()), places), self._endings(rows, tokens)

    def enqueue(self, sequence: Sequence) -> None:
        """A sequence waits here for a slot."""
        sequence.group, self.touched = self.index, True
        self.queue.push(sequence)

    def release_going(self) -> None:
        """Releases the slots whose last step in flight and move have been reported."""
        if self.going:
            slots = self.slots
            waits = (slots.phase >= LEAVING) & (slots.in_flight == 0) & (slots.moving == 0)
            for slot in np.flatnonzero(waits).tolist():
                self._release(slot)

    def _endings(self, rows: Int32s, tokens: Int32s) -> list[Ending]:
        slots = self.slots
        if not np.count_nonzero(slots.stops == slots.last) and not np.count_nonzero(slots.known >= slots.target):
            return []
        known = slots.known[rows]
        stopped = (slots.stops[:, rows] == tokens).any(0) & (known >= slots.stop_from[rows])
        full = known >= slots.target[rows]
        return [Ending(int(rows[i]), "stop" if stopped[i] else "length") for i in np.flatnonzero(stopped | full)]

    # -------------------------------------------------------------------------------------------------- losses

    def lose(self, device: str, why: str) -> list[Sequence]:
        """A device is gone. Returns the sequences that are to wait elsewhere, with their known tokens.

        With a primary all pages and steps in flight are gone. With an attention worker only the sequences that have heads there give way, once
        their steps in flight are reported; what those sample is dropped.
        """
        self.missing[device] = why
        self.touched = True
        if not self.up:
            return self.abandon()
        slots = self.slots
        self._mark_missing()
        for number, pool in enumerate(self.spec.pools):
            if pool.device == device:
                self.moves.lose(number)
                for slot in np.flatnonzero((slots.placement == number).any(1) & (slots.phase != FREE) & (slots.phase != CLOSED)).tolist():
                    self._take_out(slot, LOST)
        self.release_going()
        return []

    def abandon(self) -> list[Sequence]:
        """Gives up everything: empty slots and pools. Returns every sequence that is not over."""
        slots = self.slots
        waiting, self.queue = [*self.again, *self.queue.live()], Queue()
        slots.in_flight[:] = 0
        slots.moving[:] = 0
        running = [slots.clear(slot) for slot in np.flatnonzero(slots.phase != FREE).tolist()]
        self.reset()
        return sorted([one for one in (*running, *waiting) if not one.done], key=lambda one: one.order)

    def join(self, device: str) -> None:
        """A lost device is back, with nothing in it."""
        self.missing.pop(device, None)
        self.touched = True
        self._mark_missing()

    def _mark_missing(self) -> None:
        self.dispatcher.missing[:] = [pool.device in self.missing for pool in self.spec.pools]

    # ------------------------------------------------------------------------------------------------- checking

    def check(self, borrowed: Iterable[Int32s] = ()) -> None:
        """Asserts everything that must hold between events. `borrowed`: pages [lanes, rows] on primaries held for sequences on their way here."""
        slots, size = self.slots, self.config.page_tokens
        references = [np.zeros(pool.pages, np.int32) for pool in self.spec.pools]
        for slot, sequence in enumerate(slots.sequences):
            assert (sequence is None) == (slots.phase[slot] == FREE) == (slot in self.free_slots)
            if sequence is None:
                assert slots.in_flight[slot] == 0 and slots.room[slot] == 0
                assert slots.target[slot] == NO_TARGET and not (slots.stops[:, slot] == slots.last[slot]).any()  # `_endings` looks at all slots
                continue
            assert sequence.slot == slot and sequence.done == (slots.phase[slot] == CLOSED)
            sampling = slots.issued[slot] - slots.known[slot]
            dropped = sequence.done or slots.phase[slot] == LOST
            assert sampling >= 0 and (dropped or sampling <= len(self.in_flight))
            assert slots.known[slot] <= slots.target[slot] and slots.computed[slot] <= slots.room[slot] <= slots.pages.shape[2] * size
            assert slots.in_flight[slot] <= len(self.in_flight)
            assert slots.phase[slot] != PREFILL or np.array_equal(slots.placement[slot], self.home), "prompts are computed on primaries"
            self._check_native(slots.placement[slot])
            self._check_native(slots.goal[slot])
            self._count(references, slots.held(slot), slots.placement[slot])
        for pages, pools in self.moves.held():
            self._count(references, pages, pools)
        for pages in (*self.prompts.kept.values(), *borrowed):
            self._count(references, pages, self.home)
        for pool, counted in zip(self.pools.pools, references, strict=True):
            pool.check(counted)
        assert sorted(self.prefills) == np.flatnonzero(slots.phase == PREFILL).tolist()
        assert np.array_equal(slots.decoding, slots.phase == DECODE)
        assert self.going == np.count_nonzero(slots.phase >= LEAVING)
        assert np.array_equal(slots.in_flight, sum((sent.members.astype(np.int32) for sent in self.in_flight), np.zeros_like(slots.in_flight)))
        assert np.array_equal(self.standing.rows, np.flatnonzero(slots.standing))
        assert not self.again and not (slots.paused & ~np.isin(np.arange(len(slots.paused)), list(self.moves.active))).any()
        self.queue.check()

    def _check_native(self, placement: Int32s) -> None:
        """A lane lies in a pool of its stage, on its own rank's primary or on an attention worker."""
        stages = np.repeat(np.arange(self.stages), [len(stage.pools) for stage in self.spec.stages])
        assert np.array_equal(stages[placement], stages[self.home])
        assert ((np.array(self.spec.tp_ranks)[placement] == ANY_RANK) | (placement == self.home)).all(), "on another rank's primary"

    @staticmethod
    def _count(references: list[Int32s], pages: Int32s, placement: Int32s) -> None:
        for pool, counts in enumerate(references):
            np.add.at(counts, pages[placement == pool].ravel(), 1)
