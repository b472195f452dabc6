"""How `hetserve simulate` shows a result to people: a column a system, or a row for each system at each rate, then how busy the devices were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bench_table import known_latencies, metric_rows, number
from .console import Screen

COUNTS = (
    ("share within the limits", "slo_attainment"),
    ("completed", "completed"),
    ("failed", "failed"),
    ("most requests at once", "max_concurrent_requests"),
    ("preemptions", "preemptions"),
    ("moves", "moves"),
)
SWEPT = (
    ("output tokens/s", "output_throughput"),
    ("completed/s", "request_throughput"),
    ("good/s", "request_goodput"),
    ("within limits", "slo_attainment"),
    ("TTFT p50, ms", "median_ttft_ms"),
    ("TPOT p50, ms", "median_tpot_ms"),
    ("output / due", "output_share"),
)
MOST_DEVICES = 40  # in a table; of more, only the spread is told


def render(result: dict[str, Any], latencies: str, percentiles: Sequence[float], screen: Screen) -> None:
    """Prints the table of a result of `hetserve simulate` and the lines below it."""
    systems = result["systems"]
    first = next(iter(systems.values()))
    faults = "".join(f", {fault}" for fault in result["faults"])
    load = f"{result['inputs']['dataset']} ({result['inputs']['input']}), {first['num_prompts']} requests"
    title = f"{first['model_id']}, {load}, cluster {result['cluster']}, SIMULATED{faults}"
    if any("runs" in one for one in systems.values()):
        _sweep(title, systems, percentiles, screen)
    else:
        _compared(title, systems, known_latencies(latencies), percentiles, screen)
    for name, one in systems.items():
        for line in _facts(name, one):
            screen.say(line)
    for name, why in result["missing"].items():
        screen.say(f"{name}: not simulated: {why}")


def _compared(title: str, systems: dict[str, Any], latencies: Sequence[str], percentiles: Sequence[float], screen: Screen) -> None:
    """A column a system at one rate, and under it every device's share of the time in which it worked."""
    rows = metric_rows(latencies, percentiles, systems)
    for label, key in COUNTS:
        values = [one[key] for one in systems.values()]
        if any(value is not None for value in values):
            rows.append([label, *("-" if value is None else f"{value:.1%}" if key == "slo_attainment" else f"{value:,.0f}" for value in values)])
    if not any(one["completed"] for one in systems.values()):
        rows = [[row[0], *("-" for _ in systems)] if row[0].endswith("ms") else row for row in rows]
    screen.table(f"{title}, rate {_rate(next(iter(systems.values())))}", ["metric", *systems], rows, right=range(1, len(systems) + 1))
    shares = {name: one["utilisation"] for name, one in systems.items()}
    devices = list(next(iter(shares.values())))
    if len(devices) <= MOST_DEVICES:
        busy = [[device, *(f"{one[device]:.1%}" for one in shares.values())] for device in devices]
    else:
        spread = {"least": 0, "median": len(devices) // 2, "most": -1}
        ordered = [sorted(one.values()) for one in shares.values()]
        busy = [[f"{label} of {len(devices)} devices", *(f"{one[place]:.1%}" for one in ordered)] for label, place in spread.items()]
    screen.table("busy share of the time", ["device", *systems], busy, right=range(1, len(systems) + 1))


def _sweep(title: str, systems: dict[str, Any], percentiles: Sequence[float], screen: Screen) -> None:
    """A row for each system at each rate."""
    from hetserve.bench.curves import runs
    from hetserve.bench.sweep import keeps_up
    from hetserve.metrics import percentile_key

    last = percentile_key(max(percentiles))
    tails = [(f"TTFT {last}, ms", f"{last}_ttft_ms"), (f"TPOT {last}, ms", f"{last}_tpot_ms")]
    all_runs = list(runs({"systems": systems}))
    shown = [(label, key) for label, key in (*SWEPT[:6], *tails, *SWEPT[6:]) if any(run[key] is not None for _, run in all_runs)]
    rows = []
    for name, run in all_runs:
        values = ["-" if run[key] is None else number(run[key]) for _, key in shown]
        busy = sum(run["utilisation"].values()) / len(run["utilisation"])
        up = keeps_up(run)
        rows.append([name, _rate(run), *values, f"{busy:.0%}", "?" if up is None else "yes" if up else "no"])
    header = ["system", "rate", *(label for label, _ in shown), "devices busy", "keeps up"]
    screen.table(title, header, rows, right=range(1, len(header) - 1))


def _facts(name: str, one: dict[str, Any]) -> list[str]:
    lines = []
    knee = one.get("knee")
    if knee is not None:
        much = "too much for runs as short as these: more --num-prompts may find it higher" if knee["too_short"] else "too much"
        above = f", {knee['above']:.4g} is {much}" if knee["above"] is not None else ", and nothing higher was tried"
        if knee["request_rate"] is None:
            lines.append(f"{name}: knee below {knee['above']:.4g} requests/s, the lowest that was tried")
        else:
            lines.append(f"{name}: knee at {knee['request_rate']:.4g} requests/s{above}; {number(knee['output_throughput'])} output tokens/s there")
        lines.append(f"  knee: {knee['definition']}")
    for run in one.get("runs", [one]):
        at = f" at {_rate(run)} requests/s" if "runs" in one else ""
        if run["failed"]:
            lines.append(f"{name}{at}: {run['failed']} requests FAILED")
    if one.get("saturated"):
        lines.append(f"{name}: saturated: it fell behind the arrivals, so its latencies depend on how long the run is")
    return lines


def _rate(run: dict[str, Any]) -> str:
    rate = run["request_rate"]
    return rate if isinstance(rate, str) else f"{rate:.4g}"
