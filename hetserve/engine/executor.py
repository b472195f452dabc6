"""The real executor: stamps events, carries out commands on workers, hands tokens to whoever listens. The only clock of the engine.

It runs on one thread under `drive`; other threads reach it through `post` alone.
"""

from __future__ import annotations

import heapq
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from hetserve.control.messages import (
    Command,
    Event,
    Finish,
    MoveDone,
    MoveKv,
    Reject,
    RunStep,
    StepDone,
    Tokens,
    WakeAt,
    Woke,
    WorkerLost,
)
from hetserve.engine.channel import Channel, Lost, Outgoing
from hetserve.engine.wire import GroupLayout, MoveResult, StepResult, TokenLogprobs, patience_s

MakeEvent: TypeAlias = Callable[[float, int], Event]  # (at_s, seq) -> event


class Listener(Protocol):
    """Who hears of tokens and ends. Called on the executor's thread; `flush` once after all commands of an event."""

    def tokens(self, command: Tokens, logprobs: tuple[TokenLogprobs | None, ...]) -> None: ...

    def finish(self, command: Finish) -> None: ...

    def reject(self, command: Reject) -> None: ...

    def flush(self) -> None: ...


@dataclass
class InFlight:
    """The steps a group has been sent and not answered, oldest first, and since when it works on the oldest."""

    layout: GroupLayout
    predicted_s: deque[float] = field(default_factory=deque)
    since_s: float = 0.0
    lost: bool = False  # a primary is gone: the group is sent nothing and expected to answer nothing

    def deadline_s(self) -> float:
        """When the device that answers counts as frozen: it may itself have to wait for each of the others that long."""
        if not self.predicted_s or self.lost:
            return float("inf")
        return self.since_s + patience_s(self.predicted_s[0]) * len(self.layout.devices)


class Closing:
    """Posted once, to end the loop."""


Item: TypeAlias = MakeEvent | StepResult | MoveResult | Lost | Closing


class EngineExecutor:
    """Drives real workers.

    Args:
        channels: device -> its worker's channel.
        layout: the groups.
        listener: hears tokens and ends.
        clock: seconds, monotonic.
        on_lost: told each device that is lost, and why; on the executor's thread.
    """

    def __init__(
        self,
        channels: Mapping[str, Channel],
        layout: Sequence[GroupLayout],
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
        on_lost: Callable[[str, str], None] = lambda device, reason: None,
    ) -> None:
        self._channels = channels
        self._groups = [InFlight(group) for group in layout]
        self._moves: dict[int, set[str]] = {}  # sent and not reported: the devices at its ends
        self._listener = listener
        self._clock = clock
        self._on_lost = on_lost
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._ahead: deque[Item] = deque()  # what comes before anything in the inbox
        self._alarms: list[float] = []
        self._logprobs: tuple[TokenLogprobs | None, ...] = ()
        self._seq = 0
        self.parts_s: dict[str, float] = {}  # where the workers' time went so far
        self.steps = 0
        self.step_s = 0.0  # how long all steps ran on the devices that answer them
        self.lost: dict[str, str] = {}  # device -> why

    def post(self, item: Item) -> None:
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
        """Carries out one command."""
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
            case MoveKv():
                self._move(command)

    def _send(self, step: RunStep) -> None:
        group = self._groups[step.group]
        if group.lost:
            return
        if not group.predicted_s:
            group.since_s = self._clock()
        group.predicted_s.append(step.predicted_s)
        self._broadcast(step, group.layout.devices)

    def _move(self, move: MoveKv) -> None:
        """Both sides are told; a lost one fails it at once."""
        devices = {self._groups[place.group].layout.pool_device(place.pool) for place in (move.source, move.target)}
        self._moves[move.move] = devices
        if devices & self.lost.keys():
            self.post(MoveResult(move.move, False))
        else:
            self._broadcast(move, sorted(devices))

    def _broadcast(self, message: RunStep | MoveKv, devices: Sequence[str]) -> None:
        outgoing = Outgoing(message)
        for device in devices:
            if device not in self.lost:
                self._channels[device].send(outgoing)

    def _next(self) -> Item:
        """What happens next: a posted item, an alarm, or a worker found frozen."""
        while True:
            if self._ahead:
                return self._ahead.popleft()
            due_s = min([group.deadline_s() for group in self._groups] + self._alarms[:1])
            try:
                return self._inbox.get(timeout=None if due_s == float("inf") else max(0.0, due_s - self._clock()))
            except queue.Empty:
                pass
            now_s = self._clock()
            if self._alarms and self._alarms[0] <= now_s:
                heapq.heappop(self._alarms)
                return Woke
            for group in self._groups:
                if group.deadline_s() <= now_s:
                    return Lost(group.layout.reporter, f"it made no progress for {now_s - group.since_s:.1f} s and was ended")

    def _event(self, item: MakeEvent | StepResult | MoveResult | Lost) -> Event | None:
        now_s = self._clock()
        if isinstance(item, StepResult):
            return self._step_done(item, now_s)
        if isinstance(item, MoveResult):
            return self._move_done(item, now_s)
        if isinstance(item, Lost):
            return self._worker_lost(item, now_s)
        return item(now_s, self._seq)

    def _step_done(self, result: StepResult, now_s: float) -> Event | None:
        """The event of a step; if it found devices lost, first the event of that, and the step again later."""
        group = self._groups[result.group]
        if group.lost:
            return None
        for device in result.lost:
            if device not in self.lost:
                self._ahead.appendleft(result)
                return self._worker_lost(Lost(device, "it stopped answering in the middle of a step and was ended"), now_s)
        group.predicted_s.popleft()
        group.since_s = now_s
        self._logprobs = result.logprobs
        self.steps += 1
        self.step_s += result.step_s
        for part, seconds in result.parts_s.items():
            self.parts_s[part] = self.parts_s.get(part, 0.0) + seconds
        return StepDone(now_s, self._seq, result.step, result.group, result.tokens, result.step_s)

    def _move_done(self, result: MoveResult, now_s: float) -> MoveDone | WorkerLost | None:
        """The event of a move's end; None when the other side has reported it already. If one side found the other lost, first the event of that.

        Where one of the two is known to be lost, what it says of the other means nothing.
        """
        if result.move not in self._moves:
            return None
        if result.lost and not self._moves[result.move] & self.lost.keys():
            self._ahead.appendleft(result)
            return self._worker_lost(Lost(result.lost, "it stopped answering in the middle of a move and was ended"), now_s)
        del self._moves[result.move]
        return MoveDone(now_s, self._seq, result.move, result.ok)

    def _worker_lost(self, lost: Lost, now_s: float) -> WorkerLost | None:
        """Ends the worker, if it still runs. The event of its loss; None when that is known already (a killed worker's channel reports it again)."""
        if lost.device in self.lost:
            return None
        self.lost[lost.device] = lost.reason
        self._on_lost(lost.device, lost.reason)
        self._channels[lost.device].kill()
        for group in self._groups:
            group.lost |= any(stage.primary == lost.device for stage in group.layout.stages)
        return WorkerLost(now_s, self._seq, lost.device, lost.reason)
