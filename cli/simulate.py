"""`hetserve simulate`: runs plans on a workload with the real controller and simulated devices; metrics named as in `hetserve bench`.

Parses, makes one call for each system and rate, renders.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import HetserveError, SpecError, UsageError

from .bench import BenchCommand
from .console import Screen
from .plan_options import MODEL_OPTION, plan_options

if TYPE_CHECKING:
    from hetserve.bench.simulated import Simulation
    from hetserve.spec.plan import Plan

    from .simulate_setup import Runs

_file = click.Path(dir_okay=False, path_type=Path)
_folder = click.Path(file_okay=False, path_type=Path)


@click.command(cls=BenchCommand)
@click.option("--plan", "plan_file", type=_file, help="A plan file; without it plans are made from the flags below, for the requests' mean lengths.")
@plan_options
@MODEL_OPTION
@click.option("--dataset-name", help="random, or a trace: azure-conv, sharegpt, humaneval, longbench, ...  [default: --workload's; without: random]")
@click.option("--dataset-path", type=_file, help="The dataset's file (CSV or JSON Lines, gzipped or not).")
@click.option("--data-dir", type=_folder, help="A folder with public traces  [default: $HETSERVE_DATA; without: the committed length tables]")
@click.option("--class", "only", help="Of a trace, only requests of these classes: HPHD, HPLD, LPHD, LPLD (prompt above 512, answer above 128).")
@click.option("--max-input-len", type=click.IntRange(1), help="Of a trace, cut longer prompts to so many tokens, as LongBench's own runs do.")
@click.option("--max-request-len", type=click.IntRange(2), help="Of a trace, only requests of at most so many tokens, prompt and answer together.")
@click.option("--num-prompts", type=click.IntRange(1), help="[default: 1000; of --use-trace-timestamps: all of them]")
@click.option("--random-input-len", default=1024, show_default=True)
@click.option("--random-output-len", default=128, show_default=True)
@click.option("--random-range-ratio", default=0.0, show_default=True)
@click.option("--output-len", type=click.IntRange(1), help="Of a trace, one answer length for every request.")
@click.option("--request-rate", help="Arrivals per second, inf: all at once; several with commas for a sweep: 1,2,4,8  [default: inf]")
@click.option("--sweep", metavar="LOW:HIGH:POINTS", help="Evenly spaced rates instead of --request-rate.")
@click.option("--find-knee", is_flag=True, help="Look for the highest rate at which output keeps up with input, by bisection.")
@click.option("--use-trace-timestamps", is_flag=True, help="Follow a trace's file, in its order and at its times, or stretched to --request-rate.")
@click.option(
    "--slowdown-factor", type=click.FloatRange(0, min_open=True), help="How many times as long the trace that is followed takes  [default: 1]"
)
@click.option("--burstiness", type=float, default=1.0, show_default=True, help="Gamma shape of the gaps; 1: Poisson, below: burstier.")
@click.option("--seed", default=0, show_default=True)
@click.option("--percentile-metrics", default="ttft,tpot,itl,e2el", show_default=True, help="Which latencies the table shows.")
@click.option("--metric-percentiles", default="99", show_default=True, help="Which percentiles, with commas.")
@click.option("--goodput", "--slo", multiple=True, help="KEY:MS ..., of ttft, tpot, e2el: a request within all limits is good.")
@click.option("--fault", multiple=True, help="DEVICE:SECONDS:TIMES, from when on it is so many times slower; lost: gone, 1: as before.")
@click.option("--journal", type=_file, help="Record events and commands of one run in this file, for `hetserve replay`.")
@click.option("--plot", type=_file, help="Draw throughput and latencies in this file (.svg, .png, .pdf), with matplotlib.")
@click.option("--csv", type=_file, help="Write a row for each system and rate in this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def simulate(model: str | None, as_json: bool, **given: Any) -> None:
    """Run plans on a workload without the devices.

    A plan file, or --system A,B,C: each is planned for the same cluster, model and requests; the others are called as `hetserve bench` calls
    baselines (NAME-policy), and one that finds no layout is left out and says why.

    Several rates make a sweep. Its knee is the highest rate at which output keeps up with input: when the last request arrives, at least 95 % of
    the tokens due by then are there, and later requests did not wait ever longer for their first token.
    """
    from hetserve.bench.curves import draw, require_drawable, save_csv

    from .simulate_setup import resolve
    from .simulate_table import render

    screen = Screen(as_json)
    settings = _settings(given)
    if given["plot"] is not None:
        require_drawable(given["plot"])
    runs = resolve(model, given, screen)
    if given["journal"] is not None and (len(runs.plans) > 1 or len(runs.rates) != 1 or given["find_knee"]):
        raise UsageError("--journal records one run, and these are several.", hint="one system at one rate")
    systems, missing = _systems(runs, given, settings, screen)
    cluster = next(iter(runs.plans.values())).cluster.name
    inputs = runs.workload.lengths.inputs
    result = {"systems": systems, "missing": missing, "inputs": inputs, "cluster": cluster, "faults": list(given["fault"])}
    for path, write in ((given["csv"], save_csv), (given["plot"], draw)):
        if path is not None:
            write(result, path)
            screen.note(f"written to {path}")
    screen.json(result)
    render(result, given["percentile_metrics"], settings["percentiles"], screen)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """How runs are summed up, as `simulated.summary` takes it."""
    from hetserve.metrics import parse_goodput

    from .bench_setup import numbers
    from .bench_table import known_latencies

    known_latencies(given["percentile_metrics"])
    return {"percentiles": numbers(given["metric_percentiles"]), "goodput_ms": parse_goodput(given["goodput"])}


def _systems(runs: Runs, given: dict[str, Any], settings: dict[str, Any], screen: Screen) -> tuple[dict[str, Any], dict[str, str]]:
    """Every system that can be run, and why others cannot; the last one's error where none can."""
    found: dict[str, Any] = {}
    missing = dict(runs.missing)
    for number, (label, plan) in enumerate(runs.plans.items(), 1):
        try:
            found[label] = _system(label, plan, runs, given, settings, screen)
        except HetserveError as error:
            if number == len(runs.plans) and not found:
                raise
            missing[label] = error.message
            screen.note(f"left out: {label}: {error.message}")
    return found, missing


def _system(label: str, plan: Plan, runs: Runs, given: dict[str, Any], settings: dict[str, Any], screen: Screen) -> dict[str, Any]:
    """One system's runs: of one rate its numbers, of several `runs` and their knee."""
    from hetserve.bench.simulated import arrivals_of, assemble, summary
    from hetserve.bench.sweep import find_knee, knee
    from hetserve.trace.arrivals import Arrivals
    from hetserve.trace.datasets import arriving

    from .bench_systems import layout

    def at(rate_per_s: float) -> dict[str, Any]:
        workload = arriving(runs.workload, Arrivals(rate_per_s, given["burstiness"]), given["slowdown_factor"] or 1.0)
        last_s = workload.arrivals_s[-1]
        if math.isinf(rate_per_s) and last_s > 0:
            rate_per_s = len(workload.arrivals_s) / last_s  # as the trace that is followed has it
        simulation = assemble(plan, arrivals_of(workload), runs.faults)
        _drive(simulation, f"{label} at {rate_per_s:.4g} requests/s" if last_s > 0 else label, given["journal"], screen)
        return summary(simulation, rate_per_s, given["burstiness"], **settings)

    found = [at(rate) for rate in runs.rates]
    if given["find_knee"]:
        found = find_knee(at, [one for one in found if one["request_rate"] != "inf"])
    elif len(found) == 1:
        return {**found[0], "layout": layout(plan)}
    alike = {name: found[0][name] for name in ("kind", "model_id", "system", "cluster", "plan", "num_prompts", "burstiness")}
    return {**alike, "layout": layout(plan), "knee": knee(found), "runs": found}


def _drive(simulation: Simulation, label: str, journal: Path | None, screen: Screen) -> None:
    from hetserve.control.journal import Journal

    executor = simulation.executor
    try:
        with journal.open("wb") if journal else nullcontext() as file, screen.progress(f"simulating {label}", len(simulation.arrivals)) as advance:
            record = Journal(file.write, simulation.config) if file else None
            done = 0

            def observe(event: Any, commands: Any) -> None:
                nonlocal done
                if record is not None:
                    record(event, commands)
                if executor.ended > done:
                    advance(executor.ended - done)
                    done = executor.ended

            simulation.run(observe)
    except OSError as error:
        raise SpecError(f"the journal cannot be written to {str(journal)!r}: {error.strerror}") from None
