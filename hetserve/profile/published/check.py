"""How good the formulas are: errors on published times that the coefficients have not seen. Nothing is judged on the rows it was fitted to.

Three grounds, as in predictions. FIT: a device's own coefficients, fitted without any row of the weights, heads, ranks or sizes in question.
SAME_CHIP: those of a device with the same chip and another memory. DATA_SHEET: those fitted without the device and its relatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetserve.catalog import rows as catalog
from hetserve.cost.fits import fold_of, held_out_s, predict_s
from hetserve.cost.library import ACROSS, BY_LINK, COMMON, DATA_SHEET, FIT, SAME_CHIP, LowPower
from hetserve.cost.step import Kernels, Rank, kinds_of
from hetserve.profile.published.fitting import KERNELS, device_kernels, low_power, measured_devices, own, sheet_kernels, step_parts, step_s
from hetserve.profile.published.gather import Published
from hetserve.profile.published.steps import StepTable

Floats = NDArray[np.float64]
FOLDS = 6  # parts that shapes are left out in
TARGETS = {(FIT, "decode"): 0.10, (FIT, "prefill"): 0.15, (DATA_SHEET, "decode"): 0.25, (DATA_SHEET, "prefill"): 0.25}
ENGINES = ("distserve",)  # sources whose steps are those of whole engines of 2023, with times in them that belong to no kernel


@dataclass(frozen=True)
class Error:
    """How far predictions are off, on one operator or kind of step of one device and one source.

    Attributes:
        ground: FIT, SAME_CHIP or DATA_SHEET; "other source": the device's own coefficients, from other collections than this.
        median, p90: of the error's size, relative to what was measured; `bias`: the median error, below 0 where predictions are too short.
    """

    device: str
    operator: str
    source: str
    ground: str
    rows: int
    median: float
    p90: float
    bias: float


@dataclass(frozen=True)
class Verdict:
    """Whether a target is met by the median over a device's steps, each table of them counting the same."""

    ground: str
    phase: str
    device: str
    of: str  # "with attention": layers and steps; "dense part" of layers; whole "engines of 2023"
    median: float
    target: float

    @property
    def met(self) -> bool:
        return self.median <= self.target


@dataclass(frozen=True)
class Report:
    operators: tuple[Error, ...]
    steps: tuple[Error, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class _HeldOut:
    """A device's own coefficients, whole, and in versions that have not seen some shapes."""

    whole: Kernels
    versions: tuple[Kernels, ...]
    folds: dict[str, dict[str, int]]  # of each kind: which version has not seen a shape


def check(published: Published, advance: Callable[[float, str], None] = lambda done, note: None) -> Report:
    """Every operator and every step that was published, on all grounds that can be judged.

    Args:
        advance: called as devices get done, `ticks` times.
    """
    operators: list[Error] = []
    steps: list[Error] = []
    own_sets: dict[str, _HeldOut] = {}
    for device in measured_devices(published):
        sheet = sheet_kernels(published, without=device)
        own_sets[device], errors = _own(published, device, sheet)
        operators += errors + _on_sheet(published, device, sheet)
        advance(1, device)
    operators += _common(published)
    for device in _step_devices(published):
        sheet = sheet_kernels(published, without=device)
        power = low_power(published, sheet, without={device})
        for step in (step for step in published.steps if step.device == device):
            steps += _step_errors(step, sheet, power, own_sets)
        advance(1, device)
    return Report(tuple(operators), tuple(steps), tuple(_verdicts(steps)))


def ticks(published: Published) -> int:
    """How often `check` advances."""
    return len(measured_devices(published)) + len(_step_devices(published))


def _own(published: Published, device: str, near: Kernels) -> tuple[_HeldOut, list[Error]]:
    whole = replace(near, **device_kernels(published, device, near))
    versions = [whole] * FOLDS
    folds, found = {}, []
    for kind in (kind for kind in KERNELS if own(published, kind, device)):
        tables = own(published, kind, device)

        def keep(kernel: Any, fold: int, kind: str = kind) -> None:
            versions[fold] = replace(versions[fold], **{kind: kernel})

        predicted = held_out_s(KERNELS[kind], tables, getattr(near, kind), FOLDS, keep)
        folds[kind] = fold_of(tables, FOLDS)
        found += [_error(device, kind, table.source, FIT, seconds, table.seconds) for table, seconds in zip(tables, predicted, strict=True)]
        seen = {table.source for table in tables}
        others = [table for table in published.of(kind, device) if table.source not in seen]
        found += [_error(device, kind, each.source, "other source", predict_s(getattr(whole, kind), each), each.seconds) for each in others]
    return _HeldOut(whole, tuple(versions), folds), found


def _on_sheet(published: Published, device: str, sheet: Kernels) -> list[Error]:
    kinds = (kind for kind in KERNELS if kind not in COMMON)
    tables = [table for kind in kinds for table in published.of(kind, device) if kind not in BY_LINK or table in own(published, kind, device)]
    return [_error(device, table.kind, table.source, DATA_SHEET, predict_s(getattr(sheet, table.kind), table), table.seconds) for table in tables]


def _common(published: Published) -> list[Error]:
    """What belongs to no device: shapes left out."""
    found = []
    for kind in COMMON:
        tables = published.of(kind)
        predicted = held_out_s(KERNELS[kind], tables, None, FOLDS)
        found += [_error(table.device, kind, table.source, ACROSS, seconds, table.seconds) for table, seconds in zip(tables, predicted, strict=True)]
    return found


def _step_devices(published: Published) -> list[str]:
    names = {step.device for step in published.steps}
    return [row.name for row in catalog.devices() if row.name in names]


def _step_errors(step: StepTable, sheet: Kernels, power: LowPower | None, own_sets: dict[str, _HeldOut]) -> list[Error]:
    what = "step" if step.phase in step.parts else "dense part"
    name = f"{step.phase} {what}, {step.model}{f' TP{step.tp}' if step.tp > 1 else ''}"
    found = [_error(step.device, name, step.source, DATA_SHEET, step_s(sheet, step, power), step.seconds)]
    if step.device in own_sets:
        found.append(_error(step.device, name, step.source, FIT, _held_out_step_s(step, own_sets[step.device]), step.seconds))
    else:
        row = catalog.device(step.device)
        for other in own_sets:
            near = catalog.device(other)
            if (near.arch, near.sms, near.half_rate) == (row.arch, row.sms, row.half_rate):
                found.append(_error(step.device, name, step.source, SAME_CHIP, step_s(own_sets[other].whole, step, power), step.seconds))
    return found


def _held_out_step_s(step: StepTable, held: _HeldOut) -> Floats:
    """[rows]: each part by coefficients that have not seen its shape."""
    versions = [step_parts(kernels, step, None) for kernels in (*held.versions, held.whole)]
    total_s = np.zeros(len(step))
    for part in step.parts:
        kind, shapes = _shapes(part, Rank(catalog.model(step.model), step.tp))
        folds = held.folds.get(kind, {})
        fold = next((folds[shape] for shape in shapes if shape in folds), FOLDS)
        total_s = total_s + versions[fold][part]
    return total_s


def _shapes(part: str, rank: Rank) -> tuple[str, list[str]]:
    """The kind of kernel behind a part of a step, and names that its shape may have in the tables: joined weights, or the largest of them alone."""
    (kind, *_) = kinds_of(part, nvlink=True)
    if kind == "gemm":
        product = rank.head if part == "head" else rank.products[part]
        alone = {"qkv": rank.q_heads * rank.model.head_dim, "up": product.n // 2}.get(part, product.n)
        return kind, [f"{product.n}x{product.k}", f"{alone}x{product.k}"]
    if kind == "small":
        return kind, [f"{part}{int(rank.moved(part, 1.0))}"]
    return kind, [str(rank.tp) if part == "allreduce" else f"{rank.q_heads}x{rank.kv_heads}"]


def _error(device: str, operator: str, source: str, ground: str, predicted_s: Floats, seconds: Floats) -> Error:
    errors = predicted_s / seconds - 1
    size = np.abs(errors)
    return Error(device, operator, source, ground, len(errors), float(np.median(size)), float(np.quantile(size, 0.9)), float(np.median(errors)))


def _verdicts(steps: Iterable[Error]) -> list[Verdict]:
    """Of each ground, phase, device and kind of steps, the median of its tables' medians."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for error in steps:
        phase, what = error.operator.partition(",")[0].split(" ", 1)
        of = "engines of 2023" if error.source.startswith(ENGINES) else "with attention" if what == "step" else what
        key = (error.ground, phase, error.device, of)
        if key[:2] in TARGETS:
            groups.setdefault(key, []).append(error.median)
    return [Verdict(*key, float(np.median(medians)), TARGETS[key[:2]]) for key, medians in sorted(groups.items())]
