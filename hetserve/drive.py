"""The loop under every executor: engine, simulator and replay. Ten lines, and no place for a mode flag."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from hetserve.control.messages import Command, Event


class Decides(Protocol):
    """A controller (`hetserve.control.controller.Controller`), or one with something around it."""

    def handle(self, event: Event) -> Sequence[Command]: ...


class Executor(Protocol):
    """Where events come from and commands go. Stamps every event with its time and number."""

    def events(self) -> Iterator[Event]: ...

    def execute(self, command: Command) -> None: ...


Observer = Callable[[Event, Sequence[Command]], None]


def drive(controller: Decides, executor: Executor, observe: Observer | None = None) -> None:
    """Runs until the executor has no more events. `observe` sees each event with its commands after they are carried out, or have failed."""
    for event in executor.events():
        commands: Sequence[Command] = ()
        try:
            commands = controller.handle(event)
            for command in commands:
                executor.execute(command)
        finally:
            if observe is not None:
                observe(event, commands)
