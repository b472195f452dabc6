"""The flags that say what a plan is made of, for every command that can make one; names as vLLM has them where it has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetserve.errors import UsageError

if TYPE_CHECKING:
    from hetserve.spec.plan import Plan

OPTIONS = (
    click.option("--system", default="uniform", show_default=True, help="Whose planner makes the plan, and whose policies run it."),
    click.option("--cluster", default="cpu", show_default=True, help="A file in workloads/clusters, by name or path."),
    click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True, help="Of weights and KV cache."),
    click.option("--kv-memory", help="Memory for KV pages, as '4 GiB'  [default: what the device has left, on a CPU at most 4 GiB]"),
    click.option("--max-model-len", type=click.IntRange(2), help="Prompt and answer together, tokens  [default: the model's, or what fits]"),
    click.option("--max-num-seqs", type=click.IntRange(1), default=256, show_default=True, help="Sequences running at once."),
    click.option("--max-num-batched-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Tokens of one step."),
    click.option("--max-waiting", type=click.IntRange(1), default=4096, show_default=True, help="Waiting requests; more are turned away."),
    click.option("--steps-in-flight", type=click.IntRange(1, 2), default=2, show_default=True, help="Steps sent ahead of their results."),
)
MODEL_OPTION = click.option("--model", type=click.Path(path_type=Path), help="A Hugging Face model folder.")


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds OPTIONS to a click command, in their order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def make_plan(model: Path | None, given: dict[str, Any]) -> Plan:
    """The plan that the flags describe. Takes its flags out of `given`.

    Raises:
        UsageError: no model; SpecError, ModelError, ResourceError, UnsupportedError: what cannot be.
    """
    from hetserve.planner.options import Options
    from hetserve.spec.cluster import parse_bytes
    from hetserve.spec.load import load_cluster, load_model
    from hetserve.systems import system

    row = system(given.pop("system"))
    kv_memory, dtype = given.pop("kv_memory"), given.pop("dtype")
    options = Options(
        dtype="" if dtype == "auto" else dtype,
        kv_memory_bytes=parse_bytes(kv_memory, "--kv-memory") if kv_memory else 0,
        max_model_len=given.pop("max_model_len") or 0,
        max_seqs=given.pop("max_num_seqs"),
        max_step_tokens=given.pop("max_num_batched_tokens"),
        steps_in_flight=given.pop("steps_in_flight"),
        max_waiting=given.pop("max_waiting"),
    )
    cluster = load_cluster(given.pop("cluster"))
    if model is None:
        raise UsageError("A plan is for a model, and none was named.", "--model FOLDER; `hetserve model make tiny` writes one to try")
    return row.planner(cluster, load_model(model), None, options)
