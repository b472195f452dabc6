"""A step of a model on GPUs, part by part, from its kernels' formulas. Shapes are counted exactly: grouped heads, gated MLPs, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hetserve.cost.kernels import CUSTOM_BYTES, FLOAT16, SMALL, AllReduce, Chip, Decode, Gemm, Link, Overhead, Prefill, Small, Values, ring_s
from hetserve.errors import SpecError
from hetserve.spec.model import ModelSpec

PRODUCTS = ("qkv", "out", "up", "down")  # of a layer
PARTS = (*PRODUCTS, "decode", "prefill", "norm", "rope", "store", "act", "allreduce", "head", "overhead")


def kinds_of(part: str, nvlink: bool) -> tuple[str, ...]:
    """Which formulas of Kernels say how long a part takes."""
    if part in (*PRODUCTS, "head"):
        return ("gemm",)
    if part == "allreduce":
        return ("custom", "nccl") if nvlink else ("pcie",)
    return (part,) if part in ("decode", "prefill", "overhead") else ("small",)


@dataclass(frozen=True)
class Kernels:
    """The formulas of one GPU."""

    gemm: Gemm
    decode: Decode
    prefill: Prefill
    small: Small
    custom: AllReduce  # vLLM's own, for messages below CUSTOM_BYTES
    nccl: AllReduce  # over NVLink
    pcie: AllReduce  # NCCL's over PCI Express
    link: Link
    overhead: Overhead


@dataclass(frozen=True)
class Wire:
    """What joins the ranks of tensor parallelism."""

    bytes_per_s: float  # one direction, as printed
    nvlink: bool
    latency_s: float | None = None  # of a link that is none of the catalog's: all-reduces go around a ring, at its bandwidth as declared


class Product(NamedTuple):
    """Weights of one matrix product on one rank: [n, k]."""

    n: int
    k: int


@dataclass(frozen=True)
class Rank:
    """What one of `tp` tensor-parallel devices computes of each layer.

    KV heads that do not suffice for all ranks are kept several times; query heads and MLP columns must divide evenly.
    """

    model: ModelSpec
    tp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1 or self.model.q_heads % self.tp or self.model.intermediate % self.tp:
            heads = f"{self.model.q_heads} query heads and {self.model.intermediate} MLP columns"
            raise SpecError(f"{self.model.name} cannot be cut into {self.tp} tensor-parallel parts: it has {heads}")

    @property
    def q_heads(self) -> int:
        return self.model.q_heads // self.tp

    @property
    def kv_heads(self) -> int:
        return -(-self.model.kv_heads // self.tp)

    @property
    def products(self) -> dict[str, Product]:
        """Of one layer, gate and up projection as one."""
        model = self.model
        heads, inner = self.q_heads * model.head_dim, model.intermediate // self.tp
        return {
            "qkv": Product(heads + 2 * self.kv_heads * model.head_dim, model.hidden),
            "out": Product(model.hidden, heads),
            "up": Product(inner * (2 if model.gated else 1), model.hidden),
            "down": Product(model.hidden, inner),
        }

    @property
    def head(self) -> Product:
        """The output matrix, whether or not it is the embedding's."""
        return Product(-(-self.model.vocab // self.tp), self.model.embed_dim)

    def kept(self, tensor: str, numbers: int) -> int:
        """How many of a tensor's numbers are on this rank: of a matrix its share, of norms, biases and learned positions all."""
        if "norm" in tensor or tensor.endswith(".bias") or "embed_positions" in tensor:
            return numbers
        if "k_proj" in tensor or "v_proj" in tensor:
            return numbers * self.kv_heads // self.model.kv_heads
        return -(-numbers // self.tp)

    def moved(self, kind: str, rows: Values) -> Values:
        """Bytes that one small kernel reads and writes: "norm", "rope", "store" or "act"."""
        model = self.model
        heads = (self.q_heads + self.kv_heads) * model.head_dim
        numbers = {
            "norm": 4 * model.hidden,  # input and residual, both read and written
            "rope": 2 * heads,
            "store": 4 * self.kv_heads * model.head_dim,
            "act": (3 if model.gated else 2) * model.intermediate // self.tp,
        }
        return FLOAT16 * numbers[kind] * np.asarray(rows, float)


@dataclass(frozen=True)
class Work:
    """What a step has to do. Numbers, or arrays of them for many steps at once.

    Attributes:
        decoding: sequences with one new token each, and `context` all they read, the new tokens included; `longest` of them, 0: the mean.
        rows: new tokens of prompts; `pairs` the tokens that each of them sees, added up; `reach` the most that one sees.
        samples: rows that go through the output matrix.
    """

    decoding: Values = 0
    context: Values = 0
    longest: Values = 0
    rows: Values = 0
    pairs: Values = 0
    reach: Values = 0
    samples: Values = 0


def decoding(sequences: Values, context_each: Values) -> Work:
    """A decode step of sequences that each read so many tokens."""
    return Work(decoding=sequences, context=np.multiply(sequences, context_each), longest=context_each, samples=sequences)


def prompts(count: Values, new: Values, before: Values = 0) -> Work:
    """A prefill step of prompts, or chunks, of `new` tokens each after `before`."""
    new, before = np.asarray(new, float), np.asarray(before, float)
    return Work(rows=count * new, pairs=count * new * (before + (new + 1) / 2), reach=before + new, samples=count)


def step_parts_s(kernels: Kernels, chip: Chip, wire: Wire, rank: Rank, work: Work, layers: int) -> dict[str, Any]:
    """Seconds of each of PARTS that `layers` layers of a step take on a rank, the last of them followed by the output matrix.

    What pipeline stages and KV transfers add is `kernels.link`'s to say.
    """
    rows = np.asarray(work.decoding, float) + work.rows
    parts = {name: layers * kernels.gemm.seconds(chip, rows, *product) for name, product in rank.products.items()}
    heads = {"q_heads": rank.q_heads, "head_dim": rank.model.head_dim}
    sequences, context = np.maximum(work.decoding, 1), np.maximum(work.context, 1)
    longest = np.where(np.asarray(work.longest) > 0, work.longest, context / sequences)
    decode_s = kernels.decode.seconds(chip, sequences, context, longest, kv_heads=rank.kv_heads, **heads)
    prefill_s = kernels.prefill.seconds(chip, np.maximum(work.pairs, 1), np.maximum(work.rows, 1), np.maximum(work.reach, 1), **heads)
    parts["decode"] = np.where(np.asarray(work.decoding) > 0, layers * decode_s, 0.0)
    parts["prefill"] = np.where(np.asarray(work.rows) > 0, layers * prefill_s, 0.0)
    counts = {"norm": 2 * layers, "rope": layers if rank.model.rope else 0, "store": layers, "act": layers}
    for kind, count in counts.items():
        index = SMALL.index("rope" if kind == "store" else kind)  # nobody published times of writing KV: as long as rotating so many bytes
        parts[kind] = count * kernels.small.seconds(chip, index, rank.moved(kind, rows))
    parts["allreduce"] = 2 * layers * all_reduce_s(kernels, wire, rank.tp, FLOAT16 * rank.model.hidden * rows)
    parts["head"] = np.where(np.asarray(work.samples) > 0, kernels.gemm.seconds(chip, np.maximum(work.samples, 1), *rank.head), 0.0)
    parts["overhead"] = kernels.overhead.seconds(np.asarray(work.samples, float))
    return parts


def all_reduce_s(kernels: Kernels, wire: Wire, ranks: int, size_bytes: Values) -> Values:
    """Of so many bytes over the ranks of one host: vLLM's own for small messages over NVLink, NCCL's otherwise, a ring over
    a declared link."""
    if ranks == 1:
        return np.zeros_like(np.asarray(size_bytes, float))
    if wire.latency_s is not None:
        return ring_s(ranks, wire.latency_s, wire.bytes_per_s, size_bytes)
    if not wire.nvlink:
        return kernels.pcie.seconds(wire.bytes_per_s, ranks, size_bytes)
    own, nccl = (each.seconds(wire.bytes_per_s, ranks, size_bytes) for each in (kernels.custom, kernels.nccl))
    return np.where(np.asarray(size_bytes) < CUSTOM_BYTES, np.minimum(own, nccl), nccl)
