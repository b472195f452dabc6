"""What the measuring processes are told and what they answer: frozen data, sent as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.spec.cluster import Stretch
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import DenseTimes

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
QUICK = Effort(3, 4, 8, 2**22, (1, 4, 16), (1, 4), ((16, 16), (32, 64)), (2**10, 2**12, 2**14, 2**16), (2**20,), 5, 0.01, 2, 4, 64, 1, 16)

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

    cores: tuple[int, ...]
    isa: str  # the cap, as a worker's
    memory_bytes: int
    model: ModelSpec
    dtype: str  # of the KV
    effort: Effort


@dataclass(frozen=True)
class ContentionTask(DeviceTask):
    """Work or rest as told, while another device does too."""

    weights: str  # dtype that products have here
    stretch: Stretch | None


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
    isa: str  # the kernels' instruction set
    read_bytes: float  # bytes per second
    attention: tuple[AttentionPoint, ...]  # batch by batch
    chunks: tuple[ChunkPoint, ...]
    dense: tuple[DenseTimes, ...]
    cpu_share: float  # of the time taken, how much of its core the process had


@dataclass(frozen=True)
class ContentionSamples:
    """Of two devices, round by round and phase by phase: the seconds of each one's points; none of one that rests."""

    rounds: tuple[tuple[tuple[tuple[float, ...], tuple[float, ...]], ...], ...]


@dataclass(frozen=True)
class LinkTask:
    """Measure the link between two devices, from one of its ends; the process of the first device takes the times."""

    cores: tuple[int, ...]
    isa: str
    device: str
    peer: str
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
