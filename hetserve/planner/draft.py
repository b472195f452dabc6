"""From who does what to a plan: pools that fill the devices' budgets, the longest sequence they hold, errors where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetserve.cost.roofline import token_pages
from hetserve.errors import ResourceError
from hetserve.planner.case import MIB, Case
from hetserve.planner.kinds import named
from hetserve.spec.plan import MOST_PAGES, PAGE_TOKENS, Flow, Group, Limits, Online, Plan, PlanModel, Pool, Stage, page_bytes


@dataclass(frozen=True)
class Part:
    """A stage: layers [first, last), the devices that share their weights and in which dtype, and the attention workers of its group."""

    layers: tuple[int, int]
    primary: tuple[str, ...]  # alike and in one node, one per tensor-parallel rank
    weights: str
    attention: tuple[str, ...] = ()


def stage(case: Case, part: Part) -> Stage | None:
    """The part with pools as large as the budgets allow, all ranks' alike; None where a device has no room for a page of every head that it may hold,
    or for what the user asked for."""
    size_bytes, ranks = page_bytes(case.model, part.layers, case.dtype), len(part.primary)
    own = case.model.kv_heads // ranks  # heads of each rank
    share = (part.layers[1] - part.layers[0]) / case.model.layers  # of an attention worker's budget: it serves all stages of its group
    most = _usable(case)
    room = min(case.primary_room(one, part.layers, part.weights, ranks) for one in part.primary)
    pages = min(case.kv_bytes(part.primary[0], room) // size_bytes, most // ranks)
    longest = pages // own * PAGE_TOKENS  # prompts are computed with all their KV on the primaries
    if pages < own or longest < case.options.max_model_len or room < case.options.kv_memory_bytes:
        return None
    pools = [Pool(device, pages, size_bytes) for device in part.primary]
    for device in part.attention:
        held = min(int(case.kv_bytes(device, case.attention_room(device)) * share) // size_bytes, most)
        if held < case.model.kv_heads:
            return None
        pools.append(Pool(device, held, size_bytes))
    return Stage(part.layers, part.primary, part.attention, tuple(pools), part.weights)


def group(case: Case, parts: Sequence[Part], role: str = "mixed") -> Group | None:
    """A group of these stages, if all fit."""
    stages = [stage(case, part) for part in parts]
    found = tuple(one for one in stages if one is not None)
    return Group(role, found) if len(found) == len(stages) else None


def tokens_held(case: Case, stage: Stage) -> int:
    """Tokens of one sequence that the stage's primaries hold alone, where prompts are computed."""
    return stage.pools[0].pages // (case.model.kv_heads // len(stage.primary)) * PAGE_TOKENS


def finish(case: Case, system: str, groups: Sequence[Group], notes: Sequence[str], online: Online | None = None, flow: tuple[Flow, ...] = ()) -> Plan:
    """The plan.

    Raises:
        ResourceError: a sequence as long as the user wants fits nowhere, or KV memory that was asked for does not.
    """
    options = case.options
    limits = Limits(_model_len(case, groups), options.max_seqs, options.max_step_tokens, options.steps_in_flight, options.max_waiting)
    model = PlanModel(case.model, case.dtype)
    return Plan(
        system,
        model,
        case.cluster,
        limits,
        tuple(groups),
        flow,
        profile=options.profile,
        online=online or Online(),
        notes=tuple(notes),
    )


def no_room(case: Case, part: Part) -> ResourceError:
    """Why a part does not fit on its one primary."""
    options, wanted, (device,) = case.options, case.options.kv_memory_bytes, part.primary
    weights = case.weight_bytes(device, part.layers, part.weights)
    workspace = case.workspace_bytes(device, part.layers, part.weights)
    first, last = part.layers
    return ResourceError(
        f"device {device!r} has a budget of {case.device(device).memory_bytes / MIB:,.0f} MiB, but layers {first} to {last - 1} of {case.model.name} "
        f"in {part.weights} need {weights / MIB:,.0f} MiB of weights, {workspace / MIB:,.0f} MiB of workspace"
        f"{f', {wanted / MIB:,.0f} MiB of KV' if wanted else ''} and room for a sequence of {max(options.max_model_len, PAGE_TOKENS)} tokens",
        "give the device more memory in its cluster file, less KV memory, smaller steps, or take a smaller model",
    )


def no_layout(case: Case) -> ResourceError:
    """Why nothing fits anywhere."""
    sizes: dict[int, list[str]] = {}
    for device in case.cluster.devices:
        sizes.setdefault(device.memory_bytes, []).append(device.name)
    budgets = ", ".join(f"{named(names)} {size / MIB:,.0f} MiB{' each' if len(names) > 1 else ''}" for size, names in sizes.items())
    weights = min(case.weight_bytes(device.name, case.whole, case.dtype) for device in case.cluster.devices)
    return ResourceError(
        f"{case.model.name} does not fit over the devices of cluster {case.cluster.name!r} ({budgets}): its weights alone are "
        f"{weights / MIB:,.0f} MiB, and every stage needs workspace and room for some sequence",
        "give devices more memory in the cluster file, smaller steps, or take a smaller model",
    )


def _usable(case: Case) -> int:
    """Pages that all slots could ever fill, or that a pool can have."""
    filled = case.options.max_seqs * token_pages(case.model.max_positions) * case.model.kv_heads
    return MOST_PAGES if case.options.kv_memory_bytes else min(filled, MOST_PAGES)


def _model_len(case: Case, groups: Sequence[Group]) -> int:
    """The longest sequence: what the user asked for, or as much of the model's own limit as the smallest primary pool holds."""
    model, wanted = case.model, case.options.max_model_len
    tight = min((part for one in groups for part in one.stages), key=lambda part: tokens_held(case, part))
    held = tokens_held(case, tight)
    needed = wanted or min(model.max_positions, held)
    if held < max(needed, 2):
        wanted_mib = token_pages(max(needed, 2)) * (model.kv_heads // len(tight.primary)) * tight.pools[0].page_bytes / MIB
        raise ResourceError(
            f"device {tight.primary[0]!r} has room for the KV of {held} tokens, one sequence of {max(needed, 2)} needs {wanted_mib:,.1f} MiB",
            "give more KV memory, or lower --max-model-len",
        )
    return needed
