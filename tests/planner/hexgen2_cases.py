"""Made-up sites and costs for the HexGen-2 planner: GPUs by three numbers of their data sheets, machines with links, random and large clusters; and
the best layout of a small one by looking at all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations, product
from math import floor

import numpy as np

from hetserve.planner.estimate import more_often
from hetserve.planner.hexgen2.network import Layout, Network
from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL, Bytes, Demand, Ranks, Seconds, Site
from hetserve.planner.hexgen2.strategy import Strategies, Strategy, hop_s, most_rate, ranks_of

GPUS = {  # dense 16-bit FLOP/s, bytes/s, bytes
    "h100": (989e12, 3.35e12, 80e9),
    "a100": (312e12, 2.0e12, 80e9),
    "l40": (181e12, 0.86e12, 48e9),
    "a6000": (155e12, 0.77e12, 48e9),
    "3090": (71e12, 0.94e12, 24e9),
    "p100": (19e12, 0.73e12, 12e9),
}
NAMES = tuple(GPUS)
NVLINK, PCIE, FAST, SLOW = (5e-6, 300e9), (1e-5, 25e9), (2e-5, 12.5e9), (5e-5, 1.25e9)


@dataclass(frozen=True)
class Sheets:
    """Half of the peaks, ring all-reduces, no time between kernels but `step_s`. Llama-2-70B's shape unless told otherwise."""

    layers: int = 80
    layer_parameters: float = 0.856e9
    hidden: int = 8192
    kv_heads: int = 8
    kv_bytes: float = 2 * 8 * 128 * 2
    vocab: int = 32000
    step_s: float = 1e-3

    def row_bytes(self) -> float:
        return 2.0 * self.hidden

    def bytes(self, ranks: Ranks) -> Bytes:
        table = 2.0 * self.vocab * self.hidden / ranks.count
        return Bytes(1e9, 2 * self.layer_parameters / ranks.count, table, table)

    def prefill(self, ranks: Ranks, tokens: float) -> Seconds:
        return self._seconds(ranks, tokens, 2 * self.hidden * tokens**2, 1.0)

    def decode(self, ranks: Ranks, sequences: float, context: float) -> Seconds:
        _, read, _ = GPUS[NAMES[ranks.kind]]
        plain = self._seconds(ranks, sequences, 0.0, sequences)
        return Seconds(plain.fixed_s, plain.layer_s + context * self.kv_bytes / (0.5 * read * ranks.count), plain.head_s)

    def added_s(self, ranks: Ranks, tokens: float) -> float:
        flops, _, _ = GPUS[NAMES[ranks.kind]]
        compute_s = (2 * self.layer_parameters * tokens + 2 * self.hidden * tokens**2) / (0.5 * flops)
        return compute_s / ranks.count + 4 * (ranks.count - 1) * tokens * self.row_bytes() / (ranks.count * ranks.bytes_per_s)

    def _seconds(self, ranks: Ranks, tokens: float, pair_flops: float, samples: float) -> Seconds:
        flops, read, _ = GPUS[NAMES[ranks.kind]]
        compute_s = (2 * self.layer_parameters * tokens + pair_flops) / (0.5 * flops)
        layer_s = max(compute_s, 2 * self.layer_parameters / (0.5 * read)) / ranks.count
        head = self.vocab * self.hidden
        head_s = max(2 * head * samples / (0.5 * flops), 2 * head / (0.5 * read)) / ranks.count
        if ranks.count > 1:
            layer_s += 4 * (ranks.count - 1) * (ranks.latency_s + tokens * self.row_bytes() / (ranks.count * ranks.bytes_per_s))
        return Seconds(self.step_s, layer_s, head_s)


SMALL = Sheets(layers=8, layer_parameters=0.8e9, hidden=5120, kv_heads=40, kv_bytes=2 * 40 * 128 * 2)  # a few layers: every cut can be tried


def site(machines: Sequence[tuple[Sequence[str], tuple[float, float], tuple[float, float]]], shared: bool = False) -> Site:
    """Machines of (GPUs, link inside, link to others); `shared`: all that a machine sends goes over one such link, and so does what it receives."""
    kinds = np.array([NAMES.index(gpu) for gpus, _, _ in machines for gpu in gpus])
    nodes = np.repeat(np.arange(len(machines)), [len(gpus) for gpus, _, _ in machines])
    near = np.array([inside for _, inside, _ in machines])[nodes]
    far = np.array([outside for _, _, outside in machines])[nodes]
    same = nodes[:, None] == nodes
    latency_s = np.where(same, near[:, None, 0], np.maximum(far[:, None, 0], far[:, 0]))
    bytes_per_s = np.where(same, near[:, None, 1], np.minimum(far[:, None, 1], far[:, 1]))
    memory = np.array([GPUS[NAMES[kind]][2] for kind in kinds])
    names = tuple(f"{NAMES[kind]}-{number}" for number, kind in enumerate(kinds))
    outside = np.array([bytes_per_s if shared else np.inf for _, _, (_, bytes_per_s) in machines])
    called, unshared, degrees = tuple(f"machine-{number}" for number in range(len(machines))), np.zeros_like(same), ((1, 2, 4, 8),) * len(NAMES)
    return Site(names, kinds, nodes, memory, np.full(len(kinds), np.inf), latency_s, bytes_per_s, called, outside, unshared, degrees)


def random_site(seed: int, devices: int, shared: bool = False) -> Site:
    """Machines of one to four GPUs, mostly of one kind, joined by anything from NVLink to slow Ethernet."""
    rng = np.random.default_rng(seed)
    machines, left = [], devices
    while left:
        count = min(left, int(rng.integers(1, 5)))
        kind = str(rng.choice(NAMES))
        gpus = [kind if rng.random() < 0.85 else str(rng.choice(NAMES)) for _ in range(count)]
        machines.append((gpus, (NVLINK, PCIE)[int(rng.integers(2))], (FAST, SLOW)[int(rng.integers(2))]))
        left -= count
    return site(machines, shared)


def large_site(devices: int, seed: int = 0) -> Site:
    """Machines of eight GPUs, or four of the small ones, in about the paper's mixture."""
    rng = np.random.default_rng(seed)
    machines, left = [], devices
    while left > 0:
        gpu = str(rng.choice(["h100", "a100", "l40", "a6000"], p=[0.15, 0.3, 0.2, 0.35]))
        count = min(left, 8 if gpu in ("h100", "a100") else 4)
        machines.append(([gpu] * count, NVLINK if gpu in ("h100", "a100") else PCIE, FAST))
        left -= count
    return site(machines)


def het1() -> Site:
    """2 H100 + 6 A100 + 4 L40 + 8 A6000; machines and links are ours."""
    fours = [(["l40"] * 4, PCIE, FAST), (["a6000"] * 4, PCIE, FAST), (["a6000"] * 4, PCIE, FAST)]
    return site([(["h100"] * 2, NVLINK, FAST), (["a100"] * 6, NVLINK, FAST), *fours])


DEMAND = Demand(input_tokens=700.0, output_tokens=200.0, longest=900.0, most_sequences=256.0, waves=2)


def best_of_all(over: Site, costs: Sheets, demand: Demand, fastest_prefill: bool = False) -> float:
    """Requests per second of the best layout: every partition of every subset, all roles, all ranks, orders and cuts. Up to six devices."""
    brute = Brute(over, costs, demand, fastest_prefill)
    network = Network(over, brute)
    best = 0.0
    for groups in partitions(tuple(range(len(over)))):
        rates = [(brute.rate(group, PREFILL), brute.rate(group, DECODE)) for group in groups]
        for roles in product((PREFILL, DECODE), repeat=len(groups)):
            chosen = [pair[role == DECODE] for pair, role in zip(rates, roles, strict=True)]
            layout = Layout(groups, roles)
            if min(chosen, default=0.0) > 0 and network.most(layout, chosen) > best:
                best = max(best, network.solve(layout, chosen).total)
    return best


def best_mixed_of_all(over: Site, costs: Sheets, demand: Demand) -> float:
    """As best_of_all, of groups that do both kinds of work."""
    brute = Brute(over, costs, demand)
    return max(sum(brute.rate(group, MIXED) for group in groups) for groups in partitions(tuple(range(len(over)))))


def partitions(devices: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All ways to put devices into groups, some into none."""
    if not devices:
        yield ()
        return
    first, rest = devices[0], devices[1:]
    for groups in partitions(rest):
        yield groups
        yield ((first,), *groups)
        for number, group in enumerate(groups):
            yield (*groups[:number], (first, *group), *groups[number + 1 :])


class Brute(Strategies):
    """Strategies by trying all ranks, orders and cuts of layers, with as many sequences as each cut holds; nothing is pruned."""

    def _search(self, devices: list[int], role: str) -> Strategy | None:
        best = None
        for stages in _all_shapes(self.site, devices):
            if len(stages) <= self.costs.layers:
                for one in self._cuts(stages, role):
                    if best is None or self._key(one, role) > self._key(best, role):
                        best = one
        return best

    def _cuts(self, stages: tuple[tuple[int, ...], ...], role: str) -> Iterator[Strategy]:
        """Of prefill only the cut with the shortest cycle, as the rule is; of others all."""
        demand, count = self.demand, len(stages)
        waves = min(count, demand.waves)
        cuts = _cuts(self.costs.layers, count)
        ranks = [ranks_of(self.site, stage) for stage in stages]
        sized = [self.asked.bytes(one) for one in ranks]
        fixed = np.array([one.fixed + one.first * (n == 0) + one.last * (n == count - 1) for n, one in enumerate(sized)])
        layer = np.array([one.layer for one in sized])
        kv = np.array([self.costs.kv_bytes / len(stage) for stage in stages])
        memory = np.array([self.site.memory_bytes[stage[0]] for stage in stages])
        tokens = ((memory - fixed - cuts * layer) / (kv * cuts)).min(axis=1)
        least = max(demand.longest, waves * (demand.input_tokens if role == PREFILL else demand.held))
        sound = tokens >= least
        cuts, tokens = cuts[sound], tokens[sound]
        if not len(cuts):
            return
        if role == PREFILL:
            whole_s = self._whole_s(stages, ranks, cuts, [self.asked.prefill(one) for one in ranks], demand.input_tokens)
            cycle_s = np.maximum(whole_s.max(axis=1), whole_s.sum(axis=1) / waves)
            best = int(cycle_s.argmin())
            yield Strategy(stages, tuple(cuts[best].tolist()), waves, float(whole_s[best].sum()), 1 / float(cycle_s[best]))
            return
        for cut, held in zip(cuts, tokens, strict=True):
            batch = min(demand.most_sequences, floor(held / demand.held + 1e-9)) / waves
            prompts = batch / demand.output_tokens if role == MIXED else 0.0
            rows = batch + prompts * demand.input_tokens
            (whole_s,) = self._whole_s(stages, ranks, cut[None], [self.asked.decode(one, batch) for one in ranks], rows)
            prompt_s = prompts * cut * np.array([self.costs.added_s(one, demand.input_tokens) for one in ranks])
            whole_s = whole_s + prompt_s
            chunk = max(1.0, min(demand.step_tokens - batch, max(1.0, prompts) * demand.input_tokens))
            often = prompts * demand.input_tokens / chunk
            queued_s = (more_often(often, max(1.0, demand.input_tokens / chunk), waves) - 1) * prompt_s
            cycle_s = max((whole_s + queued_s).max(), whole_s.sum() / waves)
            yield Strategy(stages, tuple(cut.tolist()), batch * waves, cycle_s * waves, most_rate(batch, cycle_s, demand))

    def _whole_s(self, stages, ranks, cuts, seconds, tokens: float) -> np.ndarray:
        """[cuts, stages]"""
        fixed_s = np.array([one.fixed_s for one in seconds])
        fixed_s[-1] += seconds[-1].head_s
        for n in range(len(stages) - 1):
            fixed_s[n] += hop_s(self.links(stages[n], stages[n + 1]), ranks[n + 1], tokens * self.costs.row_bytes())
        return fixed_s + cuts * np.array([one.layer_s for one in seconds])


@cache
def _cuts(layers: int, stages: int) -> np.ndarray:
    """[cuts, stages] all ways to share the layers out."""
    ends = np.array([(0, *inner, layers) for inner in combinations(range(1, layers), stages - 1)])
    return np.diff(ends, axis=1)


def _all_shapes(over: Site, devices: Sequence[int]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All ranks in all orders; no two alike."""
    seen = set()
    for sets in _sets(over, tuple(devices)):
        for order in permutations(sets):
            like = tuple((len(stage), over.kinds[stage[0]], over.nodes[stage[0]]) for stage in order)
            if like not in seen:
                seen.add(like)
                yield order


def _sets(over: Site, devices: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Partitions of all the devices into sets that may share layers."""
    for groups in partitions(devices):
        if sum(map(len, groups)) == len(devices) and all(
            len(one) in over.degrees[over.kinds[one[0]]] and len({(over.kinds[d], over.nodes[d]) for d in one}) == 1 for one in groups
        ):
            yield groups


def random_case(seed: int, devices: int) -> tuple[Site, Sheets, Demand]:
    """A random cluster, a model that takes 13 to 96 GB, and one of the papers' four kinds of load."""
    sizes = (0.8e9, 2e9, 4e9, 6e9)
    input_tokens, output_tokens, longest = ((700.0, 200.0, 900.0), (200.0, 600.0, 800.0), (2000.0, 100.0, 2100.0), (128.0, 128.0, 512.0))[
        seed // 4 % 4
    ]
    demand = Demand(input_tokens, output_tokens, longest, most_sequences=256.0, waves=2)
    return random_site(seed, devices), replace(SMALL, layer_parameters=sizes[seed % 4]), demand
