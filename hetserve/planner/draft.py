"""From who does what to a plan: pools that fill the devices' budgets, the longest sequence they hold, errors where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetserve.cost.roofline import token_pages
from hetserve.errors import ResourceError
from hetserve.planner.case import MIB, Case
from hetserve.spec.plan import MOST_PAGES, PAGE_TOKENS, Flow, Group, Limits, Online, Plan, PlanModel, Pool, Stage, page_bytes


@dataclass(frozen=True)
class Part:
    """A stage: layers [first, last), the device that holds their weights and in which dtype, and the attention workers of its group."""

    layers: tuple[int, int]
    primary: str
    weights: str
    attention: tuple[str, ...] = ()


def stage(case: Case, part: Part) -> Stage | None:
    """The part with pools as large as the budgets allow; None where a device has no room for a page of every head, or for what the user asked for."""
    size_bytes = page_bytes(case.model, part.layers, case.dtype)
    share = (part.layers[1] - part.layers[0]) / case.model.layers  # of an attention worker's budget: it serves all stages of its group
    room = case.primary_room(part.primary, part.layers, part.weights)
    rooms = [case.kv_bytes(part.primary, room)]
    rooms += [int(case.kv_bytes(one, case.attention_room(one)) * share) for one in part.attention]
    most = MOST_PAGES if case.options.kv_memory_bytes else min(_usable(case), MOST_PAGES)
    pages = [min(room // size_bytes, most) for room in rooms]
    longest = pages[0] // case.model.kv_heads * PAGE_TOKENS  # prompts are computed with all their KV on the primary
    if min(pages) < case.model.kv_heads or longest < case.options.max_model_len or room < case.options.kv_memory_bytes:
        return None
    devices = (part.primary, *part.attention)
    pools = tuple(Pool(device, count, size_bytes) for device, count in zip(devices, pages, strict=True))
    return Stage(part.layers, (part.primary,), part.attention, pools, part.weights)


def group(case: Case, parts: Sequence[Part], role: str = "mixed") -> Group | None:
    """A group of these stages, if all fit."""
    stages = [stage(case, part) for part in parts]
    found = tuple(one for one in stages if one is not None)
    return Group(role, found) if len(found) == len(stages) else None


def tokens_held(case: Case, stage: Stage) -> int:
    """Tokens of one sequence that the stage's primary holds alone, where prompts are computed."""
    return stage.pools[0].pages // case.model.kv_heads * PAGE_TOKENS


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


def no_room(case: Case, device: str, part: Part) -> ResourceError:
    """Why a part does not fit on its primary."""
    options, wanted = case.options, case.options.kv_memory_bytes
    weights = case.costs.weight_bytes(device, part.layers, part.weights)
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
    budgets = ", ".join(f"{device.name} {device.memory_bytes / MIB:,.0f} MiB" for device in case.cluster.devices)
    weights = min(case.costs.weight_bytes(device.name, case.whole, case.dtype) for device in case.cluster.devices)
    return ResourceError(
        f"{case.model.name} does not fit over the devices of cluster {case.cluster.name!r} ({budgets}): its weights alone are "
        f"{weights / MIB:,.0f} MiB, and every stage needs workspace and room for some sequence",
        "give devices more memory in the cluster file, smaller steps, or take a smaller model",
    )


def _usable(case: Case) -> int:
    """Pages that all slots could ever fill."""
    return case.options.max_seqs * token_pages(case.model.max_positions) * case.model.kv_heads


def _model_len(case: Case, groups: Sequence[Group]) -> int:
    """The longest sequence: what the user asked for, or as much of the model's own limit as the smallest primary pool holds."""
    model, wanted = case.model, case.options.max_model_len
    tight = min((part for one in groups for part in one.stages), key=lambda part: tokens_held(case, part))
    held = tokens_held(case, tight)
    needed = wanted or min(model.max_positions, held)
    if held < max(needed, 2):
        wanted_mib = token_pages(max(needed, 2)) * model.kv_heads * tight.pools[0].page_bytes / MIB
        raise ResourceError(
            f"device {tight.primary[0]!r} has room for the KV of {held} tokens, one sequence of {max(needed, 2)} needs {wanted_mib:,.1f} MiB",
            "give more KV memory, or lower --max-model-len",
        )
    return needed
