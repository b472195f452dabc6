"""A simulated result as rows (pandas) and as a figure (matplotlib, which need not be installed). The same result always gives the same bytes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetserve.errors import SpecError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".svg", ".png", ".pdf")
PANELS = (
    ("output_throughput", "output tokens/s"),
    ("median_ttft_ms", "median TTFT, ms"),
    ("median_tpot_ms", "median TPOT, ms"),
    ("slo_attainment", "share within the limits"),
)


def runs(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(system, run) of every run in a result of `hetserve simulate`, system by system, by rate."""
    for name, system in result["systems"].items():
        for run in system.get("runs", [system]):
            yield name, run


def frame(result: dict[str, Any]) -> pd.DataFrame:
    """A row for each run: the system, the workload, every number, and each device's utilisation as a column `utilisation of DEVICE`."""
    import pandas as pd

    rows = []
    for name, run in runs(result):
        plain = {key: value for key, value in run.items() if isinstance(value, str | int | float) or value is None}
        used = {f"utilisation of {device}": share for device, share in run["utilisation"].items()}
        rows.append({"name": name, "dataset": result["inputs"]["dataset"], **plain, **used})
    return pd.DataFrame(rows)


def save_csv(result: dict[str, Any], path: Path) -> None:
    """Writes `frame`.

    Raises:
        SpecError: the file cannot be written.
    """
    try:
        frame(result).to_csv(path, index=False)
    except OSError as error:
        raise SpecError(f"the table cannot be written to {str(path)!r}: {error.strerror or error}") from None


def require_drawable(path: Path) -> None:
    """Says before anything is run what would keep a figure from being drawn.

    Raises:
        UsageError: a format that is not drawn; UnsupportedError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"a figure is drawn as {', '.join(FORMATS)}, not as {str(path)!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("figures are drawn with matplotlib, which is not installed", "pip install 'hetserve[plot]', or pip install matplotlib")


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws throughput, latencies and, with limits, attainment over the rate, a line a system with its knee; of one run alone, bars.

    Raises:
        UsageError, UnsupportedError: as `require_drawable`; SpecError: the file cannot be written.
    """
    require_drawable(path)
    import matplotlib
    from matplotlib.figure import Figure

    shown = [panel for panel in PANELS if any(run[panel[0]] is not None for _, run in runs(result))]
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    swept = any("runs" in system for system in result["systems"].values())
    for axes, (key, label) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        (_lines if swept else _bars)(axes, result, key)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_title(f"{next(runs(result))[1]['model_id']}, {result['inputs']['dataset']}, simulated", loc="left", fontsize="medium")
    try:
        with matplotlib.rc_context({"svg.hashsalt": "hetserve", "svg.fonttype": "none"}):
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise SpecError(f"the figure cannot be written to {str(path)!r}: {error.strerror or error}") from None


def _lines(axes: Any, result: dict[str, Any], key: str) -> None:
    """One quantity over the rate; a dotted line where a system's knee is."""
    for number, (name, system) in enumerate(result["systems"].items()):
        points = [(float(run["request_rate"]), run[key]) for run in system["runs"] if run[key] is not None]
        points = [point for point in points if math.isfinite(point[0])]
        color = f"C{number % 10}"
        axes.plot([rate for rate, _ in points], [value for _, value in points], marker="o", markersize=3, color=color, label=name)
        knee = system["knee"] and system["knee"]["request_rate"]
        if knee:
            axes.axvline(knee, color=color, linestyle=":", linewidth=1)
    axes.set_xlabel("requests/s")
    axes.legend(fontsize="small")


def _bars(axes: Any, result: dict[str, Any], key: str) -> None:
    names = list(result["systems"])
    axes.bar(names, [result["systems"][name][key] or 0.0 for name in names], color=[f"C{number % 10}" for number in range(len(names))])
    axes.tick_params(axis="x", labelrotation=30)
