"""The simulator: an executor whose workers are formulas and whose clock is a number. The same arrivals always give the same run.

Events happen in the order (time, priority, number): at one instant steps end before requests arrive. It knows how long answers are.

A move takes its time whatever else is under way. One that follows a step ends when the step's last layer has been sent (see `SimGroup.behind_s`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
)
from hetserve.sim.device import END, MORE, SimGroup, SimStage

STEP_ENDS, MOVE_ENDS, ARRIVES, WAKES = range(4)  # priorities

Make = Callable[[float, int], Event]  # (at_s, seq) -> event


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
        move_s: seconds that a move takes.
        max_seqs: slots of each group.
        max_tokens: what every request asks for; answers end before it by their stop token.
    """

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        groups: Sequence[Sequence[SimStage]],
        kv_heads: int,
        move_s: Callable[[MoveKv], float],
        max_seqs: int,
        max_tokens: int,
    ) -> None:
        outputs = {number: arrival.output_tokens for number, arrival in enumerate(arrivals)}
        self.groups = [SimGroup(max_seqs, stages, kv_heads, outputs) for stages in groups]
        self._move_s = move_s
        self._following: dict[tuple[int, int], list[MoveKv]] = {}  # (group, step) -> moves behind it, which come before it
        self.outcomes = [[Outcome(one.at_s, one.prompt_tokens) for _ in range(one.n)] for one in arrivals]
        self.now_s = 0.0
        self.events_seen = 0
        self.ended = 0  # choices that are over
        self._heap: list[tuple[float, int, int, Make]] = []
        self._pushed = 0
        for number, arrival in enumerate(arrivals):
            self._push(arrival.at_s, ARRIVES, partial(_arrived, number, arrival, max_tokens))

    def events(self) -> Iterator[Event]:
        """Events in order, until nothing is left to happen."""
        while self._heap:
            self.now_s, _, _, make = heapq.heappop(self._heap)
            event = make(self.now_s, self.events_seen)
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
            case MoveKv() if command.step >= 0:
                self._following.setdefault((command.source.group, command.step), []).append(command)
            case MoveKv():
                self._end_move(command, self.now_s + self._move_s(command))

    def _run(self, command: RunStep) -> None:
        """Runs a step and the moves that follow it."""
        step, group = command.step, self.groups[command.group]
        tokens, done_s, step_s = group.run(command, self.now_s)
        self._push(done_s, STEP_ENDS, lambda at_s, seq: StepDone(at_s, seq, step, command.group, tokens, step_s))
        for move in self._following.pop((command.group, step), ()):
            layers = move.layers[1] - move.layers[0]
            self._end_move(move, group.behind_s(move.source.pool, layers, self._move_s(move)))

    def _end_move(self, move: MoveKv, at_s: float) -> None:
        self._push(at_s, MOVE_ENDS, lambda at_s, seq: MoveDone(at_s, seq, move.move, True))

    def _push(self, at_s: float, priority: int, make: Make) -> None:
        heapq.heappush(self._heap, (at_s, priority, self._pushed, make))
        self._pushed += 1


def _arrived(number: int, arrival: Arrival, max_tokens: int, at_s: float, seq: int) -> Arrived:
    prompt = np.full(arrival.prompt_tokens, MORE, np.int32)
    return Arrived(at_s, seq, Request(number, prompt, max_tokens, arrival.n, (END,)))
