"""How many requests a second a group serves once it is full, from the same costs as dispatcher and simulator. Compares layouts; promises nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hetserve.planner.case import Case
from hetserve.spec.model import DTYPE_BYTES
from hetserve.spec.plan import PAGE_TOKENS, Group, Stage


@dataclass(frozen=True)
class Load:
    """What one step does in the steady state of `running` sequences: each decodes a token, and a share of each one's prompt is computed."""

    running: float
    tokens: float
    context: float  # sum of the decoding sequences' lengths
    pairs: float


def load(case: Case, running: float, role: str = "mixed") -> Load:
    work = case.workload
    prompts = 0.0 if role == "decode" else running / work.output_tokens
    context = running * (work.input_tokens + work.output_tokens / 2)
    return Load(running, running + prompts * work.input_tokens, context, prompts * work.input_tokens**2 / 2)


def stage_s(case: Case, device: str, layers: tuple[int, int], weights: str, work: Load) -> float:
    """Dense work of a step and the attention of its prompts: what only primaries do."""
    return case.step(device, layers, weights).step_s(round(work.tokens), round(work.running), 0, work.pairs)


def rate(case: Case, group: Group) -> float:
    """Requests per second of a full group."""
    if group.role == "prefill":
        return min(1 / _prompt_s(case, stage) for stage in group.stages)
    running = held(case, group)
    waves = min(len(group.stages), case.options.steps_in_flight)  # steps that run at once, each with its share of the sequences
    work = load(case, running / waves, group.role)
    seconds = [_step_s(case, group, number, work) for number in range(len(group.stages))]
    steps_per_s = min(1 / max(seconds), waves / sum(seconds))
    return work.running / case.workload.output_tokens * steps_per_s


def held(case: Case, group: Group) -> float:
    """Sequences that run at once: as many as slots, pages and a step's tokens allow, at least one."""
    length = case.workload.input_tokens + case.workload.output_tokens / 2
    room = min(sum(pool.pages for pool in stage.pools) // case.model.kv_heads * PAGE_TOKENS for stage in group.stages)
    each = 1 + (0 if group.role == "decode" else case.workload.input_tokens / case.workload.output_tokens)
    return max(1.0, min(case.options.max_seqs, room / length, case.options.max_step_tokens / each))


def attention_s(case: Case, stage: Stage, work: Load) -> float:
    """Decode attention of a step, dealt over the stage's pools as well as their times and pages allow."""
    heads, primary = case.model.kv_heads, stage.primary[0]
    pages = [pool.pages for pool in stage.pools]
    needed = work.context * heads / PAGE_TOKENS
    fits = max(1.0, needed / sum(pages))
    pools = []
    for pool, count in zip(stage.pools, pages, strict=True):
        cost = case.costs.head_cost(pool.device, stage.layers, None if pool.device == primary else primary)
        whole_s = max(cost.head_s * work.running * heads + cost.token_s * work.context * heads, 1e-12)
        pools.append((whole_s, cost.fixed_s, min(1.0, fits * count / needed)))
    low, high = 0.0, sum(whole_s + fixed_s for whole_s, fixed_s, _ in pools)
    for _ in range(50):
        middle = (low + high) / 2
        placed = sum(min(most, max(0.0, (middle - fixed_s) / whole_s)) for whole_s, fixed_s, most in pools)
        low, high = (low, middle) if placed >= 1 else (middle, high)
    return high


def _step_s(case: Case, group: Group, number: int, work: Load) -> float:
    """A stage's step, with what it sends to the next."""
    stage = group.stages[number]
    dense_s = stage_s(case, stage.primary[0], stage.layers, stage.weights, work)
    sent_s = 0.0
    if number + 1 < len(group.stages):
        size_bytes = int(work.tokens * case.model.hidden * DTYPE_BYTES[case.dtype])
        sent_s = case.costs.move_s(stage.primary[0], group.stages[number + 1].primary[0], size_bytes)
    return dense_s + attention_s(case, stage, work) + sent_s


def _prompt_s(case: Case, stage: Stage) -> float:
    """A whole prompt on a stage, in chunks as large as a step."""
    prompt, chunk = case.workload.input_tokens, case.options.max_step_tokens
    steps = max(1.0, prompt / chunk)
    cost = case.step(stage.primary[0], stage.layers, stage.weights)
    return steps * cost.step_s(round(prompt / steps), 1, 0, prompt**2 / 2 / steps)


def rated(case: Case, group: Group) -> Group:
    """The group with its rate written into it."""
    return replace(group, requests_per_s=rate(case, group))
