"""What the controller knows of requests and of the sequences in a group's slots. Data and its bookkeeping; decisions are made elsewhere.

A sequence is one choice of one request. Waiting ones are small objects; running ones are a column in arrays over slots, so that one numpy
call moves all of them on by a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hetserve.control.messages import NO_INTS, Int32s, Request

MAX_CHOICES = 1 << 16  # a sequence's order is arrival * MAX_CHOICES + choice
NO_TARGET = np.iinfo(np.int32).max

# Phases of a slot.
FREE = 0
PREFILL = 1  # some known tokens are not computed (or sent to be) yet
DECODE = 2  # takes its last sampled token, one a step
LEAVING = 3  # preempted: back to waiting once its steps in flight are reported
CLOSED = 4  # finished: its pages are free once its steps in flight are reported
LOST = 5  # some of its KV went with a device: back to waiting likewise, and what its steps in flight sample is dropped


@dataclass(eq=False)
class Sequence:
    """One choice of one request."""

    request: RequestState
    choice: int
    order: int  # earlier arrivals have smaller ones; unique
    tokens: Int32s  # while waiting: [known] prompt and what was generated before a preemption
    group: int  # whose queue or slot it is in
    slot: int = -1  # -1: waiting or done
    done: bool = False


@dataclass(eq=False)
class RequestState:
    """One request that is not over."""

    request: Request
    target: int  # tokens, prompt included, at which a choice has its full length
    cached_tokens: int  # leading prompt tokens in full pages, which choices can share
    group: int  # whose primaries compute its prompt
    sequences: list[Sequence] = field(default_factory=list)
    open: int = 0  # choices not done

    def waits(self) -> bool:
        """Whether a choice is waiting for a slot."""
        return any(one.slot < 0 and not one.done for one in self.sequences)


class Slots:
    """Arrays over the slots of a group.

    Args:
        count: slots.
        lanes, page_tokens, max_tokens: shape of a sequence's page table and token buffer.
    """

    def __init__(self, count: int, lanes: int, page_tokens: int, max_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.phase = np.zeros(count, np.int8)
        self.decoding = np.zeros(count, bool)  # phase == DECODE
        self.standing = np.zeros(count, bool)  # in the workers' standing set, as of the last step sent
        self.known = np.zeros(count, np.int32)  # tokens reported: prompt and generated
        self.issued = np.zeros(count, np.int32)  # the same, with those being sampled by steps in flight
        self.computed = np.zeros(count, np.int32)  # tokens whose KV is stored, or will be by steps in flight
        self.room = np.zeros(count, np.int32)  # tokens the granted pages hold
        self.in_flight = np.zeros(count, np.int32)  # steps in flight that have this slot
        self.prompt = np.zeros(count, np.int32)
        self.target = np.full(count, NO_TARGET, np.int32)
        self.stop_from = np.zeros(count, np.int32)  # known tokens from which a stop token counts
        self.order = np.zeros(count, np.int64)
        self.request = np.zeros(count, np.int64)
        self.choice = np.zeros(count, np.int32)
        self.last = np.full(count, -2, np.int32)  # the last token reported
        self.stops = np.full((1, count), -1, np.int32)  # [most stop ids of a sequence, slots]
        self.placement = np.zeros((count, lanes), np.int32)  # pools
        self.goal = np.zeros((count, lanes), np.int32)  # the same once moves under way are done
        self.begun = np.zeros(count, np.int32)  # tokens known when it entered the slot
        self.settled = np.zeros(count, np.int32)  # tokens known when its last move began
        self.moving = np.zeros(count, np.int32)  # commands under way that read its pages
        self.paused = np.zeros(count, bool)  # sits out until its pages are where they are going
        self.tokens = np.zeros((count, max_tokens + 1), np.int32)
        self.pages = np.zeros((count, lanes, -(-max_tokens // page_tokens)), np.int32)
        self.sequences: list[Sequence | None] = [None] * count

    def open(self, slot: int, sequence: Sequence, placement: Int32s) -> None:
        """Puts a waiting sequence into a free slot, nothing computed, no pages."""
        state = sequence.request
        request = state.request
        known = len(sequence.tokens)
        self.phase[slot] = PREFILL
        self.known[slot] = self.issued[slot] = known
        self.computed[slot] = self.room[slot] = 0
        self.prompt[slot] = len(request.prompt)
        self.target[slot] = state.target
        self.stop_from[slot] = min(NO_TARGET, len(request.prompt) + request.min_tokens)
        self.order[slot] = sequence.order
        self.request[slot], self.choice[slot] = request.id, sequence.choice
        self._set_stops(slot, request.stop_token_ids)
        self.placement[slot] = self.goal[slot] = placement
        self.begun[slot] = known
        self.settled[slot] = known - self.page_tokens
        self.paused[slot] = False
        self.tokens[slot, :known] = sequence.tokens
        self.sequences[slot] = sequence
        sequence.slot = slot
        sequence.tokens = NO_INTS

    def clear(self, slot: int) -> Sequence:
        """Empties a slot; its sequence has all known tokens again."""
        sequence = self.sequences[slot]
        assert sequence is not None and self.in_flight[slot] == 0 and self.moving[slot] == 0
        sequence.tokens = self.tokens[slot, : self.known[slot]].copy()
        sequence.slot = -1
        self.sequences[slot] = None
        self.phase[slot] = FREE
        self.decoding[slot] = False
        self.target[slot] = NO_TARGET
        self.last[slot] = -2
        self.room[slot] = 0
        return sequence

    def set_phase(self, slot: int, phase: int) -> None:
        self.phase[slot] = phase
        self.decoding[slot] = phase == DECODE

    def held(self, slot: int) -> Int32s:
        """The pages a slot holds: int32 [lanes, rows]."""
        return self.pages[slot, :, : self.room[slot] // self.page_tokens]

    def full(self, slot: int) -> int:
        """Rows of pages that are full, or will be by steps in flight."""
        return int(self.computed[slot]) // self.page_tokens

    def filled(self, slot: int) -> int:
        """The same, with the row that is only begun."""
        return -(-int(self.computed[slot]) // self.page_tokens)

    def _set_stops(self, slot: int, stops: tuple[int, ...]) -> None:
        if len(stops) > len(self.stops):
            more = np.full((len(stops) - len(self.stops), self.stops.shape[1]), -1, np.int32)
            self.stops = np.concatenate([self.stops, more])
        self.stops[:, slot] = -1
        self.stops[: len(stops), slot] = stops
