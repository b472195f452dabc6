"""How many requests a second groups serve once they are full, from the same costs as dispatcher and simulator. Compares layouts; promises nothing.

Devices that work at the same time slow each other (`Costs.contention`): pools of a stage while they attend, stages of a pipeline that have steps of
their own, groups beside each other. Attention workers are not counted against the products of other stages and groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf

from hetserve.cost.roofline import StepCost
from hetserve.planner.case import Case
from hetserve.planner.kinds import signature
from hetserve.spec.model import DTYPE_BYTES
from hetserve.spec.plan import PAGE_TOKENS, Group, Stage
from hetserve.spec.profile import WORKS


@dataclass(frozen=True)
class Load:
    """What one step does in the mean over a steady state of `running` sequences: each decodes a token, and now and then a prompt is computed."""

    running: float
    prompt: float  # tokens of prompts
    context: float  # sum of the decoding sequences' lengths
    pairs: float
    chunk: float  # tokens of prompts in a step that has any

    @property
    def often(self) -> float:
        """The share of steps that have any."""
        return self.prompt / self.chunk if self.prompt else 0.0


@dataclass(frozen=True)
class Busy:
    """The share of time that a primary spends with each of WORKS (prompts' attention is with their products); the rest it waits."""

    device: str
    attention: float
    decode: float
    prompt: float


@dataclass(frozen=True)
class Times:
    """A stage's step, in seconds."""

    decode_s: float  # dense work of the decoding sequences
    prompt_s: float  # what prompts add
    attention_s: float  # of the decoding sequences

    @property
    def whole_s(self) -> float:
        return self.decode_s + self.prompt_s + self.attention_s


def load(case: Case, running: float, role: str = "mixed") -> Load:
    """Of so many sequences at once, or, where a step has no room for their prompts too, of as many as it has room for."""
    work, most = case.workload, case.options.max_step_tokens
    length = work.input_tokens + work.output_tokens
    if role == "decode":
        return Load(running, 0.0, running * (length - work.output_tokens / 2), 0.0, 0.0)
    running = min(running, most * work.output_tokens / length)
    prompt = running * work.input_tokens / work.output_tokens
    chunk = min(most - running, max(work.input_tokens, prompt))
    return Load(running, prompt, running * (length - work.output_tokens / 2), prompt * work.input_tokens / 2, chunk)


def at_once(case: Case) -> float:
    """Sequences that run at the same time at most: slots, or what the load asks for."""
    return min(case.options.max_seqs, case.workload.concurrency)


def decode_s(cost: StepCost, work: Load) -> float:
    """Dense work of a step's decoding sequences."""
    return cost.step_s(round(work.running), round(work.running), 0, 0.0)


def prompt_s(cost: StepCost, work: Load) -> float:
    """What prompts add to a step in the mean, their attention with them. Weights that are read for decoding are read for them too."""
    if not work.prompt:
        return 0.0
    with_s = cost.step_s(round(work.running + work.chunk), round(work.running), 0, work.pairs / work.often)
    return work.often * (with_s - decode_s(cost, work))


def dense_s(cost: StepCost, work: Load) -> float:
    """All that only primaries do in a step."""
    return decode_s(cost, work) + prompt_s(cost, work)


def whole_prompt_s(case: Case, cost: StepCost) -> float:
    """A whole prompt on a stage, in chunks as large as a step."""
    prompt, chunk = case.workload.input_tokens, case.options.max_step_tokens
    steps = max(1.0, prompt / chunk)
    return steps * cost.step_s(round(prompt / steps), 1, 0, prompt**2 / 2 / steps)


def rate(case: Case, group: Group, share: float = 1.0, beside: Sequence[Busy] = ()) -> float:
    """Requests per second of a full group.

    Args:
        share: of the load's concurrency, how much is this group's.
        beside: devices of other groups that work at the same time.
    """
    if group.role == "prefill":
        times = [Times(0.0, whole_prompt_s(case, _cost(case, stage)), 0.0) for stage in group.stages]
        return 1 / max(slowed(case, stage.primary[0], time, beside).whole_s for stage, time in zip(group.stages, times, strict=True))
    waves, work, times = _steady(case, group, share)
    if case.contended:
        others = [[*beside, *_other_stages(group, number, waves, times)] for number in range(len(times))]
        times = [slowed(case, stage.primary[0], one, busy) for stage, one, busy in zip(group.stages, times, others, strict=True)]
    sends = [_send_s(case, group, number, work) for number in range(len(times))]
    mean_s = [time.whole_s + send_s for time, send_s in zip(times, sends, strict=True)]
    chunks = max(1.0, case.workload.input_tokens / work.chunk) if work.chunk else 1.0  # that follow each other
    more = more_often(work.often, chunks, waves) - 1
    step_s = max(max(mean + more * time.prompt_s for mean, time in zip(mean_s, times, strict=True)), sum(mean_s) / waves)
    return work.running / case.workload.output_tokens / step_s


def more_often(often: float, chunks: float, waves: int) -> float:
    """How much more often a step takes as long as one with prompts than it has any: a pipeline's other steps queue up behind one that has.

    Args:
        often: the share of steps that have any.
        chunks: of one prompt, in steps that follow each other.
        waves: steps under way.
    """
    if waves == 1 or not often:
        return 1.0
    return (1 - (1 - min(1.0, often / chunks)) ** (waves + chunks - 1)) / often


def rated(case: Case, group: Group) -> Group:
    """The group with its rate written into it, as if it were alone."""
    return replace(group, requests_per_s=rate(case, group))


def together(case: Case, groups: Sequence[Group]) -> list[Group]:
    """Groups that run at the same time, each with its rate beside the others written into it.

    The load's concurrency is shared in proportion to the rates that the groups have alone, as routing by speed does; prefill and decode groups,
    all of a role together, each see all of it, and the faster role waits for the slower.
    """
    if len(groups) == 1:
        return [rated(case, groups[0])]
    alone = _rates(case, groups, [1.0] * len(groups))
    speeds = {role: sum(each for each, one in zip(alone, groups, strict=True) if one.role == role) for role in {one.role for one in groups}}
    shares = [each / speeds[one.role] for each, one in zip(alone, groups, strict=True)]
    if not case.contended:
        return [replace(one, requests_per_s=each) for one, each in zip(groups, _rates(case, groups, shares), strict=True)]
    working = [1.0 if one.role == "mixed" else min(speeds.values()) / speeds[one.role] for one in groups]
    busy = [_busy(case, *one) for one in zip(groups, shares, working, strict=True)]
    found = []
    for number, one in enumerate(groups):
        beside = [device for other in range(len(groups)) if other != number for device in busy[other]]
        found.append(replace(one, requests_per_s=rate(case, one, shares[number], beside)))
    return found


def _rates(case: Case, groups: Sequence[Group], shares: Sequence[float]) -> list[float]:
    """Of each group as if it were alone; of like groups once."""
    known: dict[Hashable, float] = {}
    found = []
    for group, share in zip(groups, shares, strict=True):
        stages = tuple((stage.layers, stage.weights, len(stage.primary), stage.pools[0].pages, stage.pools[-1].pages) for stage in group.stages)
        key = (group.role, share, stages, signature(case, [pool.device for stage in group.stages for pool in stage.pools]))
        if key not in known:
            known[key] = rate(case, group, share)
        found.append(known[key])
    return found


def held(case: Case, group: Group, share: float = 1.0) -> float:
    """Sequences that run at once to their ends: as many as slots and pages allow and the load has, at least one."""
    length = case.workload.input_tokens + case.workload.output_tokens
    room = min(sum(pool.pages for pool in stage.pools) // case.model.kv_heads * PAGE_TOKENS for stage in group.stages)
    return max(1.0, min(case.options.max_seqs, room / length, share * case.workload.concurrency))


def stage_seconds(case: Case, group: Group) -> list[float]:
    """Of each stage of a full group by itself: a step, or of a prefill group a prompt."""
    if group.role == "prefill":
        return [whole_prompt_s(case, _cost(case, stage)) for stage in group.stages]
    return [time.whole_s for time in _steady(case, group, 1.0)[2]]


def attention_s(case: Case, stage: Stage, work: Load) -> float:
    """Decode attention of a step: all of it on one pool where it fits, or dealt over the stage's pools as well as their times and pages allow, which
    then slow each other. A rank holds its own heads at most, a worker any."""
    heads, ranks = case.model.kv_heads, len(stage.primary)
    needed = work.context * heads / PAGE_TOKENS
    fits = max(1.0, needed / sum(pool.pages for pool in stage.pools))
    like: dict[Hashable, list[int]] = {}
    for number, pool in enumerate(stage.pools):
        like.setdefault((number < ranks, pool.pages, case.like(pool.device), case.device(pool.device).node), []).append(number)
    pools: list[tuple[float, float, float, int]] = []
    best_s = inf
    for first, *more in like.values():
        pool, cost = stage.pools[first], case.heads(stage.pools[first].device, stage)
        whole_s = max(cost.head_s * work.running * heads + cost.token_s * work.context * heads, 1e-12)
        most = min(1 / ranks if first < ranks else 1.0, fits * pool.pages / needed)
        pools.append((cost.shared * whole_s, cost.fixed_s, most, 1 + len(more)))
        if most == 1:
            best_s = min(best_s, whole_s + cost.fixed_s)
    return min(best_s, _dealt_s(pools))


def _dealt_s(pools: Sequence[tuple[float, float, float, int]]) -> float:
    """The earliest that everything is done.

    Args:
        pools: (seconds of everything, seconds before anything, the share it takes at most, so many alike).
    """
    changes: list[tuple[float, float]] = []  # (when, how much faster everything is done from then on)
    for whole_s, fixed_s, most, count in pools:
        changes += [(fixed_s, count / whole_s), (fixed_s + most * whole_s, -count / whole_s)]
    changes.sort()
    at_s, speed, left = 0.0, 0.0, 1.0
    for then_s, faster in changes:
        if speed * (then_s - at_s) >= left:
            break
        left -= speed * (then_s - at_s)
        at_s, speed = then_s, speed + faster
    return at_s + left / speed if speed > 1e-12 and left > 1e-12 else at_s


def slowed(case: Case, device: str, alone: Times, beside: Sequence[Busy]) -> Times:
    """A stage's step beside what other devices do meanwhile: slowed by each for the share of time it works."""
    slower = dict.fromkeys(WORKS, 1.0)
    for other in beside:
        pair = case.costs.contention(device, other.device)
        for mine, others in product(WORKS, WORKS):
            slower[mine] += getattr(other, others) * (pair.factor(mine, others) - 1)
    return Times(slower["decode"] * alone.decode_s, slower["prompt"] * alone.prompt_s, slower["attention"] * alone.attention_s)


def _cost(case: Case, stage: Stage) -> StepCost:
    return case.step(stage.primary[0], stage.layers, stage.weights, len(stage.primary))


def _steady(case: Case, group: Group, share: float) -> tuple[int, Load, list[Times]]:
    """Steps that run at once, what each of them does with its share of the sequences, and what that takes each stage alone."""
    running = held(case, group, share)
    waves = max(1, min(len(group.stages), int(running)))
    work = load(case, running / waves, group.role)
    times = []
    for stage in group.stages:
        cost = _cost(case, stage)
        times.append(Times(decode_s(cost, work), prompt_s(cost, work), attention_s(case, stage, work)))
    return waves, work, times


def _other_stages(group: Group, number: int, waves: int, times: Sequence[Times]) -> list[Busy]:
    """What the primaries of a group's other stages do while one works: of as many steps as are under way one is with it."""
    if waves == 1:
        return []
    part = (waves - 1) / (len(times) - 1)
    return [one for other, one in enumerate(_stages_busy(group, times, part)) if other != number]


def _stages_busy(group: Group, times: Sequence[Times], part: float) -> list[Busy]:
    """A group's primaries; the slowest stage's works for the share `part` of the time."""
    slowest_s = max(time.whole_s for time in times)
    return [
        Busy(stage.primary[0], *(part * one_s / slowest_s for one_s in (time.attention_s, time.decode_s, time.prompt_s)))
        for stage, time in zip(group.stages, times, strict=True)
    ]


def _busy(case: Case, group: Group, share: float, part: float) -> list[Busy]:
    """The devices of a group that works for the share `part` of the time."""
    if group.role == "prefill":
        return _stages_busy(group, [Times(0.0, whole_prompt_s(case, _cost(case, stage)), 0.0) for stage in group.stages], part)
    waves, _, times = _steady(case, group, share)
    return _stages_busy(group, times, part * waves / len(times))


def _send_s(case: Case, group: Group, number: int, work: Load) -> float:
    """What a stage sends to the next in a step."""
    if number + 1 == len(group.stages):
        return 0.0
    size_bytes = int((work.running + work.prompt) * case.model.hidden * DTYPE_BYTES[case.dtype])
    return case.costs.move_s(group.stages[number].primary[0], group.stages[number + 1].primary[0], size_bytes)
