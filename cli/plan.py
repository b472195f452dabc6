"""`hetserve plan`: lays a model out over a cluster's devices and writes the plan that serve, simulate and bench take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import Screen
from .plan_options import MODEL_OPTION, load_of, make_plan, plan_options

if TYPE_CHECKING:
    from hetserve.planner.price import Bill, Sum
    from hetserve.spec.plan import Plan

MIB = 2**20


@click.command()
@plan_options
@MODEL_OPTION
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan to this file.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the cluster, its groups and the flow between them into this file.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of plan files instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and its price as one JSON object.")
def plan(model: str | None, output: Path | None, svg: Path | None, schema: bool, as_json: bool, **given: Any) -> None:
    """Lay a model out over the devices of a cluster."""
    import json
    from dataclasses import asdict

    from hetserve.planner.options import TYPICAL
    from hetserve.planner.picture.draw import picture
    from hetserve.planner.price import bill
    from hetserve.spec.load import save_plan
    from hetserve.spec.plan import encode_plan, plan_schema

    if schema:
        Screen(as_json=True).json(plan_schema())
        return
    screen = Screen(as_json)
    load = load_of(given) or TYPICAL
    made = make_plan(model, given)
    paid = bill(made, load)
    if output is not None:
        save_plan(made, output)
    if svg is not None:
        svg.write_text(picture(made, [note for note in made.notes if note.startswith("predicted: ")] + _price_told(paid)), encoding="utf-8")
    screen.json(json.loads(encode_plan(made)) | {"price": asdict(paid)})
    _render(made, screen)
    for line in [*_price_told(paid), *(f"  {price}" for price in paid.prices)]:
        screen.say(line)
    _say_where(made, screen)
    screen.note(f"written to {output}" if output else "not written anywhere: -o FILE writes it")
    if svg is not None:
        screen.note(f"drawn in {svg}")


NAMED = 6  # devices without a price that are named; more are counted


def _price_told(paid: Bill) -> list[str]:
    """What the plan costs, for people; of what nobody knows a price, that."""
    if len(paid.cluster.unpriced) == paid.cluster.devices:
        return ["price: not known of any device; price_per_hour in the cluster file says it"]
    share = f"{paid.used.devices} of {paid.cluster.devices} devices"
    told = [f"price: {_hour(paid.cluster)} for the cluster, {_hour(paid.used)} for what the plan uses of it, {share}"]
    if paid.cluster.unpriced:
        names = paid.cluster.unpriced
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        told.append(f"no price is known of {', '.join(names[:NAMED])}{more}; price_per_hour in the cluster file says it")
    if paid.requests_per_s is None:
        return [*told, "what a token costs is not known: the planner does not say how many requests the plan serves"]
    load = f"at {paid.requests_per_s:.4g} requests/s of {paid.input_tokens:,.0f} + {paid.output_tokens:,.0f} tokens"
    load += "; links between groups let fewer through, so that a token costs more" if paid.links_limit else ""
    parts = [("the cluster", paid.cluster), ("the devices used", paid.used)][: 1 + (paid.used != paid.cluster)]
    for what, part in parts:
        if part.usd_per_million_output_tokens is not None and part.usd_per_million_tokens is not None:
            out, both = part.usd_per_million_output_tokens, part.usd_per_million_tokens
            told.append(f"{what}: {out:.3g} $ a million tokens of answers, {both:.3g} $ of prompts and answers, {load}")
    return told


def _hour(part: Sum) -> str:
    return f"{'more than ' if part.unpriced else ''}{part.usd_per_hour:.2f} $/h"


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
    """Steps of each stage, as the costs see them."""
    from hetserve.cost.costs import Costs

    costs = Costs(made.model.shape, made.model.dtype, made.cluster, made.profile)
    for stage in (stage for group in made.groups for stage in group.stages):
        ranks, device = len(stage.primary), stage.primary[0]
        step = costs.stage_cost(device, stage.layers, stage.weights, ranks)
        weights = costs.weight_bytes(device, stage.layers, stage.weights, ranks)
        decode_s, prefill_s = step.step_s(32, 32, 32 * 1024, 0.0, 32), step.step_s(1024, 1, 0, 1024 * 512.0)
        names = f"{', '.join(stage.primary)}{', each' if ranks > 1 else ''}"
        screen.say(
            f"{names}: weights {weights / MIB:,.0f} MiB; predicted: decode of 32 x 1,024 tokens {decode_s * 1e3:,.0f} ms a step, "
            f"prefill of 1,024 tokens {prefill_s * 1e3:,.0f} ms ({step.source})"
        )
