"""What a plan serves while it is full: how many requests fill it, and its output between filling up and running empty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hetserve.bench.simulated import arrivals_of, assemble, summary
from hetserve.control.messages import Command, Event, Finish, StepDone, Tokens
from hetserve.errors import BenchError
from hetserve.reproduce.setup import Requests
from hetserve.spec.plan import Group, Plan
from hetserve.spec.workload import Workload

FROM, TO = 0.25, 0.6  # shares of requests that are over: between them a plan is full
LEAST = 150  # requests
FILLED = 3.0  # times that requests fill the plan, all of them together


@dataclass(frozen=True)
class Steady:
    """A plan under more requests than it can take.

    Attributes:
        requests_per_s: output tokens per second while it is full, over a request's mean answer.
        predicted: what the planner expects.
        tokens_held: of KV, by the plan.
    """

    requests_per_s: float
    predicted: float
    tokens_held: int
    slots: int
    requests: int
    preemptions: int
    moves: int
    layout: str

    @property
    def of_predicted(self) -> float:
        return self.requests_per_s / self.predicted


def steady(plan: Plan, asked: Requests, load: Workload) -> Steady:
    """Simulates requests of which the first, as many as fill it, come at the rate that its planner expects, and the others right behind them.

    All at once, they would be computed in step: of answers that are equally long, only decoding, or only prompts, would be seen.

    Args:
        asked: of which workload; `count` is the most there are, fewer where a plan is full with fewer.
        load: its means.

    Raises:
        BenchError: some requests were not served.
    """
    filling = FILLED * sum(at_once(plan, group, load) for group in serving(plan))
    drawn = replace(asked, count=min(asked.count, max(LEAST, round(filling)))).drawn()
    answers = drawn.lengths.output_tokens
    filled_s = filling / FILLED / expected(plan)
    times_s = tuple(min(number / expected(plan), filled_s) for number in range(len(answers)))
    done = assemble(plan, arrivals_of(replace(drawn, arrivals_s=times_s)))
    watch = Full()
    done.run(watch)
    result = summary(done)
    if result["failed"]:
        raise BenchError(f"{plan.system} did not serve {result['failed']} of {len(answers)} {asked.dataset} requests of {plan.model.shape.name}")
    mean = sum(answers) / len(answers) - any(group.role == "prefill" for group in plan.groups)  # the first token is told elsewhere
    return Steady(
        watch.tokens_per_s() / mean,
        expected(plan),
        sum(tokens_held(plan, group) for group in serving(plan)),
        plan.limits.max_seqs,
        len(answers),
        result["preemptions"],
        result["moves"],
        layout(plan),
    )


class Full:
    """Watches a run: output tokens per second of each group from when FROM of its requests are over until TO are.

    So neither filling up nor running empty is counted, also where a slow group does so once while others do several times.
    """

    def __init__(self) -> None:
        self.told: dict[int, list[tuple[float, int]]] = defaultdict(list)  # by group: when, how many tokens
        self.over: dict[int, list[float]] = defaultdict(list)

    def __call__(self, event: Event, commands: Sequence[Command]) -> None:
        if not isinstance(event, StepDone):
            return
        for command in commands:
            if isinstance(command, Tokens):
                self.told[event.group].append((event.at_s, len(command.requests)))
            elif isinstance(command, Finish):
                self.over[event.group].append(event.at_s)

    def tokens_per_s(self) -> float:
        """All groups together; those that hand requests on finish none."""
        found = 0.0
        for group, over in self.over.items():
            since, until = (over[int(share * (len(over) - 1))] for share in (FROM, TO))
            if until > since:
                found += sum(count for at_s, count in self.told[group] if since < at_s <= until) / (until - since)
        return found


def expected(plan: Plan) -> float:
    """Requests per second that the planner expects."""
    return sum(group.requests_per_s for group in serving(plan))


def serving(plan: Plan) -> list[Group]:
    """The groups in which requests stay: not those that hand them on."""
    return [group for group in plan.groups if group.role != "prefill"]


def tokens_held(plan: Plan, group: Group) -> int:
    """Of KV: what the stage with the least room holds, on all its pools together."""
    heads = plan.model.shape.kv_heads
    return min(sum(pool.pages for pool in stage.pools) * plan.page_tokens // heads for stage in group.stages)


def at_once(plan: Plan, group: Group, load: Workload) -> float:
    """Requests of mean length that a group holds when it is full, half answered."""
    return min(plan.limits.max_seqs, tokens_held(plan, group) / (load.input_tokens + load.output_tokens / 2))


def layout(plan: Plan) -> str:
    """Groups, short: role, layers and ranks of each stage and how many attention workers help it."""
    told = []
    for group in plan.groups:
        stages = []
        for stage in group.stages:
            kind = stage.primary[0].split("-")[0]
            helped = f" (+{len(stage.attention)})" if stage.attention else ""
            stages.append(f"{stage.layers[1] - stage.layers[0]} {kind}{f' x{len(stage.primary)}' if len(stage.primary) > 1 else ''}{helped}")
        told.append(f"{'' if group.role == 'mixed' else group.role + ' '}{' | '.join(stages)}")
    return "; ".join(f"{told.count(one)} x [{one}]" if told.count(one) > 1 else f"[{one}]" for one in dict.fromkeys(told))
