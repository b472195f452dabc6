"""Forms a group's next step: decoding sequences first, then prefill chunks, then new sequences, as far as budget, slots and pages go.

When pages run out, sequences give way: pages already on their way back are waited for, then kept prompts go, then the policy's victim among
those that hold pages where they are short is preempted. The earliest arrival is never the victim while others run, so somebody always finishes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetserve.control.group import Group, Mask, SentStep, Standing
from hetserve.control.messages import NO_INTS, NO_PAGES, Int32s, RunStep, Start
from hetserve.control.states import DECODE, FREE, Sequence

ONE = np.ones(1, np.int32)
MOST_TRIED = 4  # sequences asked to move before somebody has to give way


class Grants:
    """Pages granted in one step."""

    def __init__(self) -> None:
        self._slots: list[Int32s] = []
        self._index: list[Int32s] = []
        self._pages: list[Int32s] = []

    def add(self, slots: Int32s, index: Int32s, pages: Int32s) -> None:
        """slots [k], index [k], pages [k, lanes]."""
        self._slots.append(slots)
        self._index.append(index)
        self._pages.append(pages)

    def arrays(self) -> tuple[Int32s, Int32s, Int32s]:
        if not self._slots:
            return NO_INTS, NO_INTS, NO_PAGES
        if len(self._slots) == 1:
            return self._slots[0], self._index[0], self._pages[0]
        return np.concatenate(self._slots), np.concatenate(self._index), np.concatenate(self._pages)


class Former:
    """Forms one group's steps."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._turn = 0

    def form(self, step: int) -> RunStep | None:
        """The next step with the number `step`, or None when the group is down, has enough in flight, or has nothing to run."""
        group = self.group
        if len(group.in_flight) >= group.depth or not group.up:
            return None
        grants = Grants()
        ready = self._ready()
        calm = self._grow(ready, grants)
        decoding = int(np.count_nonzero(ready))
        budget = group.config.max_step_tokens - decoding
        starts = self._adopt(grants) + (self._admit(budget, grants) if calm else [])
        chunks = self._chunks(budget)
        if not decoding and not chunks:
            assert not starts
            return None
        return self._send(step, ready, chunks, starts, grants)

    def _ready(self) -> Mask:
        """[slots] that take a token in this step. With several stages the slots take turns, so that every stage has a step to work on."""
        group, slots = self.group, self.group.slots
        if group.spec.role == "prefill":
            return np.zeros(len(slots.phase), bool)
        ready = slots.decoding & (slots.issued < slots.target) & ~slots.paused
        if group.stages == 1:
            return ready
        ready &= slots.in_flight == 0
        turns = np.arange(len(ready)) % group.stages
        for turn in range(self._turn, self._turn + group.stages):
            if (ready & (turns == turn % group.stages)).any():
                self._turn = turn + 1
                return ready & (turns == turn % group.stages)
        return ready

    # ----------------------------------------------------------------------------------------------- page growth

    def _grow(self, ready: Mask, grants: Grants) -> bool:
        """Grants a row of pages to each ready sequence that has filled its own, and takes out of `ready` those that must wait for one.

        Returns: whether there were enough pages. If not, nobody new may start: it could take what somebody earlier waits for, for ever.
        """
        group, slots = self.group, self.group.slots
        needy = np.flatnonzero(ready & (slots.computed == slots.room)).astype(np.int32)
        calm = not len(needy) or group.pools.fit(slots.placement[needy])
        if not calm:
            needy = self._make_room(needy, ready)
        if len(needy):
            pages = group.pools.take(slots.placement[needy])
            index = slots.room[needy] // group.config.page_tokens
            slots.pages[needy, :, index] = pages
            slots.room[needy] += group.config.page_tokens
            grants.add(needy, index, pages)
        return calm

    def _make_room(self, needy: Int32s, ready: Mask) -> Int32s:
        """Finds pages for `needy`; returns those that get some now, earliest arrivals first in line."""
        group, slots = self.group, self.group.slots
        while len(needy) and not group.pools.fit(slots.placement[needy]) and not group.going:
            short = group.pools.short(slots.placement[needy])
            if group.moves.releasing()[short].any():
                break
            if group.prompts.drop_one():
                continue
            holders = np.flatnonzero((slots.phase != FREE) & short[slots.placement].any(1))
            victim = int(holders[group.policies.evict(slots.order[holders])])
            if self._relocated(victim, holders):
                continue
            assert group.running > 1 or group.dispatcher.active or group.spec.role == "decode", "one sequence alone always fits"
            group.preempt(victim)
            ready[victim] = False
            needy = needy[needy != victim]
        by_arrival = needy[np.argsort(slots.order[needy])]
        served = len(by_arrival)
        while served and not group.pools.fit(slots.placement[by_arrival[:served]]):
            served -= 1
        ready[by_arrival[served:]] = False
        return np.sort(by_arrival[:served])

    def _relocated(self, victim: int, holders: NDArray[np.integer]) -> bool:
        """Whether somebody moves some head groups from where pages are short to where they are not: the victim, else one of the latest that could."""
        group = self.group
        if not group.dispatcher.active:
            return False
        latest = holders[np.argsort(-group.slots.order[holders])]
        able = [int(slot) for slot in latest if slot != victim and group.dispatcher.movable(int(slot))][:MOST_TRIED]
        return any(group.dispatcher.replace(slot) for slot in (victim, *able))

    # -------------------------------------------------------------------------------------------- new sequences

    def _adopt(self, grants: Grants) -> list[Start]:
        """Sequences that a prefill group has handed over since the last step."""
        group, slots = self.group, self.group.slots
        starts, group.adopted = group.adopted, []
        for start in starts:
            rows = int(slots.room[start.slot]) // group.config.page_tokens
            grants.add(np.full(rows, start.slot, np.int32), np.arange(rows, dtype=np.int32), slots.pages[start.slot, :, :rows].T.copy())
        return starts

    def _admit(self, budget: int, grants: Grants) -> list[Start]:
        """Starts waiting sequences, earliest first, while the step has tokens to spare for them."""
        group = self.group
        starts: list[Start] = []
        if not group.queue.waiting:
            return starts
        slots = group.slots
        planned = sum(int(slots.known[slot] - slots.computed[slot]) for slot in group.prefills)
        while planned < budget and group.free_slots and (sequence := group.queue.front()) is not None:
            start = self._start(sequence, grants)
            if start is None:
                break
            starts.append(start)
            planned += len(start.tokens) - start.cached_tokens
        group.dispatcher.place([start.slot for start in starts])
        return starts

    def _start(self, sequence: Sequence, grants: Grants) -> Start | None:
        """Starts one waiting sequence if its known tokens' pages fit; None if it must wait on."""
        group = self.group
        size = group.config.page_tokens
        rows = -(-len(sequence.tokens) // size)
        alone = len(group.free_slots) == group.config.max_seqs
        while True:
            prefix, wait = group.prompts.find(sequence)
            if wait:
                return None
            shared = 0 if prefix is None else prefix.shape[1]
            if group.pools.fit(group.home, rows - shared, 0.0 if alone else group.config.watermark):
                break
            if not alone:
                return None
            assert group.prompts.drop_one(), "one sequence alone always fits"
        request = sequence.request.request
        tokens = sequence.tokens
        group.queue.pop()
        slot, pages = group.start(sequence, prefix)
        grants.add(np.full(rows, slot, np.int32), np.arange(rows, dtype=np.int32), pages)
        return Start(slot, request.id, sequence.choice, tokens, len(request.prompt), shared * size, request.sampling)

    # ----------------------------------------------------------------------------------------------------- step

    def _chunks(self, budget: int) -> list[tuple[int, int]]:
        """(slot, tokens) of the prefill chunks."""
        group, slots = self.group, self.group.slots
        if not group.prefills or budget <= 0:
            return []
        remaining = slots.known[group.prefills] - slots.computed[group.prefills]
        sizes = group.policies.batch(budget, remaining)
        return [(slot, size) for slot, size in zip(group.prefills, sizes, strict=False) if size]

    def _send(self, step: int, ready: Mask, chunks: list[tuple[int, int]], starts: list[Start], grants: Grants) -> RunStep:
        """Makes the command, and moves the books on as if it had been carried out."""
        group, slots = self.group, self.group.slots
        ends, group.ends = group.ends, []
        leaves, joins = self._restand(ready, ends)
        standing = group.standing
        context = int(slots.computed[standing.rows].sum())
        slots.computed += ready
        slots.issued += ready
        rows, requests, choices = standing.rows, standing.requests, standing.choices
        samples = members = ready
        sampling, pairs = [], 0.0
        if chunks:
            pairs = sum(size * (float(slots.computed[slot]) + size / 2) for slot, size in chunks)
            sampling = self._advance(chunks)
            ends_here = [slot for slot, samples_now in zip((slot for slot, _ in chunks), sampling, strict=True) if samples_now]
            samples, members = ready.copy(), ready.copy()
            samples[ends_here] = True
            members[[slot for slot, _ in chunks]] = True
            rows = np.concatenate([rows, np.array(ends_here, np.int32)])
            requests += tuple(slots.request[ends_here].tolist())
            choices += tuple(slots.choice[ends_here].tolist())
        slots.in_flight += members
        group.in_flight.append(SentStep(step, rows, requests, choices, samples, members))
        tokens = len(standing.rows) + sum(size for _, size in chunks)
        replaces, group.moves.replaces = group.moves.replaces, []
        return RunStep(
            step,
            group.index,
            np.array(ends, np.int32) if ends else NO_INTS,
            tuple(starts),
            tuple(replaces),
            *grants.arrays(),
            leaves,
            joins,
            np.array([slot for slot, _ in chunks], np.int32) if chunks else NO_INTS,
            np.array([size for _, size in chunks], np.int32) if chunks else NO_INTS,
            np.array(sampling, np.int32) if chunks else NO_INTS,
            sum(stage.cost.step_s(tokens, len(rows), context, pairs, len(standing.rows)) for stage in group.spec.stages),
        )

    def _restand(self, ready: Mask, ends: list[int]) -> tuple[Int32s, Int32s]:
        """Makes `ready` the standing set; returns who leaves and who joins it (slots given up are neither)."""
        group, slots = self.group, self.group.slots
        slots.standing[ends] = False
        changed = slots.standing != ready
        if not ends and not np.count_nonzero(changed):
            return NO_INTS, NO_INTS
        leaves = np.flatnonzero(changed & slots.standing).astype(np.int32)
        joins = np.flatnonzero(changed & ready).astype(np.int32)
        slots.standing[:] = ready
        rows = np.flatnonzero(ready).astype(np.int32)
        group.standing = Standing(rows, tuple(slots.request[rows].tolist()), tuple(slots.choice[rows].tolist()))
        return leaves, joins

    def _advance(self, chunks: list[tuple[int, int]]) -> list[int]:
        """Moves the chunks' slots on; a slot whose known tokens are all sent decodes from the next step on. Returns 1 for those that sample."""
        group, slots = self.group, self.group.slots
        sampling = []
        for slot, size in chunks:
            slots.computed[slot] += size
            complete = slots.computed[slot] == slots.known[slot]
            if complete:
                slots.issued[slot] += 1
                slots.set_phase(slot, DECODE)
                group.prefills.remove(slot)
            sampling.append(int(complete))
        return sampling
