"""Messages to bytes and back: msgpack through msgspec, arrays as raw little-endian int32 with their shape. No pickle.

One format for both uses: steps on their way to a worker, and events and commands in a journal.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from hetserve.control import messages

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(messages.Arrived, messages.Cancelled, messages.Stopped, messages.StepDone, messages.MoveDone),
        *(messages.WorkerLost, messages.WorkerJoined, messages.Woke),
        *(messages.RunStep, messages.Tokens, messages.Finish, messages.Reject, messages.MoveKv, messages.WakeAt),
    )
}


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [list(value.shape), np.ascontiguousarray(value, "<i4").tobytes()]
    if isinstance(value, np.integer):
        return int(value)
    raise NotImplementedError(type(value))


def _unpack(kind: Any, value: Any) -> Any:
    shape, raw = value
    return np.frombuffer(raw, "<i4").reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_pack)
_DECODERS = {name: msgspec.msgpack.Decoder(kind, dec_hook=_unpack) for name, kind in KINDS.items()}
_ENVELOPE = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


def encode(message: Any) -> bytes:
    """One event or command as msgpack bytes."""
    return _ENCODER.encode((type(message).__name__, message))


def decode(raw: bytes) -> Any:
    """The message `encode` made these bytes of.

    Raises:
        msgspec.DecodeError: the bytes are damaged, of an unknown kind, or do not fit the message's fields.
    """
    name, body = _ENVELOPE.decode(raw)
    if name not in _DECODERS:
        raise msgspec.DecodeError(f"unknown message kind {name!r}")
    return _DECODERS[name].decode(body)
