"""The simulator: an executor whose workers are formulas and whose clock is a number. The same arrivals always give the same run.

Events happen in the order (time, priority, number): at one instant stages are done before steps end, and those end before requests arrive. It knows
how long answers are. A stage works on one step at a time, in their order; devices slow each other as `shared.py` says.

Moves share links as `links.py` says, and slow no steps. One that follows a step ends when the step's last layer has been sent (see `_follow`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hetserve.control.messages import (
    Arrived,
    Command,
    Event,
    Finish,
    MoveDone,
    MoveKv,
    Reject,
    Request,
    RunStep,
    StepDone,
    Tokens,
    WakeAt,
    Woke,
    WorkerJoined,
    WorkerLost,
)
from hetserve.sim.device import END, MORE, Pass, SimGroup, SimStage
from hetserve.sim.faults import LOST, Fault
from hetserve.sim.links import FairLinks, Way
from hetserve.sim.shared import Excess, SharedDevices

FAULTS, PASSES, STEP_ENDS, MOVE_ENDS, ARRIVES, WAKES = range(6)  # priorities

Make = Callable[[float, int], Event | None]  # (at_s, seq) -> event, if it is the controller's affair


@dataclass(frozen=True)
class Arrival:
    """One request of a simulated workload. Its prompt's tokens do not matter, only how many there are."""

    at_s: float
    prompt_tokens: int
    output_tokens: int  # of each choice, at most
    n: int = 1


@dataclass
class Outcome:
    """What became of one choice of one request."""

    at_s: float
    prompt_tokens: int
    token_s: list[float] = field(default_factory=list)  # when each token was told
    reason: str = ""  # as in Finish, or "rejected"
    why: str = ""


class SimExecutor:
    """Drives simulated workers.

    Args:
        groups: the stages of each group.
        kv_heads: KV heads of the model.
        carry: the way of a move and its bytes.
        bytes_per_s: of each link.
        max_seqs: slots of each group.
        max_tokens: what every request asks for; answers end before it by their stop token.
        excess: how devices slow each other (see `SharedDevices`); none: they do not.
        faults: what goes wrong. A lost device's steps and moves never end; the controller hears of the loss at once.
        hop: the way of hidden states from one device to another and their bytes, by rows of the step; none: they take no time.
    """

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        groups: Sequence[Sequence[SimStage]],
        kv_heads: int,
        carry: Callable[[MoveKv], tuple[Way, int]],
        bytes_per_s: Mapping[str, float],
        max_seqs: int,
        max_tokens: int,
        excess: Excess | None = None,
        faults: Sequence[Fault] = (),
        hop: Callable[[str, str, int], tuple[Way, int]] | None = None,
    ) -> None:
        outputs = {number: arrival.output_tokens for number, arrival in enumerate(arrivals)}
        self._slower: dict[str, float] = {}
        self.groups = [SimGroup(max_seqs, stages, kv_heads, outputs, self._slower) for stages in groups]
        self._moves: dict[int, MoveKv] = {}  # ordered and not over
        self._carry = carry
        self._hop = hop
        self._following: dict[tuple[int, int], list[MoveKv]] = {}  # (group, step) -> moves behind it, which come before it
        self._tails: dict[int, int] = {}  # of a move behind a step that has begun: what its last layer still waits for
        self.outcomes = [[Outcome(one.at_s, one.prompt_tokens) for _ in range(one.n)] for one in arrivals]
        self.now_s = 0.0
        self.events_seen = 0
        self.ended = 0  # choices that are over
        self._devices = SharedDevices(excess or {}, self._later)
        self._links = FairLinks(bytes_per_s, self._later)
        self._heap: list[tuple[float, int, int, Make]] = []
        self._pushed = 0
        for fault in faults:
            self._push(fault.at_s, FAULTS, partial(self._fault, fault))
        for number, arrival in enumerate(arrivals):
            self._push(arrival.at_s, ARRIVES, partial(_arrived, number, arrival, max_tokens))

    def events(self) -> Iterator[Event]:
        """Events in order, until nothing is left to happen."""
        while self._heap:
            self.now_s, _, _, make = heapq.heappop(self._heap)
            event = make(self.now_s, self.events_seen)
            if event is not None:
                self.events_seen += 1
                yield event

    def execute(self, command: Command) -> None:
        """Carries out one command."""
        match command:
            case RunStep():
                self._run(command)
            case Tokens():
                for request, choice in zip(command.requests, command.choices, strict=True):
                    self.outcomes[request][choice].token_s.append(self.now_s)
            case Finish():
                outcome = self.outcomes[command.request][command.choice]
                outcome.reason, outcome.why = command.reason, command.why
                self.ended += 1
            case Reject():
                for outcome in self.outcomes[command.request]:
                    outcome.reason, outcome.why = "rejected", command.why
                    self.ended += 1
            case WakeAt():
                self._push(command.at_s, WAKES, Woke)
            case MoveKv():
                self._move(command)

    def _run(self, command: RunStep) -> None:
        """Sends a step into its group's first stage, and the moves that follow it with it."""
        if self._lost(*(device for stage in self.groups[command.group].stages for device in stage.primaries)):
            return
        one = self.groups[command.group].admit(command)
        one.begun_s = self.now_s  # or later: when the first stage is free
        one.moves = self._following.pop((command.group, command.step), [])
        self._enter(one, 0, self.now_s)

    def _enter(self, one: Pass, stage: int, now_s: float) -> None:
        waiting = self.groups[one.group].waiting[stage]
        waiting.append(one)
        if len(waiting) == 1:
            self._work(one, stage, now_s)

    def _work(self, one: Pass, stage: int, now_s: float) -> None:
        one.stage_begun_s = now_s
        if stage == 0:
            one.begun_s = now_s
        group = self.groups[one.group]
        for move in one.moves:
            if group.stage_of(move.source.pool) == stage:
                self._follow(move, sum(one.parts_s[stage]), now_s)
        self._devices.begin(group.stages[stage].primary, one.parts_s[stage], lambda done_s: self._passed(one, stage, done_s), now_s)

    def _passed(self, one: Pass, stage: int, now_s: float) -> None:
        """A stage is done with a step: on with it, and with the next one here."""
        group = self.groups[one.group]
        if one.era != group.era:
            return
        group.busy_s[stage] += now_s - one.stage_begun_s
        for move in one.moves:
            if group.stage_of(move.source.pool) == stage:
                self._last_layer(move, True, now_s)
        if stage + 1 < len(group.stages):
            sending = group.sending[stage]
            sending.append(one)
            if len(sending) == 1:
                self._send(one, stage, now_s)
        else:
            self._push(now_s, STEP_ENDS, lambda at_s, seq: StepDone(at_s, seq, one.step, one.group, one.tokens, at_s - one.begun_s))
        waiting = group.waiting[stage]
        waiting.popleft()
        if waiting:
            self._work(waiting[0], stage, now_s)

    def _send(self, one: Pass, stage: int, now_s: float) -> None:
        """Hidden states to the next stage; those of a later step leave when these are there."""
        stages = self.groups[one.group].stages
        way, size_bytes = self._hop(stages[stage].primary, stages[stage + 1].primary, one.rows) if self._hop is not None else (Way(0.0, ()), 0)
        self._links.begin(way, size_bytes, lambda there_s: self._there(one, stage, there_s), now_s)

    def _there(self, one: Pass, stage: int, now_s: float) -> None:
        group = self.groups[one.group]
        if one.era != group.era:
            return
        self._enter(one, stage + 1, now_s)
        sending = group.sending[stage]
        sending.popleft()
        if sending:
            self._send(sending[0], stage, now_s)

    def _follow(self, move: MoveKv, pass_s: float, now_s: float) -> None:
        """A move that follows a stage's step, which has just begun and takes so long.

        An even share of the move is each of its layers, which the stage passes evenly too. All but the last share the links from when the first layer
        is passed; the last one leaves once it is passed and those before it are there.
        """
        way, size_bytes = self._carry(move)
        layers = move.layers[1] - move.layers[0]
        self._tails[move.move] = 2
        before_bytes, before = size_bytes * (1 - 1 / layers), partial(self._last_layer, move, False)
        self._later(now_s + pass_s / layers, lambda at_s: self._links.begin(way, before_bytes, before, at_s))

    def _last_layer(self, move: MoveKv, passed: bool, now_s: float) -> None:
        """Sends it, if it is passed and those before it are there; one of the two has just become so."""
        self._tails[move.move] -= 1
        if self._tails[move.move]:
            return
        del self._tails[move.move]
        way, size_bytes = self._carry(move)
        way = way if passed else replace(way, latency_s=0.0)  # right behind the others
        self._links.begin(way, size_bytes / (move.layers[1] - move.layers[0]), self._arriving(move), now_s)

    def _arriving(self, move: MoveKv) -> Callable[[float], None]:
        return lambda now_s: self._end_move(move, now_s, True)

    def _move(self, move: MoveKv) -> None:
        self._moves[move.move] = move
        if self._lost(*self._ends_of(move)):
            self._end_move(move, self.now_s, False)
        elif move.step >= 0:
            self._following.setdefault((move.source.group, move.step), []).append(move)
        else:
            self._links.begin(*self._carry(move), self._arriving(move), self.now_s)

    def _end_move(self, move: MoveKv, at_s: float, ok: bool) -> None:
        """Says that it is over, unless that has been said."""
        if self._moves.pop(move.move, None) is not None:
            self._push(at_s, MOVE_ENDS, lambda now_s, seq: MoveDone(now_s, seq, move.move, ok))

    def _ends_of(self, move: MoveKv) -> list[str]:
        """The devices at both ends."""
        places = (move.source, move.target)
        return [[device for stage in self.groups[place.group].stages for device in stage.devices][place.pool] for place in places]

    def _lost(self, *devices: str) -> bool:
        return any(self._slower.get(device) == LOST for device in devices)

    def _fault(self, fault: Fault, at_s: float, seq: int) -> Event | None:
        was_lost = self._lost(fault.device)
        self._slower[fault.device] = fault.slower
        if self._lost(fault.device) == was_lost:
            return None
        for group in self.groups:
            if any(fault.device in stage.primaries for stage in group.stages):
                group.forget()
        if was_lost:
            return WorkerJoined(at_s, seq, fault.device)
        for move in [move for move in self._moves.values() if fault.device in self._ends_of(move)]:
            self._end_move(move, at_s, False)
        return WorkerLost(at_s, seq, fault.device, "it was simulated to fail")

    def _later(self, at_s: float, done: Callable[[float], None]) -> None:
        def make(now_s: float, seq: int) -> None:
            done(now_s)

        self._push(at_s, PASSES, make)

    def _push(self, at_s: float, priority: int, make: Make) -> None:
        heapq.heappush(self._heap, (at_s, priority, self._pushed, make))
        self._pushed += 1


def _arrived(number: int, arrival: Arrival, max_tokens: int, at_s: float, seq: int) -> Arrived:
    prompt = np.full(arrival.prompt_tokens, MORE, np.int32)
    return Arrived(at_s, seq, Request(number, prompt, max_tokens, arrival.n, (END,)))
