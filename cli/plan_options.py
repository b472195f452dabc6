"""The flags that say what a plan is made of, for every command that can make one; names as vLLM has them where it has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import UsageError
from hetserve.planner.options import TYPICAL, Options
from hetserve.spec.plan import HEADS

if TYPE_CHECKING:
    from hetserve.spec.model import ModelSpec
    from hetserve.spec.plan import Plan
    from hetserve.spec.workload import Workload

SYSTEM = "uniform"
CLUSTER = "cpu"


class _Theta(click.ParamType):
    """A positive number, or off."""

    name = "number or off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if value == "off":
            return float("inf")
        try:
            theta = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor off", param, ctx)
        return theta


def _lengths(what: str, default: float) -> str:
    return f"Mean {what} of the load the plan is made for, tokens  [default: {default:g}]"


# No defaults of click's own: a flag that was not given must not contradict a plan file.
OPTIONS = (
    click.option("--system", help=f"Whose planner makes the plan, and whose policies run it  [default: {SYSTEM}]"),
    click.option("--cluster", help=f"A file in workloads/clusters, by name or path  [default: {CLUSTER}]"),
    click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True, help="Of weights and KV cache."),
    click.option(
        "--kv-memory", "--kv-cache-memory-bytes", help="Memory for KV pages, as '4 GiB'  [default: what a device has left, on a CPU at most 4 GiB]"
    ),
    click.option("--max-model-len", type=click.IntRange(1), help="Prompt and answer together, tokens  [default: the model's, or what fits]"),
    click.option("--max-num-seqs", type=click.IntRange(1), help=f"Sequences running at once  [default: {Options.max_seqs}]"),
    click.option("--max-num-batched-tokens", type=click.IntRange(1), help=f"Tokens of one step  [default: {Options.max_step_tokens}]"),
    click.option("--max-waiting", type=click.IntRange(1), help=f"Waiting requests; more are turned away  [default: {Options.max_waiting}]"),
    click.option("--steps-in-flight", type=click.IntRange(1, 2), help=f"Steps sent ahead of their results  [default: {Options.steps_in_flight}]"),
    click.option("--profile", type=click.Path(dir_okay=False, path_type=Path), help="What `hetserve profile` measured of this cluster and model."),
    click.option("--delta", type=click.FloatRange(0), help=f"hetis: what leaving products to fewer devices may cost  [default: {Options.delta}]"),
    click.option("--heads", type=click.Choice(HEADS), help="hetis: how head groups are placed  [default: exact]"),
    click.option("--theta", type=_Theta(), help=f"hetis: drift at which a running request is placed anew, or off  [default: {Options.theta}]"),
    click.option("--workload", help="Load the plan is made for: azure-conv, sharegpt, arxiv, ...; one class of it: azure-conv:HPHD; or a trace file"),
    click.option("--mean-input-len", type=click.FloatRange(1), help=_lengths("prompt", TYPICAL.input_tokens)),
    click.option("--mean-output-len", type=click.FloatRange(1), help=_lengths("answer", TYPICAL.output_tokens)),
    click.option("--mean-concurrency", type=click.FloatRange(1), help="Requests of that load under way at once  [default: as many as fit]"),
)
MODEL_OPTION = click.option("--model", help="A Hugging Face model folder, or a model of the catalog, as Llama-2-70B.")


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds OPTIONS to a click command, in their order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def make_plan(model: str | None, given: dict[str, Any], more: Sequence[tuple[str, Any]] = ()) -> Plan:
    """The plan that the flags describe. Takes its flags out of `given`.

    Args:
        more: fields of Options, and their values, which win over flags.

    Raises:
        UsageError: no model; SpecError, ModelError, ResourceError, UnsupportedError: what cannot be.
    """
    from hetserve.systems import system

    from .shapes import shape_of

    system(given["system"] or SYSTEM)  # a misspelt one is said before a missing model
    if model is None:
        raise UsageError("A plan is for a model, and none was named.", "--model FOLDER or NAME; `hetserve model make tiny` writes one to try")
    return plan_of(shape_of(model), given, more)


def plan_of(spec: ModelSpec, given: dict[str, Any], more: Sequence[tuple[str, Any]] = ()) -> Plan:
    """The plan of a model that is loaded already; as `make_plan`."""
    from hetserve.spec.cluster import parse_bytes
    from hetserve.spec.load import load_cluster
    from hetserve.systems import system

    kv_memory, dtype = given.pop("kv_memory"), given.pop("dtype")
    fixed = {
        "dtype": "" if dtype == "auto" else dtype,
        "kv_memory_bytes": parse_bytes(kv_memory, "--kv-memory") if kv_memory else None,
        "max_model_len": given.pop("max_model_len"),
        "max_seqs": given.pop("max_num_seqs"),
        "max_step_tokens": given.pop("max_num_batched_tokens"),
        "steps_in_flight": given.pop("steps_in_flight"),
        "max_waiting": given.pop("max_waiting"),
    }
    row, cluster = system(given.pop("system") or SYSTEM), load_cluster(given.pop("cluster") or CLUSTER)
    chosen, workload = _planning(given)
    options = Options(**{name: value for name, value in fixed.items() if value is not None}, **chosen)
    return row.planner(cluster, spec, workload, replace(options, **dict(more)))


def load_of(given: dict[str, Any]) -> Workload | None:
    """The load that the flags describe; None: they say nothing of it. Takes nothing out of `given`."""
    load = {"input_tokens": given["mean_input_len"], "output_tokens": given["mean_output_len"], "concurrency": given["mean_concurrency"]}
    known = _means(given["workload"]) | {name: value for name, value in load.items() if value is not None}
    return replace(TYPICAL, **known) if known else None


def _planning(given: dict[str, Any]) -> tuple[dict[str, Any], Workload | None]:
    from hetserve.spec.load import load_profile

    profile, theta = given.pop("profile"), given.pop("theta")
    named = {"delta": given.pop("delta"), "heads": given.pop("heads"), "theta": theta, "profile": profile and load_profile(profile)}
    chosen = {name: value for name, value in named.items() if value is not None}
    if theta == float("inf"):
        chosen["theta"] = None
    load = load_of(given)
    for name in ("workload", "mean_input_len", "mean_output_len", "mean_concurrency"):
        given.pop(name)
    return chosen, load


def _means(workload: str | None) -> dict[str, float]:
    """Mean lengths of a committed length table, of one of its classes, or of a trace file; none of no workload."""
    from hetserve.systems import unknown
    from hetserve.trace import files, tables

    if workload is None:
        return {}
    folder = resources.files("hetserve.workloads") / "lengths"
    names = sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))
    name, _, only = workload.partition(":")
    if name in names:
        table = files.read_table(Path(str(folder / f"{name}.toml")))
        if only and only not in [label for label, _, _ in tables.CLASSES]:
            raise unknown("class", only, [label for label, _, _ in tables.CLASSES])
        inputs, outputs = tables.means(tables.narrowed(table, only) if only else table)
    elif Path(workload).is_file():
        inputs, outputs = files.parse(files.read_bytes(Path(workload)), Path(workload)).mean(axis=0).tolist()
    else:
        raise unknown("workload", workload, names)
    return {"input_tokens": inputs, "output_tokens": max(outputs, 1.0)}
