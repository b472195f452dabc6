"""A run as a Chrome trace (Perfetto, chrome://tracing): what the controller did when, each group's steps, moves, and what workers noted themselves.

`Recorder` makes spans of events and commands, live as `drive`'s observer or from a journal; `ChromeTrace` writes spans as they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from hetserve.control.messages import Command, Event, Finish, MoveDone, MoveKv, Reject, RunStep, StepDone, Tokens, WorkerLost
from hetserve.engine.wire import GroupLayout

NOTES_FOLDER = "timeline"  # in the workers' meeting folder; where it exists, they note what they do (see `hetserve.engine.traced`)
PARTS = ("prepare", "model", "sample")  # of a step, one after the other


@dataclass(frozen=True)
class Span:
    """Something that took time, seconds on the machine's monotonic clock.

    Attributes:
        track, row: whose it is, and which of its lines; spans of a row lie in each other or apart, unless they `overlap`.
        facts: shown when it is clicked on.
    """

    track: str
    row: str
    name: str
    begin_s: float
    end_s: float
    facts: dict[str, Any] = field(default_factory=dict)
    overlap: bool = False


Take: TypeAlias = Callable[[Span], object]


class Recorder:
    """Makes spans of a run; call it as `drive`'s observer.

    Args:
        layout: the plan's groups, for names.
        take: gets each span once it has ended.
        now_s: the executor's clock; None, as from a journal: the controller's own time is not known and shown as none.
        parts_s: the executor's sums of where steps' time went; None: unknown.
    """

    def __init__(
        self,
        layout: Sequence[GroupLayout],
        take: Take,
        now_s: Callable[[], float] | None = None,
        parts_s: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self._layout = layout
        self._take = take
        self._now_s = now_s
        self._parts_s = parts_s
        self._sums_s: dict[str, float] = {}
        self._steps: dict[tuple[int, int], dict[str, Any]] = {}  # (group, step) -> facts
        self._moves: dict[int, tuple[float, MoveKv]] = {}
        self._until_s: dict[int, float] = {}  # group -> end of its last step

    def __call__(self, event: Event, commands: Sequence[Command]) -> None:
        ended_s = event.at_s if self._now_s is None else self._now_s()
        ordered = {kind.__name__: count for kind in (RunStep, Tokens, Finish, Reject, MoveKv) if (count := _count(commands, kind))}
        self._take(Span("controller", "events", type(event).__name__, event.at_s, ended_s, ordered))
        match event:
            case StepDone():
                self._step(event)
            case MoveDone() if event.move in self._moves:
                self._move(event)
            case WorkerLost():
                self._take(Span("controller", "lost", f"{event.device}: {event.reason}", event.at_s, event.at_s))
        for command in commands:
            if isinstance(command, RunStep):
                self._steps[command.group, command.step] = {
                    "prompt tokens": int(command.chunk_tokens.sum()),
                    "starts": len(command.starts),
                    "head groups replaced": sum(len(one.lanes) for one in command.replaces),
                    "predicted ms": round(command.predicted_s * 1e3, 3),
                }
            elif isinstance(command, MoveKv):
                self._moves[command.move] = (event.at_s, command)

    def _step(self, event: StepDone) -> None:
        begin_s = max(event.at_s - event.step_s, self._until_s.get(event.group, float("-inf")))
        self._until_s[event.group] = event.at_s
        facts = {**self._steps.pop((event.group, event.step), {}), "tokens sampled": len(event.tokens), "step ms": round(event.step_s * 1e3, 3)}
        track = f"group {event.group} ({', '.join(self._layout[event.group].devices)})"
        parts_s = self._latest_parts_s()
        if parts_s:
            facts |= {f"{part} ms": round(seconds * 1e3, 3) for part, seconds in parts_s.items()}
        self._take(Span(track, "steps", f"step {event.step}", begin_s, event.at_s, facts))
        for part in PARTS:
            end_s = min(begin_s + parts_s.get(part, 0.0), event.at_s)
            if end_s > begin_s:
                self._take(Span(track, "steps", part, begin_s, end_s))
            begin_s = end_s

    def _latest_parts_s(self) -> dict[str, float]:
        """Where the last step's time went: what was added to the sums."""
        if self._parts_s is None:
            return {}
        sums_s = dict(self._parts_s())
        parts_s = {part: seconds - self._sums_s.get(part, 0.0) for part, seconds in sums_s.items()}
        self._sums_s = sums_s
        return parts_s

    def _move(self, event: MoveDone) -> None:
        began_s, move = self._moves.pop(event.move)
        source, target = (self._layout[place.group].pool_device(place.pool) for place in (move.source, move.target))
        facts = {
            "request": move.request,
            "heads": move.heads.tolist(),
            "pages": int(move.pages_from.size),
            "layers": list(move.layers),
            **({"behind step": move.step} if move.step >= 0 else {}),
            "ok": event.ok,
        }
        self._take(Span("moves", f"{source} to {target}", f"request {move.request}", began_s, event.at_s, facts, overlap=True))


def spans_of(entries: Iterable[tuple[Event, Sequence[Command]]], layout: Sequence[GroupLayout]) -> list[Span]:
    """The spans of a recorded run."""
    found: list[Span] = []
    recorder = Recorder(layout, found.append)
    for event, commands in entries:
        recorder(event, commands)
    return found


class ChromeTrace:
    """Writes spans as a trace in Chrome's JSON array form, which may be cut off anywhere and is still read.

    Args:
        write: takes text, in order (a file's write).
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._rows: dict[tuple[str, str], tuple[int, int]] = {}
        self._tracks: dict[str, int] = {}
        self._numbered = 0
        write("[\n")

    def __call__(self, span: Span) -> None:
        pid, tid = self._place(span)
        common = {"pid": pid, "tid": tid, "name": span.name, "cat": span.row}
        begin_us, end_us = span.begin_s * 1e6, span.end_s * 1e6
        if span.overlap:
            self._numbered += 1
            self._event({**common, "ph": "b", "id": self._numbered, "ts": begin_us, "args": span.facts})
            self._event({**common, "ph": "e", "id": self._numbered, "ts": end_us})
        else:
            self._event({**common, "ph": "X", "ts": begin_us, "dur": max(0.0, end_us - begin_us), "args": span.facts})

    def close(self) -> None:
        """Makes it whole JSON."""
        self._write("{}]\n")

    def _place(self, span: Span) -> tuple[int, int]:
        """Chrome's process and thread numbers for a track and a row, named when they are new."""
        key = (span.track, span.row)
        if key not in self._rows:
            if span.track not in self._tracks:
                self._tracks[span.track] = len(self._tracks) + 1
                self._event({"ph": "M", "pid": self._tracks[span.track], "name": "process_name", "args": {"name": span.track}})
            pid, tid = self._tracks[span.track], len(self._rows) + 1
            self._rows[key] = (pid, tid)
            self._event({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": span.row}})
        return self._rows[key]

    def _event(self, event: dict[str, Any]) -> None:
        self._write(json.dumps(event, separators=(",", ":")) + ",\n")


def read_spans(path: Path) -> list[Span]:
    """What a worker noted (see `hetserve.engine.traced`); a line that a killed worker left half written is dropped."""
    import msgspec

    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            found.append(msgspec.json.decode(line, type=Span))
        except msgspec.DecodeError:
            continue
    return found


def _count(commands: Sequence[Command], kind: type[Any]) -> int:
    return sum(isinstance(command, kind) for command in commands)
