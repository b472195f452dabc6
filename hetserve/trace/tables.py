"""Committed length tables (workloads/lengths/*.toml): a trace's request lengths as four classes, each with its own quantiles. Fit and sample.

The classes split input and output at a threshold each (heavy or light prefill, heavy or light decode), which keeps the trace's joint shape:
long answers follow other prompts than short ones do. Within a class input and output are drawn independently. No raw trace row is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetserve.errors import SpecError

LEVELS = (0.0, 0.005, 0.01, 0.02, 0.05, *(step / 20 for step in range(2, 19)), 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
SPLIT_INPUT = 512
SPLIT_OUTPUT = 128
MOST_DRAWS = 200  # of a request until it is short enough
CLASSES = (("HPHD", True, True), ("HPLD", True, False), ("LPHD", False, True), ("LPLD", False, False))  # name, input above, output above


@dataclass(frozen=True)
class LengthClass:
    """One class of a table: its share of the requests (0..1), and its input and output quantiles at the table's levels, in tokens."""

    name: str
    share: float
    input_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]


@dataclass(frozen=True)
class LengthTable:
    """A trace's lengths, small enough to read, with where they come from."""

    name: str
    source: str
    licence: str
    sha256: str
    rows: int
    levels: tuple[float, ...]
    classes: tuple[LengthClass, ...]


def fit(name: str, source: str, licence: str, sha256: str, lengths: NDArray[np.int64]) -> LengthTable:
    """The table of a trace.

    Args:
        lengths: [rows, 2], input and output tokens.
        sha256: of the uncompressed file the rows come from.
    """
    classes = []
    for label, _, _ in CLASSES:
        mine = of_class(label, lengths)
        if len(mine):
            inputs, outputs = (tuple(float(value) for value in np.quantile(mine[:, column], LEVELS)) for column in (0, 1))
            classes.append(LengthClass(label, len(mine) / len(lengths), inputs, outputs))
    return LengthTable(name, source, licence, sha256, len(lengths), LEVELS, tuple(classes))


def of_class(label: str, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of [rows, 2] input and output tokens that belong to one of CLASSES."""
    return lengths[in_class(label, lengths)]


def in_class(label: str, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[rows] whether each of [rows, 2] input and output tokens belongs to one of CLASSES, or to one of several with commas."""
    found = np.zeros(len(lengths), bool)
    for name, long_input, long_output in CLASSES:
        if name in label.split(","):
            found |= ((lengths[:, 0] > SPLIT_INPUT) == long_input) & ((lengths[:, 1] > SPLIT_OUTPUT) == long_output)
    return found


def narrowed(table: LengthTable, label: str) -> LengthTable:
    """The table with one of its classes only, or several with commas.

    Raises:
        SpecError: the trace has no requests of that class.
    """
    kept = tuple(one for one in table.classes if one.name in label.split(","))
    if len(kept) < len(label.split(",")):
        raise SpecError(f"{table.name} has no requests of class {label}.", hint=f"it has {', '.join(one.name for one in table.classes)}")
    return replace(table, classes=kept)


def means(table: LengthTable) -> tuple[float, float]:
    """Of input and output tokens, as `sample` draws them before it rounds."""
    widths = np.diff(table.levels)
    columns = np.array([(one.input_tokens, one.output_tokens) for one in table.classes])  # [classes, 2, levels]
    each = (columns[..., 1:] + columns[..., :-1]) / 2 @ widths
    inputs, outputs = np.average(each, axis=0, weights=[one.share for one in table.classes]).tolist()
    return inputs, outputs


def sample(table: LengthTable, count: int, rng: np.random.Generator, most_tokens: int = 0) -> NDArray[np.int64]:
    """[count, 2] input and output tokens: a class by its share, then each length from the class's own quantiles (linear between levels).

    Args:
        most_tokens: draw again whatever is longer, input and output together; 0: nothing is.

    Raises:
        SpecError: hardly anything is that short.
    """
    drawn = _draw(table, count, rng)
    for _ in range(MOST_DRAWS):
        long = drawn.sum(axis=1) > most_tokens if most_tokens else np.zeros(count, bool)
        if not long.any():
            return drawn
        drawn[long] = _draw(table, int(long.sum()), rng)
    raise SpecError(f"{table.name} has hardly any requests of at most {most_tokens} tokens.", hint="a larger --max-request-len")


def _draw(table: LengthTable, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    shares = np.array([one.share for one in table.classes])
    chosen = rng.choice(len(table.classes), size=count, p=shares / shares.sum())
    levels = rng.random((count, 2))
    drawn = np.empty((count, 2), np.int64)
    for index, one in enumerate(table.classes):
        mine = chosen == index
        for column, quantiles in enumerate((one.input_tokens, one.output_tokens)):
            drawn[mine, column] = np.rint(np.interp(levels[mine, column], table.levels, quantiles))
    return np.maximum(drawn, 1)


def to_toml(table: LengthTable, command: str) -> str:
    """The table as the text of its committed file."""
    head = [
        f"# Request lengths of {table.name} in tokens: classes split at input > {SPLIT_INPUT}, output > {SPLIT_OUTPUT}; quantiles of each class.",
        f"# Made by: {command}",
        f'name = "{table.name}"',
        f'source = "{table.source}"',
        f'licence = "{table.licence}"',
        f'sha256 = "{table.sha256}"  # of the uncompressed file',
        f"rows = {table.rows}",
        f"levels = {_numbers(table.levels)}",
    ]
    for one in table.classes:
        head += ["", "[[class]]", f'name = "{one.name}"', f"share = {one.share:.6f}"]
        head += [f"input_tokens = {_numbers(one.input_tokens)}", f"output_tokens = {_numbers(one.output_tokens)}"]
    return "\n".join(head) + "\n"


def from_toml(data: dict[str, Any], path: Path) -> LengthTable:
    """The table in a parsed TOML file.

    Raises:
        SpecError: a key is missing, or the quantiles do not match the levels.
    """
    try:
        levels = tuple(float(value) for value in data["levels"])
        classes = tuple(
            LengthClass(str(one["name"]), float(one["share"]), tuple(map(float, one["input_tokens"])), tuple(map(float, one["output_tokens"])))
            for one in data["class"]
        )
        table = LengthTable(data["name"], data["source"], data["licence"], data["sha256"], int(data["rows"]), levels, classes)
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{path} is not a length table: {type(error).__name__} {error}.", hint="workloads/lengths/azure-conv.toml shows the keys"
        ) from error
    if not classes or any(len(values) != len(levels) for one in classes for values in (one.input_tokens, one.output_tokens)):
        raise SpecError(f"{path} has classes whose quantiles do not match its {len(levels)} levels.")
    return table


def _numbers(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"
