"""No layout can serve more than this: an upper bound to hold a plan against."""

from __future__ import annotations

from collections.abc import Sequence

from hetserve.planner.hexgen2.site import Demand, Ranks, Site, StageCosts
from hetserve.planner.hexgen2.strategy import most_rate
from hetserve.solve.fill import shared_rate

RELAXED = (
    "each device's time may be split between prefill and decode, layers may be cut anyhow, nothing is lost to links, fixed times, ranks or "
    "pipelines, and every decode step is as full as the memory of all devices together allows"
)


ATTENDED = "decode attention, which any device may do, takes no time"


def upper_bound(site: Site, costs: StageCosts, demand: Demand, mixed: bool = False, attended: bool = True) -> float:
    """Requests per second of the relaxation above.

    Args:
        mixed: groups do both kinds of work, so that prompts are computed in steps that read the weights anyway.
        attended: primaries do their own decode attention; otherwise it is left out (ATTENDED).
    """
    first, second = rates_apart(site, costs, demand, range(len(site)), mixed, attended)
    return shared_rate(first, second)[0]


def rates_apart(
    site: Site, costs: StageCosts, demand: Demand, devices: Sequence[int], mixed: bool = False, attended: bool = True
) -> tuple[list[float], list[float]]:
    """What each device adds at most to prefill alone and to decode alone, requests per second."""
    total, kv = float(site.memory_bytes.sum()), costs.kv_bytes * costs.layers
    known: dict[int, tuple[float, float]] = {}
    for kind in {int(site.kinds[device]) for device in devices}:
        one = Ranks(kind, 1)
        weights = costs.bytes(one).layer * costs.layers
        sequences = max(1e-9, min(demand.most_sequences, (total - weights) / (demand.held * kv)))
        layer_s = costs.added_s(one, demand.input_tokens) if mixed else costs.prefill(one, demand.input_tokens).layer_s
        prompt_s = max(layer_s * costs.layers, 1e-12)
        step_s = max(costs.decode(one, sequences, sequences * demand.context * attended).layer_s * costs.layers, 1e-12)
        known[kind] = (1 / prompt_s, most_rate(sequences, step_s, demand))
    found = [known[int(site.kinds[device])] for device in devices]
    return [one for one, _ in found], [one for _, one in found]
