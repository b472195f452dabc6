"""What `hetserve simulate`'s flags come to: plans, requests, rates and faults. Runs nothing."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import HetserveError, SpecError, UsageError

from .bench_systems import Asked, asked_for, needed_tokens, window
from .console import Screen
from .plan_options import SYSTEM, make_plan, plan_options

if TYPE_CHECKING:
    from hetserve.sim.faults import Fault
    from hetserve.spec.plan import Plan
    from hetserve.trace.datasets import DatasetSpec, Workload

MOST_POINTS = 200  # of a sweep


@dataclass(frozen=True)
class Runs:
    """What is to be run.

    Attributes:
        plans: by what results call their systems.
        missing: why other systems that were asked for have no plan.
        workload: the requests that all of them get, arriving all at once or as the trace has it.
        rates: requests per second, ascending; none: only those that looking for the knee comes to.
        faults: what goes wrong in each run.
    """

    plans: dict[str, Plan]
    missing: dict[str, str]
    workload: Workload
    rates: tuple[float, ...]
    faults: list[Fault]


def resolve(model: str | None, given: dict[str, Any], screen: Screen) -> Runs:
    """What the flags describe.

    Raises:
        HetserveError: what cannot be; of several systems, only if no one can be planned.
    """
    at = rates(given)
    if given["plan_file"] is not None:
        plan = _plan_file(given["plan_file"], model)
        broken = faults(plan, given["fault"])
        return Runs({plan.system: plan}, {}, requests(given, plan.limits.max_model_len), at, broken)
    asked = _asked(given["system"] or SYSTEM)
    drawn = requests(given, sys.maxsize)
    found, missing, errors = _planned(model, asked, given, drawn, screen)
    if not found:
        raise errors[0]
    broken = faults(next(iter(found.values())), given["fault"])
    totals = [prompt + output for prompt, output in zip(drawn.lengths.input_tokens, drawn.lengths.output_tokens, strict=True)]
    longest = window([plan.limits.max_model_len for plan in found.values()], needed_tokens(totals))
    for label in [label for label, plan in found.items() if plan.limits.max_model_len < longest]:
        held = found.pop(label).limits.max_model_len
        missing[label] = f"its plan takes requests of at most {held:,} tokens, and the workload has longer ones"
    return Runs(found, missing, requests(given, longest), at, broken)


def _plan_file(path: Path, model: str | None) -> Plan:
    """The plan in a file, which no flag may contradict; a model that is named must be the plan's.

    Raises:
        UsageError: a flag about planning; SpecError: no plan, or one for another model.
    """
    from hetserve.spec.load import load_plan

    from .shapes import shape_of

    context = click.get_current_context()
    names = {option.name: option.opts[0] for option in plan_options(lambda: None).__click_params__}  # type: ignore[attr-defined]
    for name, flag in names.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--plan is made already, so {flag} cannot be given too", "leave --plan out: the plan is then made here")
    plan = load_plan(path)
    if model is not None:
        plan.require_model(shape_of(model))
    return plan


def _asked(text: str) -> list[Asked]:
    """The systems in a comma list, the first under its name, those it is compared with as bench calls them."""
    first, _, others = text.partition(",")
    found = [*asked_for(first, baseline=False), *asked_for(others, baseline=True)]
    if any(not one.own for one in found):
        raise UsageError("The real vLLM cannot be simulated.", hint="`hetserve bench --baseline vllm` measures it")
    if not found:
        raise UsageError("--system names no system.")
    if len({(one.name, one.label.partition(" ")[2]) for one in found}) < len(found):
        raise UsageError(f"'{text}' names a system twice.")
    return found


def _planned(
    model: str | None, asked: Sequence[Asked], given: Mapping[str, Any], drawn: Workload, screen: Screen
) -> tuple[dict[str, Plan], dict[str, str], list[HetserveError]]:
    """Every system's plan for the requests that were drawn, unless flags say what load to plan for."""
    from hetserve.control.config import config_from_plan

    inputs, outputs = drawn.lengths.input_tokens, drawn.lengths.output_tokens
    means = {"mean_input_len": max(1.0, sum(inputs) / len(inputs)), "mean_output_len": sum(outputs) / len(outputs)}
    load = {} if given["workload"] is not None else {name: mean if given[name] is None else given[name] for name, mean in means.items()}
    found: dict[str, Plan] = {}
    missing: dict[str, str] = {}
    errors: list[HetserveError] = []
    for one in asked:
        try:
            with screen.progress(f"planning {one.label}"):
                plan = make_plan(model, {**given, **load, "system": one.name}, one.planning)
            config_from_plan(plan)
            found[one.label] = plan
        except HetserveError as error:
            missing[one.label] = error.message
            errors.append(error)
            if len(asked) > 1:
                screen.note(f"left out: {one.label}: {error.message}")
    return found, missing, errors


def requests(given: Mapping[str, Any], longest: int) -> Workload:
    """The requests that fit in `longest` tokens; only their lengths are ever used."""
    import numpy as np

    from hetserve.trace import datasets
    from hetserve.trace.arrivals import Arrivals
    from hetserve.trace.vocab import Vocabulary

    return datasets.build(_dataset(given), Arrivals(), Vocabulary(np.arange(1, dtype=np.int64), Path(".")), longest)


def _dataset(given: Mapping[str, Any]) -> DatasetSpec:
    from hetserve.systems import unknown
    from hetserve.trace.datasets import TRACES, DatasetSpec

    name, only = given["dataset_name"], given["only"] or ""
    if name is None:  # what the plans are made for, where that is a trace by name
        name, _, planned = (given["workload"] or "random").partition(":")
        only = only or planned
    timed = given["use_trace_timestamps"]
    if name not in ("random", *TRACES):
        raise unknown("dataset", name, ("random", *TRACES))
    data = given["data_dir"] or (Path(os.environ["HETSERVE_DATA"]) if os.environ.get("HETSERVE_DATA") else None)
    if data is not None and not data.is_dir():
        raise SpecError(f"The data folder {data} does not exist.", hint="--data-dir, or the environment's HETSERVE_DATA, names a folder with traces")
    return DatasetSpec(
        name=name,
        num_prompts=given["num_prompts"] or (sys.maxsize if timed else 1000),
        seed=given["seed"],
        path=given["dataset_path"],
        data_dir=data,
        tables_dir=Path(str(resources.files("hetserve.workloads") / "lengths")),
        random_input_len=given["random_input_len"],
        random_output_len=given["random_output_len"],
        random_range_ratio=given["random_range_ratio"],
        fixed_output_len=given["output_len"],
        only=only,
        most_tokens=given["max_request_len"] or 0,
        most_input=given["max_input_len"] or 0,
        timed=timed,
    )


def rates(given: Mapping[str, Any]) -> tuple[float, ...]:
    """The rates to run at, ascending; none: only those that looking for the knee comes to.

    Raises:
        UsageError: not positive numbers, or flags that exclude each other.
    """
    text, swept = given["request_rate"], given["sweep"]
    if text is not None and swept is not None:
        raise UsageError("--request-rate and --sweep both say the rates: give one of them.")
    if given["slowdown_factor"] is not None and (not given["use_trace_timestamps"] or text is not None or swept is not None or given["find_knee"]):
        raise UsageError(
            "--slowdown-factor stretches the times of --use-trace-timestamps.", hint="a --request-rate stretches them to that rate instead"
        )
    if swept is not None:
        return _swept(swept)
    if text is None:
        return () if given["find_knee"] else (math.inf,)
    try:
        found = tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        found = (math.nan,)
    if not all(rate > 0 for rate in found):
        raise UsageError(f"--request-rate got '{text}', expected a positive number, inf, or several with commas: 1,2,4")
    if len(found) > 1 and math.isinf(found[-1]):
        raise UsageError("inf is no rate of a sweep: all requests come at once.", hint="leave it out")
    return found


def _swept(text: str) -> tuple[float, ...]:
    try:
        low, high, points = text.split(":")
        first, last, count = float(low), float(high), int(points)
    except ValueError:
        first, last, count = math.nan, math.nan, 0
    if not (0 < first < last < math.inf and 2 <= count <= MOST_POINTS):
        raise UsageError(f"--sweep got '{text}', expected LOW:HIGH:POINTS with 0 < LOW < HIGH and 2 to {MOST_POINTS} POINTS: 1:8:8")
    return tuple(first + (last - first) * number / (count - 1) for number in range(count))


def faults(plan: Plan, given: Sequence[str]) -> list[Fault]:
    """What goes wrong, and when.

    Raises:
        UsageError: not DEVICE:SECONDS:TIMES, or no device of the plan's cluster.
    """
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
