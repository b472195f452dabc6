"""The replaying executor: feeds a recorded run's events to a controller and insists on the recorded commands, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from hetserve.control.codec import MESSAGES
from hetserve.control.messages import Command, Event
from hetserve.errors import ReplayError


class ReplayExecutor:
    """Drives a controller from a journal.

    Args:
        entries: each event with the commands it caused then.
    """

    def __init__(self, entries: Iterable[tuple[Event, Sequence[Command]]]) -> None:
        self._entries = entries
        self._expected: list[Command] = []
        self.events_seen = 0
        self.commands_seen = 0

    def events(self) -> Iterator[Event]:
        """The recorded events.

        Raises:
            ReplayError: a recorded command was not given.
        """
        for event, commands in self._entries:
            self._event, self._expected = event, list(commands)
            yield event
            if self._expected:
                raise ReplayError(f"{self._where()}: recorded was {_name(self._expected[0])}, and now nothing more")
            self.events_seen += 1

    def execute(self, command: Command) -> None:
        """Compares a command with the recorded one.

        Raises:
            ReplayError: they differ; names the first field that does.
        """
        if not self._expected:
            raise ReplayError(f"{self._where()}: recorded was nothing more, and now {_name(command)}")
        recorded = self._expected.pop(0)
        if MESSAGES.encode(recorded) != MESSAGES.encode(command):
            raise ReplayError(f"{self._where()}: {_difference(recorded, command)}")
        self.commands_seen += 1

    def _where(self) -> str:
        return f"decisions differ at event {self.events_seen} ({_name(self._event)}, {self._event.at_s:.6f} s)"


def _name(message: object) -> str:
    return type(message).__name__


def _difference(recorded: Command, now: Command) -> str:
    if type(recorded) is not type(now):
        return f"recorded was {_name(recorded)}, and now {_name(now)}"
    for field in fields(recorded):
        before, after = getattr(recorded, field.name), getattr(now, field.name)
        if repr(before) != repr(after):
            return f"{_name(now)}.{field.name} was recorded as {before!r}, and now is {after!r}"
    return f"{_name(now)} differs"
