"""A report's figure, drawn with matplotlib, which need not be installed. The same report always gives the same bytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hetserve.reproduce.report import Bars

WIDTH = 0.8  # of a group of bars, of the distance between two


def drawable() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(bars: Bars, title: str, path: Path) -> None:
    """Groups of bars, a colour a series, what the paper says as dashed lines; an SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.5, 0.5 + 0.35 * len(bars.groups) * (len(bars.series) + 1)), 3.4), layout="constrained")
    axes = figure.subplots()
    each = WIDTH / len(bars.series)
    for number, (name, heights) in enumerate(bars.series.items()):
        places = [group - WIDTH / 2 + each * (number + 0.5) for group in range(len(bars.groups))]
        axes.bar(places, [height or 0.0 for height in heights], width=each, color=f"C{number % 10}", label=name)
    for number, (name, height) in enumerate(bars.paper.items()):
        axes.axhline(height, color=f"C{number % 10}", linestyle="--", linewidth=1, label=f"paper: {name}")
    axes.set_xticks(range(len(bars.groups)), bars.groups, rotation=30, ha="right")
    axes.set_ylabel(bars.unit)
    axes.set_title(title, loc="left", fontsize="medium")
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    with matplotlib.rc_context({"svg.hashsalt": "hetserve", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
