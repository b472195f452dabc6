"""What the measuring processes are told and what they answer: frozen data, a line of JSON each. A GPU's machine may lack msgspec: none here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hetserve.spec.cluster import CUDA, EMULATED, Device
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import DenseTimes

T = TypeVar("T")

ACK_BYTES = 64


@dataclass(frozen=True)
class Effort:
    """How much is measured. Every time is the median over rounds, and each round goes through all points, so that a disturbance hits all alike."""

    rounds: int = 9
    grid: int = 8  # attention: so many batches by so many amounts of cache
    most_requests: int = 64  # the largest batch
    most_bytes: int = 2**27  # of one layer's cache
    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    head_rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    chunks: tuple[tuple[int, int], ...] = ((128, 128), (256, 256), (512, 512), (512, 1024), (256, 2048), (512, 2048), (1024, 1024))  # rows, length
    link_bytes: tuple[int, ...] = tuple(sorted([2**power for power in range(10, 21)] + [3 * 2**power for power in range(9, 19)]))
    bulk_bytes: tuple[int, ...] = (2**22, 2**23, 2**24)
    pings: int = 30  # in a row, of one size
    window_s: float = 0.2  # two devices at once, or one of them while the other rests, at a stretch
    mixed_rounds: int = 5  # of all of these
    mixed_requests: int = 16  # whose decode attention it is
    mixed_length: int = 1024  # tokens of each of these requests
    mixed_decode: int = 8  # rows of a decoding batch's products: fewer would slow each other more, more less
    mixed_prompt: int = 128  # and of a part of a prompt


FULL = Effort()
# A GPU is filled later, and is given more at once. Meant for under a minute, of which starting processes and libraries takes a good part.
FULL_GPU = replace(
    FULL,
    most_requests=256,
    most_bytes=2**30,
    tokens=(*FULL.tokens, 2048, 4096),
    chunks=((256, 256), (512, 512), (1024, 1024), (512, 2048), (2048, 2048), (1024, 4096), (4096, 4096)),
    mixed_requests=64,
    mixed_decode=64,
    mixed_prompt=1024,
)
QUICK = Effort(3, 4, 8, 2**22, (1, 4, 16), (1, 4), ((16, 16), (32, 64)), (2**10, 2**12, 2**14, 2**16), (2**20,), 5, 0.01, 2, 4, 64, 1, 16)
# An emulated GPU is thousands of times slower than one: it is there to try the way, and its times say nothing of a GPU.
TRIAL = replace(QUICK, most_requests=4, most_bytes=2**18, chunks=((16, 16), (16, 32)), mixed_requests=2, mixed_length=32)


def effort_on(kind: str, effort: Effort) -> Effort:
    """What is measured of a device of that kind itself; links and rounds of two devices together are `effort`'s."""
    if kind == EMULATED:
        return TRIAL
    return FULL_GPU if kind == CUDA and effort == FULL else effort


# What two devices do in one round, phase by phase: what is measured together stands between the same alone.
REST, ATTENTION, DECODE, PROMPT = "rest", "attention", "decode", "prompt"
PHASES = (
    (ATTENTION, REST),
    (ATTENTION, ATTENTION),
    (REST, ATTENTION),
    (DECODE, ATTENTION),
    (DECODE, REST),
    (DECODE, DECODE),
    (REST, DECODE),
    (PROMPT, DECODE),
    (PROMPT, REST),
    (PROMPT, PROMPT),
    (REST, PROMPT),
    (ATTENTION, PROMPT),
    (ATTENTION, DECODE),
    (DECODE, PROMPT),
    (PROMPT, ATTENTION),
)


@dataclass(frozen=True)
class DeviceTask:
    """Measure one device."""

    device: Device
    model: ModelSpec
    dtype: str  # of the KV
    effort: Effort


@dataclass(frozen=True)
class ContentionTask(DeviceTask):
    """Work or rest as told, while another device does too."""

    weights: str  # dtype that products have here


@dataclass(frozen=True)
class AttentionPoint:
    """Decode attention of one layer, storing the new keys and values included."""

    heads: int  # query heads over all requests
    vectors: int  # cached keys and values over all KV heads
    seconds: float


@dataclass(frozen=True)
class ChunkPoint:
    """Attention of one layer for a chunk of a prompt."""

    pairs: int  # (token, earlier token or itself)
    seconds: float


@dataclass(frozen=True)
class DeviceSamples:
    isa: str  # the kernels' instruction set, or a GPU's architecture
    read_bytes: float  # bytes per second
    attention: tuple[AttentionPoint, ...]  # batch by batch
    chunks: tuple[ChunkPoint, ...]
    dense: tuple[DenseTimes, ...]
    cpu_share: float  # of the time taken, how much of its core the process had; 1 of a GPU, whose process mostly waits


@dataclass(frozen=True)
class ContentionSamples:
    """Of two devices, round by round and phase by phase: the seconds of each one's points; none of one that rests."""

    rounds: tuple[tuple[tuple[tuple[float, ...], tuple[float, ...]], ...], ...]


@dataclass(frozen=True)
class LinkTask:
    """Measure the link between two devices, from one of its ends; the process of the first device takes the times."""

    device: Device
    peer: Device
    first: bool
    meeting: str  # a folder where the two find each other
    effort: Effort

    @property
    def exchanges(self) -> tuple[tuple[int, int], ...]:
        """(bytes to the second device, bytes back) of every exchange: round trips, bulk one way, bulk the other way."""
        bulk = self.effort.bulk_bytes
        round_trips = tuple((size, size) for size in self.effort.link_bytes)
        return (*round_trips, *((size, ACK_BYTES) for size in bulk), *((ACK_BYTES, size) for size in bulk))


@dataclass(frozen=True)
class LinkSamples:
    """Seconds of each of a LinkTask's exchanges, there and back; empty from the second device."""

    seconds: tuple[float, ...]


def device_ticks(effort: Effort) -> int:
    """How often a device's process reports progress."""
    return 6 * effort.rounds + 1


def encode(message: Any) -> str:
    """A message as one line."""
    return json.dumps(asdict(message))


def decode(kind: type[T], line: str) -> T:
    """The message of that kind in a line."""
    made: T = _typed(kind, json.loads(line))
    return made


def _typed(kind: Any, value: Any) -> Any:
    """JSON's lists and dictionaries as the tuples and dataclasses they were."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _typed(hints[name], one) for name, one in value.items()})  # type: ignore[operator]
    if get_origin(kind) in (Union, UnionType):
        (inner,) = (one for one in get_args(kind) if one is not type(None))
        return None if value is None else _typed(inner, value)
    if get_origin(kind) is tuple:
        inner, *rest = get_args(kind)
        kinds = [inner] * len(value) if rest == [Ellipsis] else [inner, *rest]
        return tuple(_typed(each, one) for each, one in zip(kinds, value, strict=True))
    return value
