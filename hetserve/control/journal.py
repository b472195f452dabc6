"""The record of a run: format version, plan hash and config, then every event with the commands it caused. Written and read as bytes, no file.

A journal is frames: length (4 bytes, little endian), a check word that covers this and all earlier frames, payload (msgpack, through the codec
the workers use). A damaged or shortened frame is therefore noticed where it stands; a journal that just stops between frames is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from hetserve.control.codec import MESSAGES
from hetserve.control.config import ControllerConfig
from hetserve.control.messages import Command, Event
from hetserve.errors import ReplayError

FORMAT = 2
MAGIC = b"hetserve journal\n"
LENGTH_BYTES = 4
CHECK_BYTES = 8


@dataclass(frozen=True)
class Head:
    """What a journal begins with."""

    format: int
    plan: str  # the plan's hash
    config: ControllerConfig


@dataclass(frozen=True)
class Entry:
    """One event and what the controller ordered because of it."""

    event: Event
    commands: tuple[Command, ...]


class Journal:
    """Writes a journal; call it as `drive`'s observer.

    Args:
        write: takes bytes, in order (a file's write).
        config: the controller's.
    """

    def __init__(self, write: Callable[[bytes], object], config: ControllerConfig) -> None:
        self._write = write
        self._hash = hashlib.blake2b(digest_size=CHECK_BYTES)
        write(MAGIC)
        self._frame(msgspec.msgpack.encode(Head(FORMAT, config.plan_hash, config)))

    def __call__(self, event: Event, commands: Sequence[Command]) -> None:
        self._frame(msgspec.msgpack.encode([MESSAGES.encode(event), *map(MESSAGES.encode, commands)]))

    def _frame(self, payload: bytes) -> None:
        self._hash.update(payload)
        self._write(len(payload).to_bytes(LENGTH_BYTES, "little") + self._hash.copy().digest() + payload)


def read_head(read: Callable[[int], bytes]) -> tuple[Head, Iterator[Entry]]:
    """A journal's head, and its entries as they are asked for.

    Args:
        read: returns the next so many bytes, fewer only at the end (a file's read).

    Raises:
        ReplayError: not a journal, of another format, or damaged (entries raise it where the damage is).
    """
    if read(len(MAGIC)) != MAGIC:
        raise ReplayError("this is no journal: it does not begin as one", "`hetserve serve --journal FILE` writes one")
    frames = _frames(read)
    try:
        first = next(frames, b"")
        version = msgspec.msgpack.decode(first).get("format")
        if version != FORMAT:
            raise ReplayError(f"the journal has format {version!r}, this version reads {FORMAT}")
        head = msgspec.msgpack.decode(first, type=Head)
    except (msgspec.DecodeError, AttributeError) as error:
        raise ReplayError(f"the journal's head cannot be read: {error}") from None
    return head, map(_entry, frames)


def _frames(read: Callable[[int], bytes]) -> Iterator[bytes]:
    running = hashlib.blake2b(digest_size=CHECK_BYTES)
    number = 0
    while prefix := read(LENGTH_BYTES + CHECK_BYTES):
        length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
        payload = read(length)
        running.update(payload)
        if len(prefix) < LENGTH_BYTES + CHECK_BYTES or len(payload) < length:
            raise ReplayError(f"the journal ends in the middle of frame {number}", "the run that wrote it was cut off there")
        if running.copy().digest() != prefix[LENGTH_BYTES:]:
            raise ReplayError(f"frame {number} of the journal is damaged")
        yield payload
        number += 1


def _entry(payload: bytes) -> Entry:
    try:
        event, *commands = map(MESSAGES.decode, msgspec.msgpack.decode(payload, type=list[bytes]))
    except (msgspec.DecodeError, ValueError) as error:
        raise ReplayError(f"an entry of the journal cannot be read: {error}") from None
    return Entry(event, tuple(commands))
