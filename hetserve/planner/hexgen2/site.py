"""What HexGen-2's planner knows: devices as numbers, what a request needs in the mean, and who answers for seconds and bytes.

Costs are an interface, so that the same search runs on rooflines, on fits, on profiles and, in tests, on made-up numbers. A stage's seconds and bytes
are linear in its layers: every layer of the models served here is alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PREFILL, DECODE, MIXED = "prefill", "decode", "mixed"
ROLES = (PREFILL, DECODE)  # of groups that do one kind of work each


@dataclass(frozen=True)
class Site:
    """Devices, told apart by number.

    Attributes:
        names: for people.
        kinds: [devices] those with one number compute alike and have equal memory.
        nodes: [devices] which machine each is in.
        memory_bytes: [devices] budgets.
        kv_bytes: [devices] the most that KV may take of them.
        latency_s, bytes_per_s: [devices, devices] of a transfer from one to another; the diagonal is not looked at.
        machines: [machines] for people.
        outside_bytes_per_s: [machines] what each sends to all others at most, and as much receives; inf: nobody said.
        alone: [devices, devices] links between machines that are not part of what the machines send and receive.
        degrees: [kinds] how many of them may share a stage's layers by tensor parallelism, ascending, 1 among them.
    """

    names: tuple[str, ...]
    kinds: Ints
    nodes: Ints
    memory_bytes: Floats
    kv_bytes: Floats
    latency_s: Floats
    bytes_per_s: Floats
    machines: tuple[str, ...]
    outside_bytes_per_s: Floats
    alone: Bools
    degrees: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def weights(self) -> Floats:
        """[devices, devices] bandwidth, the same both ways, nothing on the diagonal: the graph that is partitioned."""
        both = (self.bytes_per_s + self.bytes_per_s.T) / 2
        np.fill_diagonal(both, 0.0)
        return both

    @cached_property
    def link_kinds(self) -> Ints:
        """[devices, devices] equal where two pairs have equal links and are, or are not, in one machine: what a group looks like to its own."""
        same = (self.nodes[:, None] == self.nodes).astype(float)
        np.fill_diagonal(same, 2.0)
        rows = np.stack([self.latency_s, self.latency_s.T, self.bytes_per_s, self.bytes_per_s.T, same], axis=-1)
        rows[np.diag_indices(len(self))] = (0.0, 0.0, 0.0, 0.0, 2.0)
        _, found = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
        return found.reshape(same.shape).astype(np.int64)


@dataclass(frozen=True)
class Demand:
    """What a request needs in the mean, and what a group may take on."""

    input_tokens: float
    output_tokens: float
    longest: float  # tokens of one sequence that every group must have room for
    most_sequences: float  # at once in a group
    waves: int  # steps of a group on their way at once
    step_tokens: float = inf  # of a step at most: longer prompts are computed in parts

    @property
    def held(self) -> float:
        """Tokens of KV that a sequence holds when it ends."""
        return self.input_tokens + self.output_tokens

    @property
    def context(self) -> float:
        """Mean length of a sequence that decodes."""
        return self.input_tokens + self.output_tokens / 2


@dataclass(frozen=True)
class Ranks:
    """Devices of one kind and machine that share a stage's layers; the slowest link between any two of them."""

    kind: int
    count: int
    latency_s: float = 0.0
    bytes_per_s: float = float("inf")


@dataclass(frozen=True)
class Seconds:
    """A step of a stage with n layers takes fixed_s + n * layer_s, and head_s more if the model's last layer is among them."""

    fixed_s: float
    layer_s: float
    head_s: float


@dataclass(frozen=True)
class Bytes:
    """What one rank of a stage with n layers holds beside KV: fixed + n * layer, and more with the model's first and last layer."""

    fixed: float
    layer: float
    first: float
    last: float


class StageCosts(Protocol):
    """Who answers for seconds and bytes. All-reduces between ranks are in the seconds, hops between stages are not."""

    @property
    def layers(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...

    @property
    def kv_bytes(self) -> float:
        """Of one token in one layer, all KV heads."""
        ...

    def row_bytes(self) -> float:
        """What one token takes from stage to stage."""
        ...

    def bytes(self, ranks: Ranks) -> Bytes: ...

    def prefill(self, ranks: Ranks, tokens: float) -> Seconds:
        """A prompt of so many tokens, alone."""
        ...

    def decode(self, ranks: Ranks, sequences: float, context: float) -> Seconds:
        """One token of each of so many sequences, whose lengths sum up to `context`."""
        ...

    def added_s(self, ranks: Ranks, tokens: float) -> float:
        """What a prompt of so many tokens adds to a layer in steps that read its weights anyway, in all."""
        ...


@dataclass
class Remembered:
    """Answers of costs, each asked for once."""

    costs: StageCosts
    demand: Demand
    _bytes: dict[Ranks, Bytes] = field(default_factory=dict)
    _prefill: dict[Ranks, Seconds] = field(default_factory=dict)
    _decode: dict[tuple[Ranks, float], Seconds] = field(default_factory=dict)
    _added_s: dict[Ranks, float] = field(default_factory=dict)

    def bytes(self, ranks: Ranks) -> Bytes:
        found = self._bytes.get(ranks)
        if found is None:
            found = self._bytes[ranks] = self.costs.bytes(ranks)
        return found

    def prefill(self, ranks: Ranks) -> Seconds:
        """A mean prompt."""
        found = self._prefill.get(ranks)
        if found is None:
            found = self._prefill[ranks] = self.costs.prefill(ranks, self.demand.input_tokens)
        return found

    def decode(self, ranks: Ranks, sequences: float) -> Seconds:
        """A step of so many mean sequences."""
        found = self._decode.get((ranks, sequences))
        if found is None:
            found = self._decode[ranks, sequences] = self.costs.decode(ranks, sequences, sequences * self.demand.context)
        return found

    def added_s(self, ranks: Ranks) -> float:
        """By a mean prompt."""
        found = self._added_s.get(ranks)
        if found is None:
            found = self._added_s[ranks] = self.costs.added_s(ranks, self.demand.input_tokens)
        return found
