"""Prefill and decode on groups of their own: how much both phases and the links between them serve together, and who hands how much to whom.

Every prefill group hands to every decode group in proportion to its rate, so links that several pairs share are counted with all they carry, and so
is what a node sends to all others, or receives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from hetserve.planner.case import Case
from hetserve.planner.estimate import stage_seconds, together
from hetserve.planner.kinds import named
from hetserve.planner.told import gap
from hetserve.planner.why import devices, told
from hetserve.spec.plan import Flow, Group, Stage

NEAR = 0.95  # of the most requests per second: as good, where prompts are faster
Shares = dict[str, float]  # link, as "from NODE to NODE" or "out of NODE" -> seconds of its time for one request of the whole


@dataclass(frozen=True)
class Phases:
    """Groups with the rate that each could serve, prefill first.

    Attributes:
        rate: requests per second of all together.
        limit: what keeps it there: "prefill", "decode", or a link.
    """

    groups: tuple[Group, ...]
    flow: tuple[Flow, ...]
    rate: float
    limit: str

    @property
    def used(self) -> list[Group]:
        """The groups with the rate that each serves."""
        sums = {role: sum(one.requests_per_s for one in self.groups if one.role == role) for role in ("prefill", "decode")}
        return [replace(one, requests_per_s=one.requests_per_s * self.rate / sums[one.role]) for one in self.groups]


def matched(case: Case, prefill: Sequence[Group], decode: Sequence[Group]) -> Phases:
    """Both phases side by side, no more groups of either than the other can keep busy."""
    least = min(sum(one.requests_per_s for one in side) for side in (prefill, decode))
    chosen = [*_enough(prefill, least), *_enough(decode, least)]
    groups = tuple(together(case, chosen))
    first, second = ([number for number, one in enumerate(groups) if one.role == role] for role in ("prefill", "decode"))
    sums = [sum(groups[number].requests_per_s for number in side) for side in (first, second)]
    flow = tuple(Flow(source, target, groups[target].requests_per_s / sums[1]) for source in first for target in second)
    busy_s: Shares = defaultdict(float)
    for arc in flow:
        share = arc.share * groups[arc.source].requests_per_s / sums[0]
        for link, seconds in _handing_s(case, groups[arc.source], groups[arc.target]).items():
            busy_s[link] += share * seconds
    limits = {"prefill": sums[0], "decode": sums[1], **{f"the link {link}": 1 / seconds for link, seconds in busy_s.items() if seconds}}
    limit = min(limits, key=lambda one: limits[one])
    return Phases(groups, flow, limits[limit], limit)


def best_of(case: Case, found: Iterable[Phases]) -> Phases | None:
    """The one that serves most; of those that serve nearly as much the one that computes prompts fastest, then the one with the fewest devices."""
    layouts = list(found)
    most = max((one.rate for one in layouts), default=0.0)
    near = [one for one in layouts if one.rate >= NEAR * most]
    return min(near, key=lambda one: (round(_slowest_prompt_s(case, one), 9), len(devices(one.groups)), -one.rate), default=None)


def _slowest_prompt_s(case: Case, phases: Phases) -> float:
    return max(prompt_s(case, one) for one in phases.groups if one.role == "prefill")


def prompt_s(case: Case, group: Group) -> float:
    """A mean prompt's time on a prefill group: its first chunk through all stages, the others behind it."""
    chunks = max(1.0, case.workload.input_tokens / case.options.max_step_tokens)
    seconds = stage_seconds(case, group)
    return (sum(seconds) + (chunks - 1) * max(seconds)) / chunks


def notes(case: Case, phases: Phases) -> list[str]:
    """What is expected of both phases together, of each group, and what is left out."""
    left = [name for name in case.names if name not in devices(phases.groups)]
    idle = [f"left out: {named(left)}; no layout with them was expected to serve more"] if left else []
    said = f"an estimated {phases.rate:.3g} requests/s; the bottleneck is {phases.limit}"
    return [said, *gap(case, phases.rate, mixed=False), *told(case, phases.groups), *idle]


def _enough(groups: Sequence[Group], rate: float) -> list[Group]:
    """The fastest of them, so many that they serve as much together, in their order."""
    by_rate = sorted(range(len(groups)), key=lambda one: -groups[one].requests_per_s)
    served, count = 0.0, 0
    while count < len(groups) and served < rate * (1 - 1e-9):
        served += groups[by_rate[count]].requests_per_s
        count += 1
    return [groups[one] for one in sorted(by_rate[:count])]


def _handing_s(case: Case, source: Group, target: Group) -> Shares:
    """Seconds of each link's time that the KV of a mean prompt takes: a link between two nodes is shared by all their devices, what a node sends or
    receives by all that goes from it or to it."""
    busy_s: Shares = defaultdict(float)
    layer_bytes = case.workload.input_tokens * case.model.kv_bytes_per_token(case.dtype) / case.model.layers
    for here, there, layers in _overlaps(source.stages, target.stages):
        most = max(len(here.primary), len(there.primary))
        for number in range(most):  # whose heads lie on one device at either end
            a, b = (stage.primary[number * len(stage.primary) // most] for stage in (here, there))
            nodes = case.device(a).node, case.device(b).node
            ends = nodes if nodes[0] != nodes[1] else (a, b)
            for link, bytes_per_s in {f"from {ends[0]} to {ends[1]}": case.costs.link_cost(a, b).bytes_per_s, **case.cluster.shared(a, b)}.items():
                busy_s[link] += layers * layer_bytes / most / bytes_per_s
    return busy_s


def _overlaps(source: Sequence[Stage], target: Sequence[Stage]) -> Iterator[tuple[Stage, Stage, int]]:
    """Stages of either that have layers in common, and how many."""
    for here in source:
        for there in target:
            layers = min(here.layers[1], there.layers[1]) - max(here.layers[0], there.layers[0])
            if layers > 0:
                yield here, there, layers
