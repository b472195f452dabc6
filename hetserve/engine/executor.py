"""The real executor: stamps events, carries out commands on workers, hands tokens to whoever listens. The only clock of the engine.

It runs on one thread under `drive`; other threads reach it through `post` alone.
"""

from __future__ import annotations

import heapq
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from hetserve.control.messages import (
    Command,
    Event,
    Finish,
    Reject,
    RunStep,
    StepDone,
    Tokens,
    WakeAt,
    Woke,
    WorkerLost,
)
from hetserve.engine.channel import Channel, Lost
from hetserve.engine.wire import StepResult, TokenLogprobs
from hetserve.errors import UnsupportedError

PATIENCE = 10.0  # a worker may take this many times its predicted step time ...
PATIENCE_MIN_S = 5.0  # ... and never less than this, before it counts as frozen (DESIGN section 9)

MakeEvent: TypeAlias = Callable[[float, int], Event]  # (at_s, seq) -> event


class Listener(Protocol):
    """Who hears of tokens and ends. Called on the executor's thread; `flush` once after all commands of an event."""

    def tokens(self, command: Tokens, logprobs: tuple[TokenLogprobs | None, ...]) -> None: ...

    def finish(self, command: Finish) -> None: ...

    def reject(self, command: Reject) -> None: ...

    def flush(self) -> None: ...


@dataclass
class InFlight:
    """The steps a worker has been sent and not answered, oldest first, and since when it works on the oldest."""

    channel: Channel
    predicted_s: deque[float] = field(default_factory=deque)
    since_s: float = 0.0
    lost: bool = False  # a lost worker is sent nothing and expected to answer nothing

    def deadline_s(self) -> float:
        if not self.predicted_s or self.lost:
            return float("inf")
        return self.since_s + max(PATIENCE_MIN_S, PATIENCE * self.predicted_s[0])


class Closing:
    """Posted once, to end the loop."""


class EngineExecutor:
    """Drives real workers.

    Args:
        channels: group number -> the channel of the group's worker (one worker a group, for now).
        listener: hears tokens and ends.
        clock: seconds, monotonic.
    """

    def __init__(self, channels: Mapping[int, Channel], listener: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self._groups = {group: InFlight(channel) for group, channel in channels.items()}
        self._listener = listener
        self._clock = clock
        self._inbox: queue.SimpleQueue[MakeEvent | StepResult | Lost | Closing] = queue.SimpleQueue()
        self._alarms: list[float] = []
        self._logprobs: tuple[TokenLogprobs | None, ...] = ()
        self._seq = 0
        self.parts_s: dict[str, float] = {}  # where the workers' time went so far
        self.steps = 0
        self.lost: dict[str, str] = {}  # device -> why

    def post(self, item: MakeEvent | StepResult | Lost | Closing) -> None:
        """Hands an event's maker, or what a channel received, to the loop. From any thread."""
        self._inbox.put(item)

    def events(self) -> Iterator[Event]:
        """Events as they happen, until `Closing` is posted. Commands of an event are carried out before the next one is asked for."""
        while True:
            item = self._next()
            if isinstance(item, Closing):
                return
            event = self._event(item)
            if event is not None:
                self._seq += 1
                yield event
                self._listener.flush()

    def execute(self, command: Command) -> None:
        """Carries out one command.

        Raises:
            UnsupportedError: the command needs what this engine does not have yet (KV moves).
        """
        match command:
            case RunStep():
                self._send(command)
            case Tokens():
                self._listener.tokens(command, self._logprobs)
            case Finish():
                self._listener.finish(command)
            case Reject():
                self._listener.reject(command)
            case WakeAt():
                heapq.heappush(self._alarms, command.at_s)
            case _:
                raise UnsupportedError(f"the engine cannot carry out {type(command).__name__} yet", "use a plan with one mixed group on one device")

    def _send(self, step: RunStep) -> None:
        group = self._groups[step.group]
        if group.lost:
            return
        if not group.predicted_s:
            group.since_s = self._clock()
        group.predicted_s.append(step.predicted_s)
        group.channel.send(step)

    def _next(self) -> MakeEvent | StepResult | Lost | Closing:
        """What happens next: a posted item, an alarm, or a worker found frozen."""
        while True:
            due_s = min([group.deadline_s() for group in self._groups.values()] + self._alarms[:1])
            try:
                return self._inbox.get(timeout=None if due_s == float("inf") else max(0.0, due_s - self._clock()))
            except queue.Empty:
                pass
            now_s = self._clock()
            if self._alarms and self._alarms[0] <= now_s:
                heapq.heappop(self._alarms)
                return Woke
            for group in self._groups.values():
                if group.deadline_s() <= now_s:
                    group.channel.kill()
                    return Lost(group.channel.device, f"it made no progress for {now_s - group.since_s:.1f} s and was ended")

    def _event(self, item: MakeEvent | StepResult | Lost) -> Event | None:
        now_s = self._clock()
        if isinstance(item, StepResult):
            return self._step_done(item, now_s)
        if isinstance(item, Lost):
            return self._worker_lost(item, now_s)
        return item(now_s, self._seq)

    def _step_done(self, result: StepResult, now_s: float) -> StepDone | None:
        group = self._groups[result.group]
        if group.lost:
            return None
        group.predicted_s.popleft()
        group.since_s = now_s
        self._logprobs = result.logprobs
        self.steps += 1
        for part, seconds in result.parts_s.items():
            self.parts_s[part] = self.parts_s.get(part, 0.0) + seconds
        return StepDone(now_s, self._seq, result.step, result.group, result.tokens, result.step_s)

    def _worker_lost(self, lost: Lost, now_s: float) -> WorkerLost | None:
        """The event of a loss; None when it is known already (a killed worker's channel reports it once more)."""
        group = next(group for group in self._groups.values() if group.channel.device == lost.device)
        if group.lost:
            return None
        group.lost = True
        self.lost[lost.device] = lost.reason
        return WorkerLost(now_s, self._seq, lost.device, lost.reason)
