"""`hetserve plan`: lays a model out over a cluster's devices and writes the plan that serve, simulate and bench take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import Screen
from .plan_options import MODEL_OPTION, make_plan, plan_options

if TYPE_CHECKING:
    from hetserve.spec.plan import Plan

MIB = 2**20


@click.command()
@plan_options
@MODEL_OPTION
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan to this file.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of plan files instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
def plan(model: Path | None, output: Path | None, schema: bool, as_json: bool, **given: Any) -> None:
    """Lay a model out over the devices of a cluster."""
    import json

    from hetserve.spec.load import save_plan
    from hetserve.spec.plan import encode_plan, plan_schema

    if schema:
        Screen(as_json=True).json(plan_schema())
        return
    screen = Screen(as_json)
    made = make_plan(model, given)
    if output is not None:
        save_plan(made, output)
    screen.json(json.loads(encode_plan(made)))
    _render(made, screen)
    _say_where(made, screen)
    screen.note(f"written to {output}" if output else "not written anywhere: -o FILE writes it")


def _say_where(made: Plan, screen: Screen) -> None:
    """A plan may be for another machine; nobody should find out when serving."""
    from hetserve.errors import ResourceError
    from hetserve.spec.cluster import require_cores
    from hetserve.spec.load import this_host

    try:
        require_cores(made.cluster, this_host())
    except ResourceError as error:
        screen.note(f"not a plan for this machine: {error.message}")


def _render(made: Plan, screen: Screen) -> None:
    shape, dtype = made.model.shape, made.model.dtype
    rows = []
    for number, group in enumerate(made.groups):
        for stage in group.stages:
            for pool in stage.pools:
                role = f"primary, {stage.weights}" if pool.device in stage.primary else "attention"
                tokens = pool.pages * len(stage.primary) // shape.kv_heads * made.page_tokens  # ranks hold their own KV heads only
                size_mib = pool.pages * pool.page_bytes / MIB
                first, last = stage.layers
                rows.append((number, group.role, f"{first} to {last - 1}", pool.device, role, f"{pool.pages:,}", f"{size_mib:,.0f}", f"{tokens:,}"))
    title = f"{shape.name} in {dtype} on cluster {made.cluster.name}, system {made.system}"
    screen.table(title, ["group", "role", "layers", "device", "worker", "pages", "KV MiB", "tokens"], rows, right=(5, 6, 7))
    for note in made.notes:
        screen.say(note)
    limits, online = made.limits, made.online
    theta = "never placed anew" if online.theta is None else f"placed anew beyond {online.theta:.0%} of drift"
    screen.say(f"at most {limits.max_seqs} sequences of {limits.max_model_len:,} tokens at once; head groups {online.heads}, {theta}")
    _predict(made, screen)


def _predict(made: Plan, screen: Screen) -> None:
    """Steps of each stage that one device computes, as the costs see them; of tensor-parallel ones the planner's notes tell."""
    from hetserve.cost.costs import Costs

    costs = Costs(made.model.shape, made.model.dtype, made.cluster, made.profile)
    for stage in (stage for group in made.groups for stage in group.stages):
        if len(stage.primary) > 1:
            continue
        (device,) = stage.primary
        step, weights = costs.stage_cost(device, stage.layers, stage.weights), costs.weight_bytes(device, stage.layers, stage.weights)
        decode_s, prefill_s = step.step_s(32, 32, 32 * 1024, 0.0), step.step_s(1024, 1, 0, 1024 * 512.0)
        screen.say(
            f"{device}: weights {weights / MIB:,.0f} MiB; predicted: decode of 32 x 1,024 tokens {decode_s * 1e3:,.0f} ms a step, "
            f"prefill of 1,024 tokens {prefill_s * 1e3:,.0f} ms ({step.source})"
        )
