"""How one group runs the model best: its stages, their layers, how many sequences it holds, and how many requests a second that makes.

Prefill: of all shapes the one with the least latency (the paper's rule), one prompt at a time, or, if asked for, with the highest rate. Decode and
mixed: the highest rate. Layers are cut for the shortest cycle in all cases, so that a pipeline of equal devices is cut evenly although no cut
changes its latency. Chosen here: a pipeline has as many steps on its way at once as the runtime allows (`Demand.waves`); a stage's time has its hop
to the next in it. A step of b sequences of a mixed group has the prompts of b / (tokens of an answer) new ones in it, and waits for what parts of
prompts leave idle in a pipeline (planner/estimate.py, rate).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import floor, inf

import numpy as np

from hetserve.planner.estimate import more_often
from hetserve.planner.hexgen2.shapes import Stages, shapes
from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL, Demand, Ranks, Remembered, Seconds, Site, StageCosts
from hetserve.solve.fill import least_sum, shortest_cycle

TRIED = (1.0, 0.85, 0.7, 0.5, 0.3, 0.15)  # of the most sequences that a shape can hold: fewer leave more freedom to cut layers

NEAR = 0.998  # of what no cut exceeds: good enough to look at no other number of sequences
EXACT = 1e-9  # relative: the same number
FAR = {MIXED: 0.9, DECODE: 0.7, PREFILL: 0.0}  # of another shape's rate: so far below it other numbers of sequences do not bring a shape


@dataclass(frozen=True)
class Strategy:
    stages: Stages
    layers: tuple[int, ...]  # of each stage
    sequences: float  # at once
    latency_s: float  # of a prompt, or of one decode step
    rate: float  # requests per second

    def renamed(self, devices: Sequence[int]) -> Strategy:
        """The same on other devices: number i becomes devices[i]."""
        stages = tuple(tuple(devices[one] for one in stage) for stage in self.stages)
        return Strategy(stages, self.layers, self.sequences, self.latency_s, self.rate)


@dataclass
class Strategies:
    """Answers for any group, each looked for once; groups that are alike to the costs share an answer.

    Args:
        fastest_prefill: prefill groups, too, take the strategy with the highest rate.
    """

    site: Site
    costs: StageCosts
    demand: Demand
    fastest_prefill: bool = False
    searched: int = 0  # groups that no other was like
    _alike: dict[tuple[bytes, str], Strategy | None] = field(default_factory=dict)  # in numbers of places in the canonical order
    _known: dict[tuple[tuple[int, ...], str], Strategy | None] = field(default_factory=dict)
    _between: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[float, float], ...]] = field(default_factory=dict)
    _hops: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[float, float], ...]] = field(default_factory=dict)
    _stages: dict[tuple[int, ...], Ranks] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked = Remembered(self.costs, self.demand)

    def by_rate(self) -> Strategies:
        """The same with prefill groups, too, by rate; what is known of other groups is known there."""
        alike = {key: found for key, found in self._alike.items() if key[1] != PREFILL}
        known = {key: found for key, found in self._known.items() if key[1] != PREFILL}
        return replace(self, fastest_prefill=True, searched=0, _alike=alike, _known=known)

    def best(self, devices: tuple[int, ...], role: str) -> Strategy | None:
        """None: they do not hold the model and a sequence."""
        known = self._known.get((devices, role), ...)
        if known is ...:
            order, key = self._canonical(devices)
            if (key, role) not in self._alike:
                self.searched += 1
                found = self._search(order, role)
                self._alike[key, role] = found and _positions(found, order)
            like = self._alike[key, role]
            known = self._known[devices, role] = like and like.renamed(order)
        return known

    def rate(self, devices: tuple[int, ...], role: str) -> float:
        """Requests per second; 0: they do not hold the model."""
        found = self.best(devices, role)
        return found.rate if found is not None else 0.0

    def _canonical(self, devices: Sequence[int]) -> tuple[list[int], bytes]:
        """The devices in an order that like groups share, and what a group looks like to the costs."""
        site = self.site
        nodes, kinds = site.nodes[list(devices)].tolist(), site.kinds[list(devices)].tolist()
        counts = Counter(zip(nodes, kinds, strict=True))
        content = {node: sorted((kind, -counts[node, kind]) for kind in set(kinds) if counts[node, kind]) for node in set(nodes)}
        ranked = sorted((content[node], node, kind, device) for node, kind, device in zip(nodes, kinds, devices, strict=True))
        order = [device for *_, device in ranked]
        key = np.array([kind for _, _, kind, _ in ranked]).tobytes() + site.link_kinds[np.ix_(order, order)].tobytes()
        return order, key

    def _search(self, devices: list[int], role: str) -> Strategy | None:
        tried = [_Shape(self, stages, role) for stages in shapes(self.site, devices, self.costs.layers)]
        best: Strategy | None = None
        for bound, shape in sorted(((self._bound(shape, role), shape) for shape in tried), key=lambda one: -one[0]):
            if best is not None and bound < self._key(best, role)[0]:
                break
            one = shape.prefill() if role == PREFILL else shape.many(best.rate if best else 0.0)
            if one is not None and (best is None or self._key(one, role) > self._key(best, role)):
                best = one
        return best

    def links(self, source: tuple[int, ...], target: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
        """(seconds, bytes per second) of the links between two stages; equal ones once."""
        known = self._between.get((source, target))
        if known is None:
            where = np.ix_(source, target)
            pairs = zip(self.site.latency_s[where].flat, self.site.bytes_per_s[where].flat, strict=True)
            known = self._between[source, target] = tuple({(float(latency_s), float(speed)) for latency_s, speed in pairs})
        return known

    def hop(self, source: tuple[int, ...], target: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
        """(seconds, seconds per byte) of activations from one stage to another, over each of the links between them."""
        known = self._hops.get((source, target))
        if known is None:
            known = self._hops[source, target] = hop_lines(self.links(source, target), self.ranks(target))
        return known

    def ranks(self, stage: tuple[int, ...]) -> Ranks:
        known = self._stages.get(stage)
        if known is None:
            known = self._stages[stage] = ranks_of(self.site, stage)
        return known

    def _bound(self, shape: _Shape, role: str) -> float:
        """What no cut of a shape's layers exceeds, as the first of `_key`."""
        if role != PREFILL:
            return shape.most_rate
        least_s, cycle_s = shape.least_prompt_s
        return 1 / cycle_s if self.fastest_prefill else -round(least_s, 12)

    def _key(self, one: Strategy, role: str) -> tuple[float, float]:
        """The larger, the better."""
        if role == PREFILL and not self.fastest_prefill:
            return (-round(one.latency_s, 12), one.rate)
        return (one.rate, -one.latency_s)


class _Shape:
    """One way to lay a group out, with what does not depend on the cut of the layers."""

    def __init__(self, owner: Strategies, stages: Stages, role: str) -> None:
        site, self.asked, self.demand = owner.site, owner.asked, owner.demand
        self.stages, self.layers, self.far = stages, owner.costs.layers, FAR[role]
        self.ranks = [owner.ranks(stage) for stage in stages]
        self.hops = [owner.hop(source, target) for source, target in pairwise(stages)]
        self.waves = min(len(stages), self.demand.waves)
        self.kv = [owner.costs.kv_bytes / len(stage) for stage in stages]  # of a token and layer on each rank
        self.row_bytes = owner.costs.row_bytes()
        self.added_s = [self.asked.added_s(ranks) if role == MIXED else 0.0 for ranks in self.ranks]  # of a layer, by a prompt
        self.prompt_tokens = self.demand.input_tokens if role == MIXED else 0.0
        last = len(stages) - 1
        self.held, self.layer = [], []
        for number, ranks in enumerate(self.ranks):
            held = self.asked.bytes(ranks)
            self.held.append(held.fixed + held.first * (number == 0) + held.last * (number == last))
            self.layer.append(held.layer)
        self.memory = [float(site.memory_bytes[stage[0]]) for stage in stages]
        self.kv_most = [float(site.kv_bytes[stage[0]]) for stage in stages]

    def prefill(self) -> Strategy | None:
        """One prompt in each wave."""
        fixed_s, slopes = self._prompt_times
        cut = shortest_cycle(self.layers, fixed_s, slopes, self._prompt_layers, self.waves)
        if cut is None:
            return None
        cycle_s, counts = cut
        latency_s = sum(fixed_s) + sum(slope * count for slope, count in zip(slopes, counts, strict=True))
        return Strategy(self.stages, tuple(counts), self.waves, latency_s, 1 / cycle_s)

    @cached_property
    def least_prompt_s(self) -> tuple[float, float]:
        """Latency of a prompt, and seconds between two, below which no cut of the layers gets; inf where none fits."""
        fixed_s, slopes = self._prompt_times
        counts = least_sum(self.layers, slopes, self._prompt_layers)
        if counts is None:
            return inf, inf
        least_s = sum(fixed_s) + sum(slope * count for slope, count in zip(slopes, counts, strict=True))
        return least_s, max(least_s / self.waves, self._even_s(fixed_s, slopes))

    @cached_property
    def _prompt_times(self) -> tuple[list[float], list[float]]:
        return self._times([self.asked.prefill(ranks) for ranks in self.ranks], self.demand.input_tokens)

    @cached_property
    def _prompt_layers(self) -> list[int]:
        return self._most_layers(max(self.demand.longest, self.waves * self.demand.input_tokens))

    def _even_s(self, fixed_s: Sequence[float], slopes: Sequence[float]) -> float:
        """The slowest stage's time if layers could be cut anyhow: no cut's is less."""
        return (self.layers + sum(one / slope for one, slope in zip(fixed_s, slopes, strict=True))) / sum(1 / slope for slope in slopes)

    def many(self, known: float) -> Strategy | None:
        """Decode or mixed, with as many sequences as pay; fewer are not tried where that can gain nothing.

        Args:
            known: rate of another shape; one that cannot exceed it, or is far below it, is not tried on.
        """
        best: Strategy | None = None
        limit = NEAR * self.most_rate
        for sequences in dict.fromkeys(max(floor(part * self.most), self.waves) for part in TRIED):
            one = max(self._many(sequences), key=lambda each: each.rate, default=None)
            if one is not None and (best is None or one.rate > best.rate):
                best = one
            if best is not None and best.rate < limit:
                limit = min(limit, self.whole_rate)
            if limit < known or (best is not None and (best.rate >= limit or best.rate < self.far * known)):
                break
        return best

    def _many(self, sequences: float) -> Iterator[Strategy]:
        """With layers cut for so many sequences, and then as many as that cut holds."""
        fixed_s, slopes = self._many_times(sequences)
        most = self._most_layers(max(self.demand.longest, sequences * self.demand.held))
        queued = [slope + queue_s for slope, queue_s in zip(slopes, self._queued_s(sequences), strict=True)]
        tried = [(slopes, self.waves)]
        if queued != slopes:
            tried += [(queued, len(self.stages)), (queued, self.waves)]  # for the slowest stage alone, and with the sum over all
        for each, waves in tried:
            cut = shortest_cycle(self.layers, fixed_s, each, most, waves)
            if cut is not None:
                _, counts = cut
                held = max(sequences, self._sequences(counts))
                cycle_s = self._many_cycle_s(counts, held)
                rate = most_rate(held / self.waves, cycle_s, self.demand)
                yield Strategy(self.stages, tuple(counts), held, cycle_s * self.waves, rate)

    @cached_property
    def most(self) -> float:
        """Sequences at once, over all cuts of the layers."""
        return self._most_sequences()

    @cached_property
    def most_rate(self) -> float:
        """Requests per second that no cut of the layers exceeds; 0 where none fits."""
        if self.most < self.waves:
            return 0.0
        fixed_s, slopes = self._many_times(self.most)
        least_s = max(self._even_s(fixed_s, slopes), (sum(fixed_s) + self.layers * min(slopes)) / self.waves)
        return most_rate(self.most / self.waves, least_s, self.demand)

    @cached_property
    def whole_rate(self) -> float:
        """As `most_rate`, of whole layers: what the best cut would make if every stage had room for it."""
        cut = shortest_cycle(self.layers, *self._many_times(self.most), [self.layers] * len(self.stages), self.waves)
        return most_rate(self.most / self.waves, cut[0], self.demand) * (1 - EXACT) if cut is not None else 0.0

    def _many_times(self, sequences: float) -> tuple[list[float], list[float]]:
        batch = sequences / self.waves
        prompts = batch / self.demand.output_tokens  # in each step
        fixed_s, slopes = self._times([self.asked.decode(ranks, batch) for ranks in self.ranks], batch + prompts * self.prompt_tokens)
        return fixed_s, [slope + prompts * added_s for slope, added_s in zip(slopes, self.added_s, strict=True)]

    def _many_cycle_s(self, counts: Sequence[int], sequences: float) -> float:
        """Between two batches."""
        fixed_s, slopes = self._many_times(sequences)
        whole_s = [one + slope * count for one, slope, count in zip(fixed_s, slopes, counts, strict=True)]
        queued = zip(whole_s, self._queued_s(sequences), counts, strict=True)
        return max(max(one + queue_s * count for one, queue_s, count in queued), sum(whole_s) / self.waves)

    def _queued_s(self, sequences: float) -> list[float]:
        """[stages] what a layer takes more in the mean because a pipeline's steps queue up behind one with prompts (`estimate.more_often`)."""
        batch = sequences / self.waves
        prompts = batch / self.demand.output_tokens
        chunk = max(1.0, min(self.demand.step_tokens - batch, max(1.0, prompts) * self.demand.input_tokens))
        more = more_often(prompts * self.prompt_tokens / chunk, max(1.0, self.demand.input_tokens / chunk), self.waves) - 1
        return [more * prompts * added_s for added_s in self.added_s]

    def _times(self, seconds: Sequence[Seconds], tokens: float) -> tuple[list[float], list[float]]:
        """Of each stage: what it takes beside its layers, its hop to the next stage included, and what a layer takes."""
        fixed_s = [one.fixed_s for one in seconds]
        fixed_s[-1] += seconds[-1].head_s
        size_bytes = tokens * self.row_bytes
        for number, hop in enumerate(self.hops):
            fixed_s[number] += min([at_once_s + size_bytes * byte_s for at_once_s, byte_s in hop])
        return fixed_s, [max(one.layer_s, 1e-12) for one in seconds]

    def _most_layers(self, tokens: float) -> list[int]:
        """How many layers each stage has room for with the KV of so many tokens."""
        found = []
        for memory, kv_most, held, layer, kv in zip(self.memory, self.kv_most, self.held, self.layer, self.kv, strict=True):
            fits = (memory - held) / (layer + kv * tokens)
            found.append(max(0, min(self.layers, floor(min(fits, kv_most / (kv * tokens)) + 1e-9))))
        return found

    def _most_sequences(self) -> float:
        """At once, over all cuts of the layers; whole ones."""
        demand, layers, stages = self.demand, self.layers, len(self.stages)

        def fits(sequences: float) -> bool:
            most = self._most_layers(max(demand.longest, sequences * demand.held))
            return min(most) >= 1 and sum(most) >= layers

        if stages > layers or not fits(1e-9):
            return 0.0
        if fits(demand.most_sequences):
            return demand.most_sequences
        low, high = 0, floor(demand.most_sequences) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _sequences(self, counts: Sequence[int]) -> float:
        """At once with these layers; whole ones."""
        room = inf
        for memory, kv_most, held, layer, kv, count in zip(self.memory, self.kv_most, self.held, self.layer, self.kv, counts, strict=True):
            room = min(room, min(memory - held - layer * count, kv_most) / (kv * count))
        return min(self.demand.most_sequences, floor(room / self.demand.held + 1e-9))


def most_rate(batch: float, cycle_s: float, demand: Demand) -> float:
    """Requests per second of a group whose stages finish a batch every cycle_s, each with one token of every answer."""
    return batch / (cycle_s * demand.output_tokens)


def ranks_of(site: Site, stage: Sequence[int]) -> Ranks:
    """How a stage's devices look to the costs."""
    if len(stage) == 1:
        return Ranks(int(site.kinds[stage[0]]), 1)
    apart = ~np.eye(len(stage), dtype=bool)
    where = np.ix_(stage, stage)
    return Ranks(int(site.kinds[stage[0]]), len(stage), float(site.latency_s[where][apart].max()), float(site.bytes_per_s[where][apart].min()))


def hop_s(links: Iterable[tuple[float, float]], ranks: Ranks, size_bytes: float) -> float:
    """Activations from stage to stage: to one rank over the fastest link, which hands them on (HexGen's code, cost_model.py: counted twice, as
    scatter and gather)."""
    return min(at_once_s + size_bytes * byte_s for at_once_s, byte_s in hop_lines(links, ranks))


def hop_lines(links: Iterable[tuple[float, float]], ranks: Ranks) -> tuple[tuple[float, float], ...]:
    """(seconds, seconds per byte) of `hop_s` over each link."""
    more = 2 * (ranks.count - 1)
    return tuple((latency_s + more * ranks.latency_s, 1 / speed + more / (ranks.count * ranks.bytes_per_s)) for latency_s, speed in links)


def _positions(one: Strategy, order: Sequence[int]) -> Strategy:
    """The strategy in numbers of places in `order`."""
    places = {device: place for place, device in enumerate(order)}
    return Strategy(tuple(tuple(places[device] for device in stage) for stage in one.stages), one.layers, one.sequences, one.latency_s, one.rate)
