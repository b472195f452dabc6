"""Messages to bytes and back: msgpack through msgspec, arrays as raw little-endian int32 with their shape. No pickle.

One format for all uses: steps on their way to a worker, its results, and the events and commands of a journal.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hetserve.control import messages

if TYPE_CHECKING:
    import msgspec


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
    """Encodes and decodes a closed set of frozen dataclasses, told apart by their names. msgspec is imported when it first does: an engine whose
    workers are threads sends nothing, and runs where msgspec is not installed.
    """

    def __init__(self, *kinds: type) -> None:
        self._kinds = kinds

    def encode(self, message: Any) -> bytes:
        """One message as msgpack bytes."""
        return self._encoder.encode((type(message).__name__, message))

    def decode(self, raw: bytes) -> Any:
        """The message `encode` made these bytes of.

        Raises:
            msgspec.DecodeError: the bytes are damaged, of an unknown kind, or do not fit the message's fields.
        """
        name, body = self._envelope.decode(raw)
        if name not in self._decoders:
            import msgspec

            raise msgspec.DecodeError(f"unknown message kind {name!r}")
        return self._decoders[name].decode(body)

    @cached_property
    def _encoder(self) -> msgspec.msgpack.Encoder:
        import msgspec

        return msgspec.msgpack.Encoder(enc_hook=_pack)

    @cached_property
    def _envelope(self) -> msgspec.msgpack.Decoder[tuple[str, msgspec.Raw]]:
        import msgspec

        return msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])

    @cached_property
    def _decoders(self) -> dict[str, msgspec.msgpack.Decoder[Any]]:
        import msgspec

        return {kind.__name__: msgspec.msgpack.Decoder(kind, dec_hook=_unpack) for kind in self._kinds}


MESSAGES = Codec(
    *(messages.Arrived, messages.Cancelled, messages.Stopped, messages.StepDone, messages.MoveDone),
    *(messages.WorkerLost, messages.WorkerJoined, messages.Woke),
    *(messages.RunStep, messages.Tokens, messages.Finish, messages.Reject, messages.MoveKv, messages.WakeAt),
)
