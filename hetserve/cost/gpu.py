"""Seconds of steps, hops and transfers on a GPU of the catalog, measured by somebody or known by its data sheet only. Every answer says which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hetserve.catalog import rows as catalog
from hetserve.cost.curve import NOTHING, Curve, measured
from hetserve.cost.fit import nonnegative
from hetserve.cost.kernels import FLOAT16
from hetserve.cost.library import ACROSS, Known, across, known, wire_of
from hetserve.cost.roofline import StepCost
from hetserve.cost.step import PARTS, Rank, Wire, Work, decoding, kinds_of, prompts, step_parts_s
from hetserve.spec.model import ModelSpec

CURVE_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
DENSE = tuple(part for part in PARTS if part not in ("decode", "prefill", "head", "overhead"))  # what only the number of rows decides
# Where straight lines are fitted to the formulas of attention: sequences at once and tokens that each reads, prompts' rows and tokens before them.
SEQUENCES, CONTEXTS = (1, 4, 16, 64, 256), (128, 256, 512, 1024, 2048, 4096)
CHUNKS, BEFORE = (128, 256, 512, 1024, 2048, 4096), (0, 1024, 4096)


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
    """Decode attention of one layer on one rank: head_s * head groups + token_s * (head groups * tokens) + fixed_s."""

    head_s: float
    token_s: float
    fixed_s: float


@dataclass(frozen=True)
class PromptLine:
    """Attention of prompts in one layer on one rank: fixed_s + row_s * rows + pair_s * (token, earlier token) pairs."""

    fixed_s: float
    row_s: float
    pair_s: float


@dataclass(frozen=True)
class GpuCosts:
    """What one model takes on `tp` GPUs of one kind and one host. Weights, activations and KV have 16 bits; sliding windows are not counted.

    Args:
        link: between the GPUs, a name of the catalog; empty: the device's own.
        declared: what joins them instead, if it is none of the catalog's.

    Raises:
        SpecError: an unknown device or link, or a model that cannot be cut into `tp` parts.
    """

    device: str
    model: ModelSpec
    tp: int = 1
    link: str = ""
    declared: Wire | None = None

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
        return Prediction(sum(seconds.values()), seconds, self._grounds([name for name, taken_s in seconds.items() if taken_s > 0]))

    def hop(self, tokens: float, link: str = "") -> Prediction:
        """Hidden states of so many tokens on their way to the next pipeline stage, over the device's own link or a named one.

        They are sent once, whatever the ranks on either side: what ranks keep of them they exchange over their own links.
        """
        return self._transfer("hop", FLOAT16 * self.model.hidden * tokens, link)

    def kv_transfer(self, tokens: float, link: str = "", layers: int | None = None) -> Prediction:
        """Keys and values of so many tokens on their way to another group: all heads of `layers` layers (default: all), over one link."""
        count = self.model.layers if layers is None else layers
        return self._transfer("kv", FLOAT16 * 2 * self.model.kv_dim * count * tokens, link)

    def stage(self, layers: int, last: bool) -> StepCost:
        """So many layers as a stage, by lines and curves; only the last stage has the output matrix and the engine's own time.

        Against `step`, over the catalog's GPUs and models, TP 1 to 8, 1 to 128 sequences and 128 to 4,096 tokens: 19 of 20 decode steps and prompts
        are within 1 %, prompts of 128 tokens on the fastest chips up to 5 % above, decode steps up to 5 % off.
        """
        decode, prompt, heads = self.attention_line, self.prompt_line, self.rank.kv_heads
        overhead = self.known.kernels.overhead
        return StepCost(
            fixed_s=overhead.fixed_s if last else 0.0,
            layers=self._layer * layers,
            head=self._head if last else NOTHING,
            attend_s=layers * decode.fixed_s,
            context_s=layers * heads * decode.token_s,
            pair_s=layers * prompt.pair_s,
            source=self.told(PARTS if last else (*DENSE, "decode", "prefill")),
            sequence_s=layers * heads * decode.head_s,
            prompt_s=layers * prompt.fixed_s,
        )

    def dense_curve(self, layers: int) -> Curve:
        """Seconds of all but attention of so many layers, by rows of a step."""
        return self._dense * layers

    @cached_property
    def head_curve(self) -> Curve:
        """Seconds of the output matrix, by sampled rows."""
        parts = self._parts(Work(rows=np.array(CURVE_ROWS, float), samples=np.array(CURVE_ROWS, float)), 1)
        return measured(zip(map(float, CURVE_ROWS), map(float, parts["head"]), strict=True))

    @cached_property
    def attention_line(self) -> Line:
        """Decode attention of a layer as a line, nearest to the formula in relative terms over SEQUENCES of a rank's heads and CONTEXTS.

        Over the catalog's GPUs and models half of such points are within 1 % of it and 19 of 20 within 5 %. It is far below (30 % and more on the
        fastest chips) for one or two sequences of thousands of tokens with a few heads, which cannot be split over all of a chip.
        """
        decode, chip, each = self.known.kernels.decode, self.known.chip, self.rank.kv_heads
        groups, context = (one.reshape(-1) for one in np.meshgrid(np.multiply(SEQUENCES, each), CONTEXTS, indexing="ij"))
        seconds = decode.seconds(chip, groups, groups * context, context, self.model.group, 1, self.model.head_dim)
        fixed_s, head_s, token_s = _line([np.ones(len(groups)), groups, groups * context], seconds)
        return Line(head_s, token_s, fixed_s)

    @cached_property
    def prompt_line(self) -> PromptLine:
        """Attention of prompts, and of chunks of them, in a layer as a line, nearest to the formula in relative terms over CHUNKS after BEFORE."""
        prefill, chip = self.known.kernels.prefill, self.known.chip
        rows, before = (one.reshape(-1) for one in np.meshgrid(CHUNKS, BEFORE, indexing="ij"))
        pairs = rows * (before + (rows + 1) / 2)
        seconds = prefill.seconds(chip, pairs, rows, before + rows, self.rank.q_heads, self.model.head_dim)
        return PromptLine(*_line([np.ones(len(rows)), rows, pairs], seconds))

    @cached_property
    def wire(self) -> Wire:
        """What joins the ranks."""
        return self.declared or wire_of(self.device, self.link)

    def told(self, parts: Sequence[str]) -> str:
        """The grounds of some of PARTS, for people."""
        said = f"{self.known.device}: {self._grounds([part for part in parts if self.tp > 1 or part != 'allreduce'])}"
        if self.tp == 1 or "allreduce" not in parts:
            return said
        joined = "a ring over a link as declared" if self.declared else self.link or catalog.device(self.device).peer
        return f"{self.tp} x {said}; joined by {joined}"

    def _grounds(self, parts: Sequence[str]) -> str:
        asked = [part for part in parts if self.declared is None or part != "allreduce"]
        return self.known.source({kind for part in asked for kind in kinds_of(part, self.wire.nvlink)})

    @cached_property
    def _dense(self) -> Curve:
        """Of one layer."""
        parts = self._parts(Work(rows=np.array(CURVE_ROWS, float)), 1)
        return measured(zip(map(float, CURVE_ROWS), map(float, np.sum([parts[name] for name in DENSE], axis=0)), strict=True))

    @cached_property
    def _layer(self) -> Curve:
        """The same and what attention adds for each row of a prompt; for decoding rows that is next to nothing."""
        row_s = self.prompt_line.row_s
        return Curve(self._dense.rows, tuple(taken_s + row_s * rows for rows, taken_s in zip(self._dense.rows, self._dense.seconds, strict=True)))

    @cached_property
    def _head(self) -> Curve:
        """The output matrix, and what the engine takes for each sampled row."""
        sequence_s, curve = self.known.kernels.overhead.sequence_s, self.head_curve
        return Curve(curve.rows, tuple(taken_s + sequence_s * rows for rows, taken_s in zip(curve.rows, curve.seconds, strict=True)))

    def _parts(self, work: Work, layers: int) -> dict[str, np.ndarray]:
        return step_parts_s(self.known.kernels, self.known.chip, self.wire, self.rank, work, layers)

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


def _line(features: list[np.ndarray], seconds: np.ndarray) -> tuple[float, float, float]:
    """Coefficients, none negative, whose sums are nearest to the seconds: relative errors count."""
    matrix = np.stack(features, axis=1) / seconds[:, None]
    scale = np.abs(matrix).max(axis=0)
    one, other, third = nonnegative(matrix / scale, np.ones(len(seconds))) / scale
    return float(one), float(other), float(third)
