"""What the controller is told once: groups, their pools and costs, and the limits. Goes into every journal's head."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from hetserve.control.messages import ANY_RANK
from hetserve.cost.costs import Costs, HeadCost
from hetserve.cost.roofline import StepCost
from hetserve.errors import UnsupportedError
from hetserve.spec.plan import Flow, Online, Plan, Stage


@dataclass(frozen=True)
class PoolConfig:
    """The pages of one device for one stage."""

    device: str
    pages: int
    heads: HeadCost  # decode attention of the stage's layers on this device


@dataclass(frozen=True)
class StageConfig:
    """A range of layers. Its first pools are its primaries'; prompts are computed there, whoever holds their heads later.

    With several primaries (tensor-parallel ranks) each computes its share of the KV heads, in their order, and holds none but its own; attention
    workers hold any. No engine runs that yet.
    """

    layers: tuple[int, int]  # [first, last)
    pools: tuple[PoolConfig, ...]
    cost: StepCost  # of the primaries
    ranks: int = 1

    @property
    def primaries(self) -> tuple[PoolConfig, ...]:
        return self.pools[: self.ranks]


@dataclass(frozen=True)
class GroupConfig:
    stages: tuple[StageConfig, ...]
    role: str = "mixed"  # "prefill": hands its requests on after their first token; "decode": takes them
    requests_per_s: float = 0.0  # as its planner expects; 0: it did not say

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        """All pools, stage by stage."""
        return tuple(pool for stage in self.stages for pool in stage.pools)

    @property
    def pool_ranges(self) -> tuple[range, ...]:
        """The numbers of each stage's pools; the first of each are its primaries'."""
        ends = tuple(accumulate(len(stage.pools) for stage in self.stages))
        return tuple(range(first, last) for first, last in pairwise((0, *ends)))

    @property
    def tp_ranks(self) -> tuple[int, ...]:
        """[pools] which rank a primary's pool belongs to; ANY_RANK: an attention worker's."""
        return tuple(number if number < stage.ranks else ANY_RANK for stage in self.stages for number in range(len(stage.pools)))

    def home(self, kv_heads: int) -> tuple[int, ...]:
        """[lanes] the pool of the primary that computes each lane: stage * kv_heads + KV head, by shares of kv_heads / ranks."""
        assert all(kv_heads % stage.ranks == 0 for stage in self.stages)
        sizes = [(pools.start, kv_heads // stage.ranks) for stage, pools in zip(self.stages, self.pool_ranges, strict=True)]
        return tuple(first + head // share for first, share in sizes for head in range(kv_heads))

    @property
    def speed(self) -> float:
        """What routing compares groups by: requests per second where the planner said how many, else tokens per second of the slowest stage's large
        steps."""
        return self.requests_per_s or min(1 / max(stage.cost.token_s, 1e-12) for stage in self.stages)


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
    staging: float = 0.125  # share of a primary's pool that the dispatcher leaves for prompts, where heads may lie elsewhere
    online: Online = field(default_factory=Online)  # which of the system's policies decide
    flow: tuple[Flow, ...] = ()  # from prefill to decode groups; none: from each to each in equal shares

    def targets(self, prefill: int) -> list[tuple[int, float]]:
        """The decode groups that a prefill group hands its requests to, each with its share."""
        if self.flow:
            return [(one.target, one.share) for one in self.flow if one.source == prefill]
        return [(number, 1.0) for number, group in enumerate(self.groups) if group.role == "decode"]

    @property
    def longest_step_s(self) -> float:
        """What the cost model expects of the longest step that a group can be given: all of it a prompt's last tokens."""
        tokens, pairs = self.max_step_tokens, float(self.max_step_tokens) * self.max_model_len
        return max(sum(stage.cost.step_s(tokens, self.max_seqs, 0, pairs) for stage in group.stages) for group in self.groups)


def config_from_plan(plan: Plan) -> ControllerConfig:
    """The controller's side of a plan.

    Raises:
        UnsupportedError: it needs what this version's runtime does not have yet.
    """
    _require_roles(plan)
    costs = Costs(plan.model.shape, plan.model.dtype, plan.cluster, plan.profile)
    return ControllerConfig(
        system=plan.system,
        plan_hash=plan.hash,
        groups=tuple(GroupConfig(tuple(_stage(stage, costs) for stage in group.stages), group.role, group.requests_per_s) for group in plan.groups),
        kv_heads=plan.model.shape.kv_heads,
        page_tokens=plan.page_tokens,
        max_model_len=plan.limits.max_model_len,
        max_seqs=plan.limits.max_seqs,
        max_step_tokens=plan.limits.max_step_tokens,
        depth=plan.limits.steps_in_flight,
        max_waiting=plan.limits.max_waiting,
        online=plan.online,
        flow=plan.flow,
    )


def _stage(stage: Stage, costs: Costs) -> StageConfig:
    """Ranks are on one node: attention workers are reached alike from each."""
    ranks, primary, pools = len(stage.primary), stage.primary[0], []
    for pool in stage.pools:
        sender = None if pool.device in stage.primary else primary
        others = [other.device for other in stage.pools if other is not pool]
        pools.append(PoolConfig(pool.device, pool.pages, costs.head_cost(pool.device, stage.layers, sender, others, ranks)))
    return StageConfig(stage.layers, tuple(pools), costs.stage_cost(primary, stage.layers, stage.weights, ranks), ranks)


def _require_roles(plan: Plan) -> None:
    """Every stage of a group has its own primaries; every prefill group hands over to a decode group, and every decode group is handed to."""
    for group in plan.groups:
        primaries = [device for stage in group.stages for device in stage.primary]
        if len(set(primaries)) < len(primaries):
            raise UnsupportedError("the plan makes one device the primary of several stages of a group, which this version does not run")
    prefill, decode = ({number for number, group in enumerate(plan.groups) if group.role == role} for role in ("prefill", "decode"))
    if bool(prefill) != bool(decode):
        raise UnsupportedError("the plan has prefill groups without decode groups, or the other way round", "make the plan again")
    if any(len(stage.pools) > len(stage.primary) for number in prefill for stage in plan.groups[number].stages):
        raise UnsupportedError("the plan gives a prefill group attention workers, which this version does not run", "decode groups may have some")
    if plan.flow and ({one.source for one in plan.flow}, {one.target for one in plan.flow}) != (prefill, decode):
        raise UnsupportedError("the plan's flow leaves out a group, or leads from or to one of another role", "make the plan again")
