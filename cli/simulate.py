"""`hetserve simulate`: runs a plan on a workload with the real controller and simulated devices; metrics named as in `hetserve bench`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import SpecError, UsageError

from .console import Screen
from .plan_options import MODEL_OPTION, make_plan, plan_options

if TYPE_CHECKING:
    from hetserve.bench.simulated import Simulation
    from hetserve.sim.faults import Fault
    from hetserve.spec.plan import Plan
    from hetserve.trace.datasets import Workload

DATASETS = ["random", "azure-conv", "azure-code", "sharegpt"]
_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--plan", "plan_file", type=_file, help="A plan file; without it one is made from the flags below.")
@plan_options
@MODEL_OPTION
@click.option("--dataset-name", type=click.Choice(DATASETS), default="random", show_default=True)
@click.option("--dataset-path", type=_file, help="The dataset's file  [default: the committed length tables]")
@click.option("--class", "only", help="Of a trace, only requests of this class: HPHD, HPLD, LPHD or LPLD (prompt above 512, answer above 128).")
@click.option("--max-request-len", type=click.IntRange(2), help="Of a trace, only requests of at most so many tokens, prompt and answer together.")
@click.option("--num-prompts", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--random-input-len", default=1024, show_default=True)
@click.option("--random-output-len", default=128, show_default=True)
@click.option("--random-range-ratio", default=0.0, show_default=True)
@click.option("--request-rate", type=float, default=math.inf, show_default=True, help="Arrivals per second; inf: all at once.")
@click.option("--burstiness", type=float, default=1.0, show_default=True, help="Gamma shape of the gaps; 1: Poisson, below: burstier.")
@click.option("--seed", default=0, show_default=True)
@click.option("--metric-percentiles", default="99", show_default=True, help="Which percentiles, with commas.")
@click.option("--goodput", multiple=True, help="KEY:MS, of ttft, tpot, e2el: a request within all limits is good.")
@click.option("--fault", multiple=True, help="DEVICE:SECONDS:TIMES, from when on it is so many times slower; lost: gone, 1: as before.")
@click.option("--journal", type=_file, help="Record events and commands in this file, for `hetserve replay`.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def simulate(plan_file: Path | None, model: Path | None, as_json: bool, **given: Any) -> None:
    """Run a plan on a workload without the devices."""
    from hetserve.spec.load import load_plan

    screen = Screen(as_json)
    if plan_file is not None and model is not None:
        raise UsageError("A plan file names its model already.", "give --plan or --model, not both")
    plan = load_plan(plan_file) if plan_file is not None else make_plan(model, given)
    faults = _faults(plan, given["fault"])
    workload = _workload(plan, given)
    done = _run(plan, workload, faults, given["journal"], screen)
    result = _result(plan, workload, done, given)
    screen.json(result)
    _render(result, screen)


def _workload(plan: Plan, given: dict[str, Any]) -> Workload:
    import numpy as np

    from hetserve.trace import datasets
    from hetserve.trace.arrivals import Arrivals
    from hetserve.trace.vocab import Vocabulary

    names = ("num_prompts", "seed", "random_input_len", "random_output_len", "random_range_ratio")
    tables = Path(str(resources.files("hetserve.workloads") / "lengths"))
    chosen: dict[str, Any] = {name: given[name] for name in names} | {"only": given["only"] or "", "most_tokens": given["max_request_len"] or 0}
    spec = datasets.DatasetSpec(given["dataset_name"], path=given["dataset_path"], tables_dir=tables, **chosen)
    vocabulary = Vocabulary(np.arange(plan.model.shape.vocab, dtype=np.int64), Path("."))  # only lengths are used
    return datasets.build(spec, Arrivals(given["request_rate"], given["burstiness"]), vocabulary, plan.limits.max_model_len)


def _faults(plan: Plan, given: Sequence[str]) -> list[Fault]:
    from hetserve.sim.faults import LOST, Fault

    names, found = [device.name for device in plan.cluster.devices], []
    for text in given:
        device, _, rest = text.partition(":")
        at_s, _, slower = rest.partition(":")
        try:
            found.append(Fault(float(at_s), device, LOST if slower == "lost" else float(slower)))
        except ValueError:
            raise UsageError(f"--fault got {text!r}", "DEVICE:SECONDS:TIMES, as slow:10:2.5 or slow:10:lost") from None
        if device not in names:
            raise UsageError(f"--fault names {device!r}, which is no device of cluster {plan.cluster.name!r}", f"devices: {', '.join(names)}")
    return found


def _run(plan: Plan, workload: Workload, faults: Sequence[Fault], journal: Path | None, screen: Screen) -> Simulation:
    from hetserve.bench.simulated import arrivals_of, assemble
    from hetserve.control.journal import Journal

    simulation = assemble(plan, arrivals_of(workload), faults)
    executor = simulation.executor
    try:
        with journal.open("wb") if journal else nullcontext() as file, screen.progress("simulating", len(workload.arrivals_s)) as advance:
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
    return simulation


def _result(plan: Plan, workload: Workload, done: Simulation, given: dict[str, Any]) -> dict[str, Any]:
    """One object in the shape of `hetserve bench --json`, every number labelled as simulated."""
    from hetserve.bench.simulated import summary
    from hetserve.metrics import parse_goodput

    from .bench_setup import numbers

    system = summary(done, given["request_rate"], given["burstiness"], numbers(given["metric_percentiles"]), parse_goodput(given["goodput"]))
    made = {"plan": plan.hash, "cluster": plan.cluster.name, "faults": list(given["fault"])}
    return {"systems": {plan.system: system}, "inputs": workload.lengths.inputs, **made}


def _render(result: dict[str, Any], screen: Screen) -> None:
    for name, system in result["systems"].items():
        shown = {key: value for key, value in system.items() if isinstance(value, int | float) and key != "rtfx"}
        rows = [(key, f"{value:,.3f}" if isinstance(value, float) else f"{value:,}") for key, value in shown.items()]
        rows += [(f"utilisation of {device}", f"{share:.1%}") for device, share in system["utilisation"].items()]
        if not system["completed"]:
            rows = [(key, "-" if key.endswith("_ms") else value) for key, value in rows]
        faults = "".join(f", {fault}" for fault in result["faults"])
        screen.table(f"{system['model_id']}, {result['inputs']['dataset']}, system {name}, SIMULATED{faults}", ["metric", name], rows, right=(1,))
