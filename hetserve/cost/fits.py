"""Finds the coefficients of `cost.kernels` from measured times: least squares of relative errors, held near what other GPUs say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hetserve.cost.kernels import AllReduce, Chip, Decode, Gemm, Link, Overhead, Prefill, Small

Kernel = TypeVar("Kernel", Gemm, Decode, Prefill, Small, AllReduce, Link, Overhead)
Floats = NDArray[np.float64]

MOST_ROWS = 800  # of one table that a fit looks at, drawn with a fixed seed
WORTH = 100  # rows that a table counts as, however many it has
NOISE = 0.1  # relative, of one of them
SPREAD = 0.5  # natural logarithm: how far a GPU's coefficients lie from those of others
LOOSE = 2.0  # the same for what begins at START

START: dict[type, Any] = {  # where the search begins when nothing is known: orders of magnitude
    Gemm: Gemm(4e-6, 1e-10, 0.8, 0.8, 0.8, 0.7, 1.0, 3.0),
    Decode: Decode(1e-5, 4e-6, 0.85, 1e-10, 1e-9, 2.0),
    Prefill: Prefill(1e-5, 0.6, 1.0, 64.0, 1e-8, 1e-8, 2.0),
    Small: Small(3e-6, 3e-6, 3e-6, 0.8),
    AllReduce: AllReduce(5e-6, 1e-6, 0.7, 2.0),
    Link: Link(1e-5, 0.8),
    Overhead: Overhead(1e-3, 2e-5),
}
BOUNDS = {"share": (0.05, 1.1), "gain": (0.8, 1.6), "sharpness": (0.3, 8.0)}  # by the end of a coefficient's name; others: ANY times START
ANY = (1e-3, 1e3)
EDGE = 1e-6  # how far inside its bounds a search begins
WIRE = (0.05, 1.0)  # what a message gets of a link


@dataclass(frozen=True)
class Table:
    """Times of one kind of kernel on one device, from one source.

    Attributes:
        kind: what they are times of: "gemm", "decode", "prefill", "small", "custom", "nccl", "link" or "overhead".
        where: first argument of the formula: a Chip, or bytes per second of a link; None: it has none.
        inputs: the formula's other arguments, [rows] each.
        seconds: [rows], positive.
        shapes: [rows], names of what is held out together: a layer's weights, a model's heads, a number of ranks.
    """

    device: str
    source: str
    kind: str
    where: Chip | float | None
    inputs: dict[str, NDArray[Any]]
    seconds: Floats
    shapes: NDArray[np.str_]

    def rows(self, chosen: NDArray[Any]) -> Table:
        """The rows that a mask or indices choose."""
        return replace(
            self, inputs={name: values[chosen] for name, values in self.inputs.items()}, seconds=self.seconds[chosen], shapes=self.shapes[chosen]
        )

    def __len__(self) -> int:
        return len(self.seconds)


def merged(tables: Iterable[Table]) -> list[Table]:
    """One table for all of a device, a source, a kind and a place, in the order of their names."""
    groups: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        groups.setdefault((table.device, table.source, table.kind, str(table.where)), []).append(table)
    return [_joined(groups[key]) for key in sorted(groups)]


def predict_s(kernel: Any, table: Table) -> Floats:
    """[rows]: what the formula says of the table's inputs."""
    first = () if table.where is None else (table.where,)
    return np.asarray(kernel.seconds(*first, **table.inputs), float)


def errors(kernel: Any, table: Table) -> Floats:
    """[rows]: predicted over measured, less one."""
    return predict_s(kernel, table) / table.seconds - 1


def fit(kernel: type[Kernel], tables: Sequence[Table], near: Kernel | None = None) -> Kernel:
    """The coefficients that tell the tables best, each table counting the same, drawn towards `near`.

    Without tables they are those of `near`, or of START. Errors count relative to the time measured, outliers less than in proportion.
    """
    from scipy.optimize import least_squares

    begin = near or START[kernel]
    if not tables:
        return begin
    least, most = _bounds(kernel)
    origin = np.clip(np.log(np.array(astuple(begin))), least, most)
    spread = SPREAD if near is not None else LOOSE
    drawn = [_some(table) for table in tables]

    def residuals(logs: Floats) -> Floats:
        candidate: Any = kernel(*np.exp(logs))
        off: list[Floats] = [_damped(np.log(predict_s(candidate, table) / table.seconds) / NOISE) * np.sqrt(WORTH / len(table)) for table in drawn]
        return np.concatenate([*off, (logs - origin) / spread])

    found = least_squares(residuals, np.clip(origin, least + EDGE, most - EDGE), bounds=(least, most), x_scale=spread)
    return kernel(*map(float, np.exp(found.x)))


def held_out_s(
    kernel: type[Kernel], tables: Sequence[Table], near: Kernel | None, folds: int, also: Callable[[Kernel, int], None] | None = None
) -> list[Floats]:
    """[rows] of each table: what is said of a row by coefficients fitted without any row of its shape.

    Args:
        folds: shapes are left out in so many groups, by `fold_of`.
        also: called with each group's coefficients and its number.
    """
    numbers = fold_of(tables, folds)
    predicted = [np.empty(len(table)) for table in tables]
    for fold in range(folds):
        out = [np.array([numbers[shape] == fold for shape in table.shapes], bool) for table in tables]
        kept = [table.rows(~mask) for table, mask in zip(tables, out, strict=True)]
        found = fit(kernel, [table for table in kept if len(table)], near)
        if also is not None:
            also(found, fold)
        for table, mask, seconds in zip(tables, out, predicted, strict=True):
            if mask.any():
                seconds[mask] = predict_s(found, table.rows(mask))
    return predicted


def fold_of(tables: Iterable[Table], folds: int) -> dict[str, int]:
    """Which group each shape is left out with: in turn, in the order of their names."""
    shapes = sorted({str(shape) for table in tables for shape in np.unique(table.shapes)})
    return {shape: index % folds for index, shape in enumerate(shapes)}


def _damped(residuals: Floats) -> Floats:
    """Whose squares grow like squares where they are small and like their size where they are large."""
    return np.sign(residuals) * np.sqrt(2 * (np.sqrt(1 + residuals**2) - 1))


def _bounds(kernel: type) -> tuple[Floats, Floats]:
    """Logarithms of the least and the most that each coefficient may be."""
    limits = []
    for field, begin in zip(fields(kernel), astuple(START[kernel]), strict=True):
        usual = next((ends for end, ends in BOUNDS.items() if field.name.endswith(end)), (begin * ANY[0], begin * ANY[1]))
        limits.append(WIRE if (kernel, field.name) == (Link, "share") else usual)
    least, most = np.log(np.array(limits)).T
    return least, most


def _joined(tables: Sequence[Table]) -> Table:
    inputs = {name: np.concatenate([table.inputs[name] for table in tables]) for name in tables[0].inputs}
    seconds, shapes = (np.concatenate([getattr(table, name) for table in tables]) for name in ("seconds", "shapes"))
    return replace(tables[0], inputs=inputs, seconds=seconds, shapes=shapes)


def _some(table: Table) -> Table:
    if len(table) <= MOST_ROWS:
        return table
    return table.rows(np.sort(np.random.default_rng(0).choice(len(table), MOST_ROWS, replace=False)))
