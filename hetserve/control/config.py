"""What the controller is told once: groups, their pools and step costs, and the limits. Goes into every journal's head."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.cost.rates import device_rates
from hetserve.cost.roofline import Roofline, StepCost
from hetserve.errors import UnsupportedError
from hetserve.spec.plan import Group, Plan


@dataclass(frozen=True)
class GroupConfig:
    devices: tuple[str, ...]  # the first is the primary
    pages: tuple[int, ...]  # of each device's pool
    cost: StepCost


@dataclass(frozen=True)
class ControllerConfig:
    system: str
    plan_hash: str
    groups: tuple[GroupConfig, ...]
    kv_heads: int
    page_tokens: int
    max_model_len: int  # prompt and answer together, tokens
    max_seqs: int  # slots of each group
    max_step_tokens: int  # at least max_seqs
    depth: int  # steps in flight
    max_waiting: int  # waiting sequences; further requests are turned away
    watermark: float = 0.01  # share of a pool that admissions leave free, so that running sequences can grow


def config_from_plan(plan: Plan) -> ControllerConfig:
    """The controller's side of a plan.

    Raises:
        UnsupportedError: it needs what this version's runtime does not have yet.
    """
    if len(plan.groups) > 1:
        raise UnsupportedError(f"the plan has {len(plan.groups)} groups; this version runs one", "plan with --system uniform")
    return ControllerConfig(
        system=plan.system,
        plan_hash=plan.hash,
        groups=tuple(_group(group, plan) for group in plan.groups),
        kv_heads=plan.model.shape.kv_heads,
        page_tokens=plan.page_tokens,
        max_model_len=plan.limits.max_model_len,
        max_seqs=plan.limits.max_seqs,
        max_step_tokens=plan.limits.max_step_tokens,
        depth=plan.limits.steps_in_flight,
        max_waiting=plan.limits.max_waiting,
    )


def _group(group: Group, plan: Plan) -> GroupConfig:
    stage = group.stages[0]
    refused = {
        f"the role {group.role!r}": group.role != "mixed",
        f"{len(group.stages)} pipeline stages": len(group.stages) > 1,
        f"tensor parallelism over {len(stage.primary)} devices": len(stage.primary) > 1,
        f"{len(stage.attention)} attention workers": bool(stage.attention),
    }
    for what, needed in refused.items():
        if needed:
            raise UnsupportedError(f"the plan needs {what}; this version runs one mixed group on one device", "plan with --system uniform")
    rates = device_rates(plan.cluster.device(stage.primary[0]), plan.model.dtype)
    pools = stage.pools
    cost = Roofline(plan.model.shape, plan.model.dtype, rates).step_cost()
    return GroupConfig(tuple(pool.device for pool in pools), tuple(pool.pages for pool in pools), cost)
