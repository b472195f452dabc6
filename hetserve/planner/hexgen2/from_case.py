"""A cluster and its costs as the HexGen-2 planner sees them: a Site, a Demand, and stage costs from the same formulas that dispatcher and simulator
ask.

Chosen here: a stage's time and bytes are made linear in its layers from two stages of different length. Devices are of one kind if they compute
alike, have as much memory and reach others like them on their node by the same links: what ranks cost is asked of one example of each kind, on the
node that has most of it. Only GPUs share layers: the CPU engine has one primary device a stage. How devices slow each other (`Costs.contention`) is
not looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import product

import numpy as np

from hetserve.cost.costs import alike
from hetserve.planner.case import KV_BYTES, Case
from hetserve.planner.hexgen2.site import Bytes, Demand, Floats, Ranks, Seconds, Site
from hetserve.spec.cluster import Device
from hetserve.spec.model import DTYPE_BYTES

MOST_RANKS = 8  # of a stage


def demand_of(case: Case) -> Demand:
    """What the case's load and options ask for."""
    work, options = case.workload, case.options
    longest = max(work.input_tokens + work.output_tokens, options.max_model_len)
    most = min(options.max_seqs, work.concurrency)
    waves = case.model.layers  # as many steps are on their way as a group has stages: control/group.py, depth
    return Demand(work.input_tokens, work.output_tokens, longest, most, waves, options.max_step_tokens)


def site_of(case: Case) -> Site:
    """The cluster's devices, in its order."""
    devices = case.cluster.devices
    numbers, examples = kinds_of(case)
    nodes = {name: number for number, name in enumerate(dict.fromkeys(device.node for device in devices))}
    latency_s, bytes_per_s = _links(case)
    outside = {node.name: node.outside.bytes_per_s for node in case.cluster.nodes if node.outside is not None}
    index = {device.name: number for number, device in enumerate(devices)}
    alone = np.zeros((len(devices), len(devices)), bool)
    for link in case.cluster.links:  # declared one by one: spec/cluster.py, Cluster.shared
        if link.source in index and link.target in index:  # a part of the cluster may be looked at
            alone[index[link.source], index[link.target]] = True
    ranks = [tuple(one for one in (1, 2, 4, 8) if case.model.kv_heads % one == 0 and one <= MOST_RANKS)] * len(examples)
    for device, number in zip(devices, numbers, strict=True):
        if not device.is_gpu:
            ranks[number] = (1,)
    return Site(
        names=tuple(device.name for device in devices),
        kinds=np.array(numbers),
        nodes=np.array([nodes[device.node] for device in devices]),
        memory_bytes=np.array([float(device.memory_bytes) for device in devices]),
        kv_bytes=np.array([_most_kv(case, device) for device in devices]),
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        machines=tuple(nodes),
        outside_bytes_per_s=np.array([outside.get(name, np.inf) for name in nodes]),
        alone=alone,
        degrees=tuple(ranks),
    )


def kind_of(device: Device) -> Hashable:
    """What makes two devices compute alike, with as much memory."""
    return (device.kind, device.isa, 0 if device.is_gpu else len(device.cores), str(device.stretch), device.gpu, device.memory_bytes)


def kinds_of(case: Case) -> tuple[list[int], list[str]]:
    """[devices] which kind each is of, and [kinds] the name of one of it: with as many like it on its node as any."""
    cluster, nodes = case.cluster, defaultdict(list)
    for device in cluster.devices:
        nodes[device.node].append(device)
    kinds: dict[Hashable, int] = {}
    numbers: list[int] = []
    examples: list[str] = []
    most: list[int] = []
    for device in cluster.devices:
        mates = [other.name for other in nodes[device.node] if other is not device and alike(device, other)]
        links = {(link.kind, link.latency_s, link.bytes_per_s) for mate in mates if (link := cluster.link(device.name, mate)) is not None}
        number = kinds.setdefault((kind_of(device), frozenset(links)), len(kinds))
        numbers.append(number)
        if number == len(examples):
            examples.append(device.name)
            most.append(len(mates))
        elif len(mates) > most[number]:
            examples[number], most[number] = device.name, len(mates)
    return numbers, examples


@dataclass(frozen=True)
class CaseCosts:
    """Implements StageCosts.

    Args:
        examples: kind -> the name of a device of that kind.
    """

    case: Case
    examples: tuple[str, ...]

    @property
    def layers(self) -> int:
        return self.case.model.layers

    @property
    def kv_heads(self) -> int:
        return self.case.model.kv_heads

    @property
    def kv_bytes(self) -> float:
        return self.case.model.kv_bytes_per_token(self.case.dtype) / self.layers

    def row_bytes(self) -> float:
        return float(self.case.model.hidden * DTYPE_BYTES[self.case.dtype])

    def bytes(self, ranks: Ranks) -> Bytes:
        """As the case has them of stages of one and two layers."""
        layers = self.layers
        if layers < 3:  # a stage may be all of it: count each piece as if it came with everything
            return Bytes(0.0, 0.0, self._used(ranks, (0, 1)), self._used(ranks, (layers - 1, layers)) if layers > 1 else 0.0)
        one, two = self._used(ranks, (1, 2)), self._used(ranks, (0, 2))
        first, last = self._used(ranks, (0, 1)), self._used(ranks, (layers - 1, layers))
        return Bytes(one - (two - first), two - first, first - one, last - one)

    def prefill(self, ranks: Ranks, tokens: float) -> Seconds:
        """In chunks as large as a step, as the engine computes it."""
        steps = max(1.0, tokens / self.case.options.max_step_tokens)
        chunk = round(tokens / steps)
        return self._seconds(ranks, steps, chunk, 1, 0, tokens**2 / 2 / steps)

    def decode(self, ranks: Ranks, sequences: float, context: float) -> Seconds:
        whole = max(1, round(sequences))
        return self._seconds(ranks, 1.0, whole, whole, round(context), 0.0)

    def added_s(self, ranks: Ranks, tokens: float) -> float:
        step = self.case.step(self.examples[ranks.kind], (0, self.layers), self.case.dtype, ranks.count)
        return (tokens * step.token_s + tokens**2 / 2 * step.pair_s) / self.layers

    def _seconds(self, ranks: Ranks, steps: float, tokens: int, samples: int, context: int, pairs: float) -> Seconds:
        def stage_s(first: int, last: int, sampled: int) -> float:
            step = self.case.step(self.examples[ranks.kind], (first, last), self.case.dtype, ranks.count)
            return step.step_s(tokens, sampled, context, pairs, tokens if context else 0)

        layers = self.layers
        if layers == 1:
            fixed_s, layer_s, head_s = 0.0, stage_s(0, 1, 0), stage_s(0, 1, samples) - stage_s(0, 1, 0)
        else:
            one_s = stage_s(0, 1, 0)
            layer_s = (stage_s(0, layers - 1, 0) - one_s) / (layers - 2) if layers > 2 else one_s
            fixed_s, head_s = one_s - layer_s, stage_s(layers - 1, layers, samples) - one_s
        return Seconds(steps * max(0.0, fixed_s), steps * layer_s, max(0.0, head_s))

    def _used(self, ranks: Ranks, layers: tuple[int, int]) -> float:
        """Bytes beside KV on each rank of a stage."""
        name = self.examples[ranks.kind]
        return float(self.case.device(name).memory_bytes - self.case.primary_room(name, layers, self.case.dtype, ranks.count))


def costs_of(case: Case) -> CaseCosts:
    """Costs whose kinds are numbered as the site's."""
    return CaseCosts(case, tuple(kinds_of(case)[1]))


def _most_kv(case: Case, device: Device) -> float:
    """What KV may take at most: of a GPU all there is, unless told otherwise."""
    return float(case.options.kv_memory_bytes or (np.inf if device.is_gpu else KV_BYTES))


def _links(case: Case) -> tuple[Floats, Floats]:
    """Latency and bandwidth of every pair. Pairs of machines whose links nobody declared or measured one by one are asked once."""
    names = [device.name for device in case.cluster.devices]
    nodes = [device.node for device in case.cluster.devices]
    count = len(names)
    latency_s, bytes_per_s = np.zeros((count, count)), np.full((count, count), np.inf)
    single = {(link.source, link.target) for link in case.cluster.links}
    measured = case.options.profile is not None
    known: dict[tuple[str, str], tuple[float, float]] = {}
    for a, b in product(range(count), range(count)):
        if a == b:
            continue
        alone = measured or (names[a], names[b]) in single
        rates = None if alone else known.get((nodes[a], nodes[b]))
        if rates is None:
            link = case.costs.link_cost(names[a], names[b])
            rates = (link.beta_s, link.bytes_per_s)
            if not alone:
                known[nodes[a], nodes[b]] = rates
        latency_s[a, b], bytes_per_s[a, b] = rates
    return latency_s, bytes_per_s
