"""python -m hetserve.bench.gpu.table FOLDER: what gpu-check found, in plain Markdown: every figure beside its floors, then the targets."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SHARE, TIMES_WHOLE, TIMES_FLASHINFER, TIMES_FLOOR, PROFILE_S = 0.85, 1.05, 1.0, 1.25, 60.0  # the targets
STEMS = ("decode", "engine", "step", "prefill", "serving")  # of results with rows
PROFILE = "profile.toml"
JUDGED_BATCH = 64  # of a decode step
TARGETS = ("target", "found", "wanted", "verdict")
FIGURES = ("what", "time", "rate", "floor: bytes", "floor: operations", "beside")


@dataclass(frozen=True)
class Target:
    """What figures are held against.

    Attributes:
        values: the figures, by what they are of; the worst one is told.
        most: whether they may be `bound` at most, or have to be as much at least.
    """

    what: str
    values: dict[str, float]
    bound: float
    most: bool

    def cells(self) -> tuple[str, ...]:
        wanted = f"{'at most' if self.most else 'at least'} {self.bound:g}"
        if not self.values:
            return (self.what, "not measured", wanted, "-")
        name = (max if self.most else min)(self.values, key=lambda one: self.values[one])
        worst = self.values[name]
        met = worst <= self.bound if self.most else worst >= self.bound
        return (self.what, f"{worst:.3f} ({name}; {len(self.values)} in all)", wanted, "met" if met else "MISSED")


def table(folder: Path, summary: Row) -> str:
    """Both tables, of the stages that have written anything; the targets last, where a terminal ends."""
    paths = {stem: folder / f"{stem}.json" for stem in STEMS}
    read = {stem: json.loads(path.read_text()).get("rows", []) for stem, path in paths.items() if path.exists()}
    profile = tomllib.loads((folder / PROFILE).read_text()) if (folder / PROFILE).exists() else {}
    verdicts = [*stages(summary), *(target.cells() for target in targets(read, profile))]
    figures = [cells(stem, row) for stem, rows in read.items() for row in rows]
    return "\n".join([*_markdown(FIGURES, figures), "", *_markdown(TARGETS, verdicts)])


def stages(summary: Row) -> Iterator[tuple[str, ...]]:
    for name, result in summary["stages"].items():
        said = f"exit {result['exit']}" if "exit" in result else result["output"][-60:].replace("\n", " ")
        yield (f"stage {name}", f"{result['seconds']:.0f} s", "all right", "met" if result["ok"] else f"MISSED: {said}")


def targets(read: dict[str, list[Row]], profile: Row) -> Iterator[Target]:
    """What the GPU backend is judged by.

    Args:
        profile: the file of that stage; empty: none.
    """
    decode, engine, step = (read.get(stem, []) for stem in ("decode", "engine", "step"))
    judged = [row for row in decode if row.get("judged")]

    def of(rows: Sequence[Row], key: str, chosen: Callable[[Row], bool] = lambda row: True) -> dict[str, float]:
        return {named(row): row[key] for row in rows if key in row and chosen(row)}

    yield Target("engine tokens, 1 where they are right", {named(row): float(row["right"]) for row in engine}, 1.0, False)
    yield Target("decode attention over 256 MB, share of copy", of(judged, "share_of_copy"), SHARE, False)
    yield Target("the same, times FlashInfer's time", of(judged, "times_flashinfer"), TIMES_FLASHINFER, True)
    yield Target("scattered heads, times the whole layout's time", of(judged, "times_the_whole"), TIMES_WHOLE, True)
    yield Target("page moves within the GPU, share of copy", of(decode, "share_of_copy", lambda row: row.get("what") in WITHIN), SHARE, False)
    yield Target("pages to and from elsewhere, share of one transfer", of(decode, "share_of_transfer"), SHARE, False)
    for how in ("graphs", "pieces"):
        chosen = of(step, "times_the_floor", lambda row, how=how: (row["launched"], row["batch"]) == (how, JUDGED_BATCH))  # type: ignore[misc]
        yield Target(f"decode step at batch {JUDGED_BATCH}, {how}, times the floor", chosen, TIMES_FLOOR, True)
    yield Target("profile of the GPU, s", {"without links": profile["took_s"]} if "took_s" in profile else {}, PROFILE_S, True)


WITHIN = ("page_copy", "page_gather", "page_scatter")


def named(row: Row) -> str:
    """What a row is of, in few words."""
    if "what" in row and row["what"] != "prefill":
        return f"{row['what']}{_of('', row, 'rows')}"
    if "q_heads" in row:
        rows = f"prefill of {row['rows']} over" if "rows" in row else f"{row['batch']} x"
        return f"{rows} {row['length']}, {row['q_heads']}/{row['kv_heads']} heads{_of(', pages ', row, 'pages')}"
    if "launched" in row:
        return f"step, {row['launched']}{_of(', batch ', row, 'batch')}"
    if "layout" in row:
        return f"{row['model']} in {row['dtype']}, {row['layout']}"
    return f"{row['system']}, {row['asked']}{_of(', ', row, 'requests')}"


def _of(before: str, row: Row, key: str) -> str:
    return f"{before or ' of '}{row[key]}" if key in row else ""


TIMES = ("ours_s", "seconds", "step_s", "duration")
RATES = (("gbs", "{:,.1f} GB/s"), ("ours_tflops", "{:,.0f} TFLOP/s"), ("tokens_per_s", "{:,.0f} tokens/s"), ("output_throughput", "{:,.0f} tokens/s"))
BESIDE = (
    ("share_of_copy", "{:.2f} of copy"),
    ("share_of_transfer", "{:.2f} of one transfer"),
    ("times_the_whole", "{:.2f} x whole"),
    ("times_the_floor", "{:.2f} x floor"),
    ("times_flashinfer", "{:.2f} x FlashInfer"),
    ("torch_s", "torch {:.3g} s"),
    ("torch_tflops", "torch {:,.0f} TFLOP/s"),
    ("identical", "{} identical"),
    ("mean_ttft_ms", "TTFT {:.0f} ms"),
    ("mean_tpot_ms", "TPOT {:.1f} ms"),
    ("moves", "{} moves"),
    ("skipped", "skipped: {}"),
    ("fault", "{}"),
)


def cells(stem: str, row: Row) -> tuple[str, ...]:
    """One figure's line."""
    took = next((row[key] for key in TIMES if key in row and stem != "engine"), None)
    rates = [form.format(row[key]) for key, form in RATES if key in row]
    beside = [form.format(row[key]) for key, form in BESIDE if key in row]
    wrong = [] if row.get("right", True) else ["WRONG"]
    floors = [_seconds(row.get(key)) for key in ("floor_bytes_s", "floor_flops_s")]
    return (named(row), _seconds(took), ", ".join(rates), *floors, "; ".join((*wrong, *beside)).replace("|", "/").replace("\n", " "))


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    print(table(where, json.loads((where / "summary.json").read_text())))
