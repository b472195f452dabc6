"""How many requests a second a group serves once it is full, from the same costs as dispatcher and simulator. Compares layouts; promises nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hetserve.planner.case import Case
from hetserve.spec.model import DTYPE_BYTES
from hetserve.spec.plan import PAGE_TOKENS, Group, Stage


@dataclass(frozen=True)
class Load:
    """What one step does in the mean over a steady state of `running` sequences: each decodes a token, and now and then a prompt is computed."""

    running: float
    prompt: float  # tokens of prompts
    context: float  # sum of the decoding sequences' lengths
    pairs: float


def load(case: Case, running: float, role: str = "mixed") -> Load:
    work = case.workload
    prompts = 0.0 if role == "decode" else running / work.output_tokens
    context = running * (work.input_tokens + work.output_tokens / 2)
    return Load(running, prompts * work.input_tokens, context, prompts * work.input_tokens**2 / 2)


def decode_s(case: Case, device: str, layers: tuple[int, int], weights: str, work: Load) -> float:
    """Dense work of a step's decoding sequences: weights are read in every step, also where a prompt would hide it in another."""
    return case.step(device, layers, weights).step_s(round(work.running), round(work.running), 0, 0.0)


def prompt_s(case: Case, device: str, layers: tuple[int, int], weights: str, work: Load) -> float:
    """What prompts add to a step, their attention with them."""
    cost = case.step(device, layers, weights)
    return work.prompt * cost.token_s + work.pairs * cost.pair_s


def dense_s(case: Case, device: str, layers: tuple[int, int], weights: str, work: Load) -> float:
    """All that only primaries do in a step."""
    return decode_s(case, device, layers, weights, work) + prompt_s(case, device, layers, weights, work)


def rate(case: Case, group: Group) -> float:
    """Requests per second of a full group."""
    if group.role == "prefill":
        return min(1 / _whole_prompt_s(case, stage) for stage in group.stages)
    waves = min(len(group.stages), case.options.steps_in_flight)  # steps that run at once, each with its share of the sequences
    work = load(case, held(case, group) / waves, group.role)
    prompts = [prompt_s(case, stage.primary[0], stage.layers, stage.weights, work) for stage in group.stages]
    seconds = [_step_s(case, group, number, work) for number in range(len(group.stages))]
    chunks = 1 + case.workload.input_tokens / case.options.max_step_tokens
    idle_s = (sum(prompts) - max(prompts)) / chunks  # filling and draining: chunks follow each other within a prompt, seldom beyond
    step_s = max(max(seconds) + idle_s, sum(seconds) / waves)
    return work.running / case.workload.output_tokens / step_s


def held(case: Case, group: Group) -> float:
    """Sequences that run at once to their ends: as many as slots and pages allow, at least one."""
    length = case.workload.input_tokens + case.workload.output_tokens
    room = min(sum(pool.pages for pool in stage.pools) // case.model.kv_heads * PAGE_TOKENS for stage in group.stages)
    return max(1.0, min(case.options.max_seqs, room / length))


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
    time_s = dense_s(case, stage.primary[0], stage.layers, stage.weights, work) + attention_s(case, stage, work)
    if number + 1 == len(group.stages):
        return time_s
    size_bytes = int((work.running + work.prompt) * case.model.hidden * DTYPE_BYTES[case.dtype])
    return time_s + case.costs.move_s(stage.primary[0], group.stages[number + 1].primary[0], size_bytes)


def _whole_prompt_s(case: Case, stage: Stage) -> float:
    """A whole prompt on a stage, in chunks as large as a step."""
    prompt, chunk = case.workload.input_tokens, case.options.max_step_tokens
    steps = max(1.0, prompt / chunk)
    cost = case.step(stage.primary[0], stage.layers, stage.weights)
    return steps * cost.step_s(round(prompt / steps), 1, 0, prompt**2 / 2 / steps)


def rated(case: Case, group: Group) -> Group:
    """The group with its rate written into it."""
    return replace(group, requests_per_s=rate(case, group))
