"""How long GPU kernels take, as formulas in a few coefficients: matrix products, attention, the small ones between, collectives.

Arguments may be numbers or arrays; coefficients of one GPU mean the same on another, as they are shares of its data sheet's peaks or times per
multiprocessor. `cost.fits` finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Values = Any  # a number, or an array of them: float64

TILES = ((128, 256), (128, 128), (64, 64))  # of a product's output, one thread block each: rows, columns
SPLITS = 8  # most parts a product's depth is cut into where there are too few tiles for all multiprocessors
SMALL = ("norm", "rope", "act")  # kinds of small kernels
CUSTOM_BYTES = 8 * 2**20  # from here on vLLM leaves an all-reduce to NCCL
FLOAT16 = 2  # bytes of weights, activations and KV: the 16-bit types


@dataclass(frozen=True)
class Chip:
    """What the formulas need of a data sheet."""

    flops: float  # per second: dense tensor peak with float32 accumulation
    read_bytes: float  # per second
    sms: int
    half_rate: bool = False  # its tensor cores do half as much with float32 accumulation as with float16's, so that nothing keeps them waiting


@dataclass(frozen=True)
class Gemm:
    """x [m, k] times w [k, n]: waits for memory where rows are few, for whole waves of tiles where they are many."""

    fixed_s: float
    depth_s: float  # per element of k: a tile's loop
    read_share: float  # of the peak bandwidth
    wide_share: float  # of the peak rate, by tile: TILES[0]
    square_share: float  # TILES[1]
    small_share: float  # TILES[2]
    half_rate_gain: float  # times these shares, on such chips
    sharpness: float  # of the corner between the two; 1: they add up

    def seconds(self, chip: Chip, m: Values, n: Values, k: Values) -> Values:
        """Of one product."""
        m, n, k = (np.asarray(value, float) for value in (m, n, k))
        memory_s = FLOAT16 * (n * k + m * n + m * k) / (chip.read_bytes * self.read_share)
        gain = self.half_rate_gain if chip.half_rate else 1.0
        shares = (gain * self.wide_share, gain * self.square_share, gain * self.small_share)
        compute_s = np.minimum.reduce([self._tiled_s(chip, m, n, k, *tile, share) for tile, share in zip(TILES, shares, strict=True)])
        return self.fixed_s + self.depth_s * k + _either(self.sharpness, memory_s, compute_s)

    @staticmethod
    def _tiled_s(chip: Chip, m: Values, n: Values, k: Values, rows: int, columns: int, share: float) -> Values:
        waves = np.ceil(m / rows) * np.ceil(n / columns) / chip.sms
        # A last wave that is not full costs half of what it lacks.
        waves = np.where(waves > 1, (np.ceil(waves) + waves) / 2, np.maximum(waves, 1 / SPLITS))
        return waves * 2 * rows * columns * k * chip.sms / (chip.flops * share)


@dataclass(frozen=True)
class Decode:
    """Attention of sequences with one new token each: reads their KV once."""

    fixed_s: float
    item_s: float  # per (sequence, KV head), on one multiprocessor
    read_share: float
    grouped_token_s: float  # per token of the longest sequence where query heads share KV heads: what cannot be split further
    single_token_s: float  # the same where each query head has its own KV head
    sharpness: float

    def seconds(
        self, chip: Chip, sequences: Values, tokens: Values, longest: Values, q_heads: Values, kv_heads: Values, head_dim: int = 128
    ) -> Values:
        """Of one layer.

        Args:
            tokens: all the sequences' lengths together.
            q_heads, kv_heads: on this device.
        """
        sequences, tokens, longest = (np.asarray(value, float) for value in (sequences, tokens, longest))
        moved = FLOAT16 * head_dim * (2 * kv_heads * tokens + 2 * q_heads * sequences)
        token_s = np.where(np.asarray(q_heads) > np.asarray(kv_heads), self.grouped_token_s, self.single_token_s)
        item_s = self.item_s * sequences * kv_heads / chip.sms
        return self.fixed_s + _either(self.sharpness, moved / (chip.read_bytes * self.read_share), item_s, longest * token_s)


@dataclass(frozen=True)
class Prefill:
    """Causal attention of prompts, or of chunks of them that see what came before."""

    fixed_s: float
    share: float  # of the peak rate
    half_rate_gain: float  # times this share, on such chips
    waste_tokens: float  # keys a row is multiplied with beyond those it sees: half a tile
    row_s: float  # per (row, query head), on one multiprocessor
    token_s: float  # per key of the longest chunk: what cannot be split further
    sharpness: float

    def seconds(self, chip: Chip, pairs: Values, rows: Values, longest: Values, q_heads: Values, head_dim: int = 128) -> Values:
        """Of one layer.

        Args:
            pairs: sum over rows of the tokens each sees, itself included.
            longest: most tokens that one row sees.
        """
        pairs, rows, longest = (np.asarray(value, float) for value in (pairs, rows, longest))
        rate = chip.flops * self.share * (self.half_rate_gain if chip.half_rate else 1.0)
        compute_s = 4 * head_dim * q_heads * (pairs + rows * self.waste_tokens) / rate
        return self.fixed_s + _either(self.sharpness, compute_s + rows * q_heads * self.row_s / chip.sms, longest * self.token_s)


@dataclass(frozen=True)
class Small:
    """Norms (with the residual addition before them), rotary embedding, activations: launched, then as fast as memory."""

    norm_s: float
    rope_s: float
    act_s: float
    share: float  # of the peak bandwidth

    def seconds(self, chip: Chip, kind: Values, moved: Values) -> Values:
        """Of one kernel of a kind (an index into SMALL) that reads and writes `moved` bytes."""
        fixed_s = np.array([self.norm_s, self.rope_s, self.act_s])[kind]
        return _either(2.0, fixed_s, np.asarray(moved, float) / (chip.read_bytes * self.share))


@dataclass(frozen=True)
class AllReduce:
    """Everybody gets the sum of everybody's vectors: 2 (n - 1) / n of their bytes cross each device's link, in each direction."""

    fixed_s: float
    rank_s: float  # per rank
    share: float  # of the link's printed bandwidth, one direction
    sharpness: float

    def seconds(self, link_bytes_per_s: Values, ranks: Values, size_bytes: Values) -> Values:
        """Of one all-reduce of so many bytes on each of `ranks` devices."""
        ranks, size_bytes = np.asarray(ranks, float), np.asarray(size_bytes, float)
        wire_s = 2 * (ranks - 1) / ranks * size_bytes / (link_bytes_per_s * self.share)
        return _either(self.sharpness, self.fixed_s + self.rank_s * ranks, wire_s)


def ring_s(ranks: int, latency_s: float, bytes_per_s: float, size_bytes: Values) -> Values:
    """An all-reduce over links that nobody measured one on: 2 (n - 1) messages of an n-th each, one after the other (papers/hexgen2.md 3, C1)."""
    return 2 * (ranks - 1) * (latency_s + np.asarray(size_bytes, float) / (ranks * bytes_per_s))


@dataclass(frozen=True)
class Link:
    """A message from one device to another."""

    fixed_s: float
    share: float  # of the link's printed bandwidth

    def seconds(self, link_bytes_per_s: Values, size_bytes: Values) -> Values:
        """Of one message."""
        return self.fixed_s + np.asarray(size_bytes, float) / (link_bytes_per_s * self.share)


@dataclass(frozen=True)
class Overhead:
    """What the engine itself adds to a step, whatever the model: scheduling, inputs, sampling, outputs."""

    fixed_s: float
    sequence_s: float

    def seconds(self, sequences: Values) -> Values:
        return self.fixed_s + self.sequence_s * np.asarray(sequences, float)


def _either(sharpness: float, *seconds: Values) -> Values:
    """The longest of times that overlap, with a rounded corner: a p-norm."""
    longest = np.maximum.reduce(np.broadcast_arrays(*seconds))
    shares = [np.asarray(each) / np.where(longest > 0, longest, 1.0) for each in seconds]
    return longest * np.maximum(1.0, sum(share**sharpness for share in shares)) ** (1 / sharpness)
