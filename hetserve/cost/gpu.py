"""Seconds of steps, hops and transfers on a GPU of the catalog, measured by somebody or known by its data sheet only. Every answer says which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hetserve.catalog import rows as catalog
from hetserve.cost.curve import Curve, measured
from hetserve.cost.kernels import FLOAT16
from hetserve.cost.library import ACROSS, Known, across, known, wire_of
from hetserve.cost.step import PARTS, Rank, Work, decoding, kinds_of, prompts, step_parts_s
from hetserve.spec.model import ModelSpec

CURVE_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
DENSE = tuple(part for part in PARTS if part not in ("decode", "prefill", "head", "overhead"))  # what only the number of rows decides


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        parts: seconds by what takes them; they add up to `seconds`.
        source: on what grounds: fits of this device, of one with the same chip or link, or the data-sheet model.
    """

    seconds: float
    parts: dict[str, float]
    source: str


@dataclass(frozen=True)
class Line:
    """Decode attention of one layer on one rank: head_s * head groups + token_s * (head groups * tokens) + fixed_s, a tangent to the formula."""

    head_s: float
    token_s: float
    fixed_s: float


@dataclass(frozen=True)
class GpuCosts:
    """What one model takes on `tp` GPUs of one kind and one host. Weights, activations and KV have 16 bits; sliding windows are not counted.

    Args:
        link: between the GPUs, a name of the catalog; empty: the device's own.

    Raises:
        SpecError: an unknown device or link, or a model that cannot be cut into `tp` parts.
    """

    device: str
    model: ModelSpec
    tp: int = 1
    link: str = ""

    @cached_property
    def known(self) -> Known:
        """Coefficients and their grounds."""
        return known(self.device)

    @cached_property
    def rank(self) -> Rank:
        """What one of the GPUs computes."""
        return Rank(self.model, self.tp)

    @property
    def source(self) -> str:
        """On what grounds its answers are, all of them."""
        return self.known.source()

    def decode(self, sequences: float, context_each: float, layers: int | None = None) -> Prediction:
        """A decode step of sequences that each read so many tokens, the new one included."""
        return self.step(decoding(sequences, context_each), layers)

    def prefill(self, count: float, new: float, before: float = 0, layers: int | None = None) -> Prediction:
        """A step of prompts, or chunks of prompts, of `new` tokens each after `before`."""
        return self.step(prompts(count, new, before), layers)

    def step(self, work: Work, layers: int | None = None, last: bool = True) -> Prediction:
        """A step of `layers` layers (default: all); only the last stage has the output matrix and the engine's own time."""
        parts = self._parts(work, self.model.layers if layers is None else layers)
        seconds = {name: float(parts[name]) for name in PARTS if last or name not in ("head", "overhead")}
        nvlink = wire_of(self.device, self.link).nvlink
        kinds = {kind for name, taken_s in seconds.items() if taken_s > 0 for kind in kinds_of(name, nvlink)}
        return Prediction(sum(seconds.values()), seconds, self.known.source(kinds))

    def hop(self, tokens: float, link: str = "") -> Prediction:
        """Hidden states of so many tokens on their way to the next pipeline stage, over the device's own link or a named one.

        They are sent once, whatever the ranks on either side: what ranks keep of them they exchange over their own links.
        """
        return self._transfer("hop", FLOAT16 * self.model.hidden * tokens, link)

    def kv_transfer(self, tokens: float, link: str = "", layers: int | None = None) -> Prediction:
        """Keys and values of so many tokens on their way to another group: all heads of `layers` layers (default: all), over one link."""
        count = self.model.layers if layers is None else layers
        return self._transfer("kv", FLOAT16 * 2 * self.model.kv_dim * count * tokens, link)

    def dense_curve(self, layers: int) -> Curve:
        """Seconds of all but attention of so many layers, by rows of a step."""
        parts = self._parts(Work(rows=np.array(CURVE_ROWS, float)), layers)
        return measured(zip(map(float, CURVE_ROWS), map(float, np.sum([parts[name] for name in DENSE], axis=0)), strict=True))

    def head_curve(self) -> Curve:
        """Seconds of the output matrix, by sampled rows."""
        parts = self._parts(Work(rows=np.array(CURVE_ROWS, float), samples=np.array(CURVE_ROWS, float)), 1)
        return measured(zip(map(float, CURVE_ROWS), map(float, parts["head"]), strict=True))

    def attention_line(self, groups: float, context_each: float) -> Line:
        """Decode attention of a layer as a line, exact at `groups` head groups that read `context_each` tokens each.

        Its slopes are the formula's there, so it holds near by; never negative.
        """
        decode, chip, r = self.known.kernels.decode, self.known.chip, self.model.group

        def seconds(count: float, context: float) -> float:
            return float(decode.seconds(chip, count, count * context, context, r, 1, self.model.head_dim))

        here = seconds(groups, context_each)
        token_s = (seconds(groups, context_each * 1.01) - here) / (0.01 * groups * context_each)
        head_s = max((seconds(groups * 1.01, context_each) - here) / (0.01 * groups) - token_s * context_each, 0.0)
        return Line(head_s, token_s, max(here - groups * (head_s + token_s * context_each), 0.0))

    @property
    def pair_s(self) -> float:
        """Seconds a (token, earlier token) pair of prefill attention takes in one layer, where there are many."""
        many = 1e9
        return float(self.known.kernels.prefill.seconds(self.known.chip, many, 1, 1, self.rank.q_heads, self.model.head_dim)) / many

    def _parts(self, work: Work, layers: int) -> dict[str, np.ndarray]:
        return step_parts_s(self.known.kernels, self.known.chip, wire_of(self.device, self.link), self.rank, work, layers)

    def _transfer(self, name: str, size_bytes: float, link: str) -> Prediction:
        own = catalog.device(self.device).peer
        row = catalog.link(link or self.link or own)
        if row.name == own:
            seconds, ground = float(self.known.kernels.link.seconds(row.bytes_per_s, size_bytes)), self.known.grounds["link"]
        else:
            share = across().share
            seconds = row.latency_s + size_bytes / (row.bytes_per_s * share)
            ground = f"catalog: latency and bandwidth of {row.name}, of which {share:.0%} ({ACROSS})"
        return Prediction(seconds, {name: seconds}, ground)
