"""How `hetserve bench` shows a result to people: one table, then what one must know to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hetserve.errors import UsageError

from .console import Screen

RATES = (
    ("requests/s", "request_throughput"),
    ("good requests/s", "request_goodput"),
    ("output tokens/s", "output_throughput"),
    ("all tokens/s", "total_token_throughput"),
)
COSTS = (("duration, s", "duration"), ("server CPU, s", "server_cpu_s"), ("client CPU, s", "client_cpu_s"))


def known_latencies(text: str) -> list[str]:
    """The latencies in a comma list, whose rows tables show.

    Raises:
        UsageError: one that is not known.
    """
    from hetserve.metrics import LATENCIES, QUEUE_TIMES

    known = (*LATENCIES, *QUEUE_TIMES)
    shown = [name for name in text.split(",") if name]
    unknown = [name for name in shown if name not in known]
    if unknown:
        raise UsageError(f"--percentile-metrics does not know {', '.join(unknown)}.", hint=f"it takes {', '.join(known)}")
    return shown


def metric_rows(latencies: Sequence[str], percentiles: Sequence[float], systems: dict[str, Any]) -> list[list[str]]:
    """A row for each metric that any system has, a column for each system."""
    return [row for label, key, better in _metrics(latencies, percentiles) if (row := _row(label, key, better, systems, None)) is not None]


def render(result: dict[str, Any], latencies: Sequence[str], percentiles: Sequence[float], screen: Screen) -> None:
    """Prints the table of a result (see hetserve.bench.result.build) and the lines below it."""
    systems, names = result["systems"], list(result["systems"])
    compared = result["ratios"].get(names[1], {}) if len(names) > 1 else None
    rows = [row for label, key, better in _metrics(latencies, percentiles) if (row := _row(label, key, better, systems, compared)) is not None]
    header = ["metric", *names] + (["ratio", "95 % interval", "better"] if compared is not None else [])
    screen.table(_title(result), header, rows, right=range(1, len(names) + (3 if compared is not None else 1)))
    for line in _facts(result):
        screen.say(line)


MANY = (
    ("output tokens/s", "output_throughput"),
    ("requests/s", "request_throughput"),
    ("TTFT p50, ms", "median_ttft_ms"),
    ("TPOT p50, ms", "median_tpot_ms"),
    ("TPOT p95, ms", "p95_tpot_ms"),
    ("peak KV tokens", "peak_kv_tokens"),
    ("preemptions", "preemptions"),
    ("CPU, s", "server_cpu_s"),
)
WIDE = 120  # columns that a row for each system needs; on less, a system is a column
GOODPUT = ("good requests/s", "request_goodput")  # where --goodput says what is good


def render_many(results: Sequence[dict[str, Any]], screen: Screen) -> None:
    """Prints many systems as one table, a row for each, or for each at each memory scale, and the lines below it."""
    curve = len(results) > 1
    good = any(one["request_goodput"] is not None for result in results for one in result["systems"].values())
    shown = (*MANY[:2], GOODPUT, *MANY[2:]) if good else MANY
    rows = [_system_row(result, name, shown, curve) for name in _names(results) for result in results if name in result["systems"]]
    header = ["system", *(["memory"] if curve else []), *(label for label, _ in shown), "throughput of ours / its"]
    protocol = results[0]["protocol"]
    kind = "" if protocol["kind"] == "measured" else f" ({protocol['kind']})"
    if screen.out.width < WIDE:
        header, rows = [header[0], *(row[0] for row in rows)], [[label, *(row[at] for row in rows)] for at, label in enumerate(header) if at]
    screen.table(f"{_title(results[0])}{kind}", header, rows, right=range(1, len(header)))
    for result in results:
        for line in _many_facts(result, f"x{result['protocol']['memory_scale']:g}: " if curve else ""):
            screen.say(line)
    for line in _input_and_machine(results[0]):
        screen.say(line)


def _names(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["systems"]))


def _system_row(result: dict[str, Any], name: str, shown: Sequence[tuple[str, str]], curve: bool) -> list[str]:
    one = result["systems"][name]
    values = [one.get(key) for _, key in shown]
    ratio = result["ratios"].get(name, {}).get("output_throughput")
    said = f"{ratio['median']:.3f} ({min(ratio['pairs']):.3f} .. {max(ratio['pairs']):.3f})" if ratio else "-"
    scale = [f"x{result['protocol']['memory_scale']:g}"] if curve else []
    other = " (other hardware: for scale)" if one.get("other_hardware") else ""
    ours = result["systems"][result["ours"]]
    if name != result["ours"] and one.get("layout") and one["layout"] == ours.get("layout"):
        other = f" (laid out as {result['ours']} is)"
    return [name + other, *scale, *("-" if value is None else number(value) for value in values), said]


def _controller(name: str, one: dict[str, Any]) -> list[str]:
    """What deciding cost, where a server tells: CPU time of the controller beside that of the devices' steps."""
    steps, step_s, controller_s = (one.get(key) for key in ("steps", "step_s", "controller_s"))
    if not steps or not step_s or controller_s is None:
        return []
    per_ms, step_ms = controller_s / steps * 1e3, step_s / steps * 1e3
    return [f"{name}: controller {per_ms:.2f} ms of CPU time a step of {step_ms:.1f} ms, {controller_s / step_s:.2%}"]


def _many_facts(result: dict[str, Any], prefix: str) -> list[str]:
    lines = []
    pairs = result["protocol"].get("pairs")
    if pairs:
        interval = "" if pairs >= 6 else "; too few for an interval (6 are needed)"
        counts = {name: len(one["output_throughput"]["pairs"]) for name, one in result["ratios"].items() if "output_throughput" in one}
        fewer = [f"{name}: {count}" for name, count in counts.items() if count < pairs]
        but = f" ({', '.join(fewer)})" if fewer else ""
        lines.append(f"ratios: {result['ours']} / each, within {pairs} adjacent pairs with it{but}: median (smallest .. largest){interval}")
    lines += [f"outputs against {name}: {_agreement(one)}" for name, one in result["agreement"].items()]
    lines += [line for name, one in result["systems"].items() for line in _warnings(name, one)]
    lines += [line for name, one in result["systems"].items() for line in _controller(name, one)]
    lines += [f"{name}: {one['note']}" for name, one in result["systems"].items() if one.get("note")]
    lines += [f"{name}: not run: {why.splitlines()[0]}" for name, why in result["missing"].items()]
    return [prefix + line for line in lines]


def _metrics(latencies: Sequence[str], percentiles: Sequence[float]) -> list[tuple[str, str, str]]:
    """(label, key, which is better) of every row."""
    from hetserve.metrics import percentile_key

    rows = [(label, key, "higher") for label, key in RATES]
    for name in latencies:
        for statistic in ("mean", "median", *map(percentile_key, percentiles)):
            rows.append((f"{statistic} {name.upper() if len(name) <= 4 else name.replace('_', ' ')}, ms", f"{statistic}_{name}_ms", "lower"))
    return rows + [(label, key, "lower") for label, key in COSTS]


def _row(label: str, key: str, better: str, systems: dict[str, Any], compared: dict[str, Any] | None) -> list[str] | None:
    values = [one.get(key) for one in systems.values()]
    if all(value is None for value in values):
        return None
    row = [label, *("-" if value is None else number(value) for value in values)]
    if compared is None:
        return row
    ratio = compared.get(key)
    if ratio is None:
        return [*row, "-", "-", better]
    bounds = ratio["ci95"]
    return [*row, f"{ratio['median']:.3f}", f"{bounds[0]:.3f} .. {bounds[1]:.3f}" if bounds else "none", better]


def number(value: float) -> str:
    """As many digits as tell anything."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.2f}"


def _title(result: dict[str, Any]) -> str:
    first = next(iter(result["systems"].values()))
    inputs = result["inputs"]
    cluster = f", cluster {first['cluster']}" if "cluster" in first else ""
    return f"{first['model_id']}, {inputs['dataset']} ({inputs['input']}), {first['num_prompts']} requests, rate {first['request_rate']}{cluster}"


def _facts(result: dict[str, Any]) -> list[str]:
    systems = result["systems"]
    pairs = max(len(one["runs"]) for one in systems.values())
    lines = []
    if len(systems) > 1:
        enough = "" if pairs >= 6 else f"; {pairs} pairs are too few for an interval (6 are needed)"
        lines.append(f"ratios: {' / '.join(systems)} within each of {pairs} adjacent pairs, median over pairs{enough}")
    for name, one in result["agreement"].items():
        lines.append(f"outputs against {name}: {_agreement(one)}")
    for name, one in systems.items():
        lines += _warnings(name, one) + _controller(name, one)
    return lines + _input_and_machine(result)


def _input_and_machine(result: dict[str, Any]) -> list[str]:
    lines = []
    inputs, machine = result["inputs"], result["machine"]
    dropped = f", {inputs['dropped']} dropped as too long" if inputs["dropped"] else ""
    only = f" class {inputs['class']}" if "class" in inputs else ""
    source = f"{inputs['input']} {inputs.get('file') or inputs.get('table') or ''}".strip()
    lines.append(f"input: {inputs['dataset']}{only} from {source}, n {inputs['n']}, seed {inputs['seed']}{dropped}")
    memory_gib, isa = machine["memory_bytes"] / 2**30, " ".join(machine["isa"])
    commit = (result["commit"] or "unknown")[:12] + (" with changes" if result["commit_dirty"] else "")
    lines.append(f"machine: {machine['cpu']}, {machine['cores']} cores, {isa}, {memory_gib:.0f} GiB; commit {commit}")
    return lines


def _agreement(one: dict[str, Any]) -> str:
    unchecked = f", {one['unchecked']} differ and were not judged" if one["unchecked"] else ""
    by = "" if one["by"] == "token ids" else f" (compared by {one['by']})"
    return f"{one['compared']} compared: {one['identical']} identical, {one['near_tie']} near-tie, {one['wrong']} wrong{unchecked}{by}"


def _warnings(name: str, one: dict[str, Any]) -> list[str]:
    lines = []
    if one["failed"]:
        lines.append(f"{name}: {one['failed']} requests FAILED over all runs")
    if one["devices_lost"]:
        lines.append(f"{name}: LOST {', '.join(one['devices_lost'])} on the way: its numbers are those of what was left")
    if one["saturated"]:
        lines.append(f"{name}: saturated: it fell behind the arrivals, so its latencies depend on how long the run is")
    if one.get("shared_cores"):
        lines.append(f"{name}: shared_cores: it ran beside the other processes of this machine and could not be frozen")
    if one.get("tcmalloc") is False:
        lines.append(f"{name}: ran without tcmalloc, which this machine does not have")
    if one["client_late_ms"] > 50:
        lines.append(f"{name}: the load generator itself was up to {one['client_late_ms']:.0f} ms late")
    return lines
