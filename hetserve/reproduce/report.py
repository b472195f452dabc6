"""What an experiment hands back, and how it is written down: Markdown, JSON and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hetserve.reproduce.claims import REPRODUCED, About, Claim

Cell = str | float | int | None
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Found:
    """Our number for a claim.

    Attributes:
        how: which of the rows it comes from.
    """

    number: float
    how: str


@dataclass(frozen=True)
class Table:
    """Rows of one kind of input; what came of another has a table of its own.

    Attributes:
        label: "simulated", "computed" (from formulas, plans or clocks; no requests) or "measured".
        rows: each by column, columns in the first row's order.
        inputs: which requests, and from where; empty where none are used.
    """

    title: str
    label: str
    rows: tuple[Row, ...]
    inputs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Bars:
    """A figure: groups of bars.

    Attributes:
        unit: of their heights.
        groups: names along the axis.
        series: by name, a height for each group; None: no bar.
        paper: lines across, by what the paper says.
    """

    unit: str
    groups: tuple[str, ...]
    series: Mapping[str, Sequence[float | None]]
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    found: Mapping[str, Found]  # by claim
    tables: tuple[Table, ...]
    bars: Bars | None = None
    notes: tuple[str, ...] = ()


def judged(claims: Sequence[Claim], report: Report) -> list[dict[str, Any]]:
    """Each claim with our number, what was wanted of it and the verdict, ready for JSON."""
    rows = []
    for claim in claims:
        found = report.found[claim.name]
        verdict = claim.verdict(found.number)
        rows.append(
            {
                **asdict(claim),
                "reproduced": [_finite(one) for one in claim.reproduced],
                "partly": [_finite(one) for one in claim.partly],
                "paper": {"label": "paper", "name": claim.paper, "value": claim.value, "mark": claim.mark, "where": claim.where},
                "ours": {"value": found.number, "how": found.how},
                "verdict": verdict,
                "because": "" if verdict == REPRODUCED else claim.because,
            }
        )
    return rows


def markdown(about: About, verdicts: Sequence[Mapping[str, Any]], report: Report, said: Mapping[str, Any], figure: str) -> str:
    """The page of one run.

    Args:
        said: the result's `command`, `commit`, `machine`, `date`, `seconds` and `source` of lengths.
        figure: its file's name; empty: there is none.
    """
    commit = said["commit"] or "unknown"
    lines = [f"# {about.name}: {about.title}", ""]
    lines += [f"{about.kind.capitalize()}, {said['date']}, commit {commit}{' with changes' if said['commit_dirty'] else ''}, {said['machine']}"]
    lines[-1] += f", {said['seconds']:.0f} s; `{said['command']}`. Lengths: {said['source']}."
    lines += ["", "| claim | paper | ours | wanted | verdict |", "|---|---|---|---|---|"]
    for row in verdicts:
        paper = row["paper"]
        ours = f"**{show(row['ours']['value'])}** ({row['ours']['how']})"
        lines.append(
            f"| {row['says']} | {show(paper['value'])} {row['unit']} ({paper['name']}, {paper['where']}, {paper['mark']}) | {ours} "
            f"| {wanted(row['reproduced'])}: {row['number']} | **{row['verdict']}** |"
        )
    lines += [f"\n{row['name']}: {row['because']}" for row in verdicts if row["because"]]
    if figure:
        lines += ["", f"![{about.title}]({figure})"]
    for table in report.tables:
        lines += ["", f"## {table.title} ({table.label})", "", *_table(table.rows)]
        lines += ["", *(f"* {_told(one)}" for one in table.inputs)] if table.inputs else []
    lines += ["", *report.notes] if report.notes else []
    lines += ["", "Ours, where the paper is silent:", "", *(f"* {one}" for one in about.ours)] if about.ours else []
    return "\n".join(lines) + "\n"


def show(cell: Cell) -> str:
    """A cell for people: three digits of a number, more of a large one."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def wanted(bounds: Sequence[float | None]) -> str:
    """From and to, for people; None: no bound."""
    low, high = bounds
    if low == high:
        return show(low)
    return f"at least {show(low)}" if high is None else f"at most {show(high)}" if not low else f"{show(low)} to {show(high)}"


def _table(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return lines + [f"| {' | '.join(show(row.get(name)) for name in names)} |" for row in rows]


def _told(inputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in inputs.items() if isinstance(value, str | int | float))


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
