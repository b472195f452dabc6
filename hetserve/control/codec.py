"""Messages to bytes and back: msgpack through msgspec, arrays as raw little-endian int32 with their shape. No pickle.

One format for all uses: steps on their way to a worker, its results, and the events and commands of a journal.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from hetserve.control import messages

_ENVELOPE = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [list(value.shape), np.ascontiguousarray(value, "<i4").tobytes()]
    if isinstance(value, np.integer):
        return int(value)
    raise NotImplementedError(type(value))


def _unpack(kind: Any, value: Any) -> Any:
    shape, raw = value
    return np.frombuffer(raw, "<i4").reshape(shape)


class Codec:
    """Encodes and decodes a closed set of frozen dataclasses, told apart by their names."""

    def __init__(self, *kinds: type) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_pack)
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {kind.__name__: msgspec.msgpack.Decoder(kind, dec_hook=_unpack) for kind in kinds}

    def encode(self, message: Any) -> bytes:
        """One message as msgpack bytes."""
        return self._encoder.encode((type(message).__name__, message))

    def decode(self, raw: bytes) -> Any:
        """The message `encode` made these bytes of.

        Raises:
            msgspec.DecodeError: the bytes are damaged, of an unknown kind, or do not fit the message's fields.
        """
        name, body = _ENVELOPE.decode(raw)
        if name not in self._decoders:
            raise msgspec.DecodeError(f"unknown message kind {name!r}")
        return self._decoders[name].decode(body)


MESSAGES = Codec(
    *(messages.Arrived, messages.Cancelled, messages.Stopped, messages.StepDone, messages.MoveDone),
    *(messages.WorkerLost, messages.WorkerJoined, messages.Woke),
    *(messages.RunStep, messages.Tokens, messages.Finish, messages.Reject, messages.MoveKv, messages.WakeAt),
)
