"""From devices as numbers to a plan's groups: stages with pools that fill the devices' budgets."""

from __future__ import annotations

from collections.abc import Sequence

from hetserve.cost.roofline import token_pages
from hetserve.planner.case import Case
from hetserve.planner.hexgen2.network import Network
from hetserve.planner.hexgen2.strategy import Strategy, ranks_of
from hetserve.spec.plan import MOST_PAGES, Group, Pool, Stage, page_bytes


def group_of(case: Case, network: Network, strategy: Strategy, role: str, workers: Sequence[int] = (), requests_per_s: float = 0.0) -> Group:
    """A group laid out as the strategy says.

    Args:
        workers: devices that hold KV and attend for all of its stages.
    """
    stages, first = [], 0
    for devices, count in zip(strategy.stages, strategy.layers, strict=True):
        stages.append(_stage(case, network, devices, (first, first + count), workers))
        first += count
    return Group(role, tuple(stages), float(requests_per_s))


def _stage(case: Case, network: Network, devices: Sequence[int], layers: tuple[int, int], workers: Sequence[int]) -> Stage:
    """Pools as large as the budgets allow; each rank's holds its share of the KV heads, a worker's serves all stages by their layers."""
    site, model, size_bytes = network.site, case.model, page_bytes(case.model, layers, case.dtype)
    held = network.strategies.asked.bytes(ranks_of(site, devices))
    used = held.fixed + (layers[1] - layers[0]) * held.layer + held.first * (layers[0] == 0) + held.last * (layers[1] == model.layers)
    whole = case.options.max_seqs * token_pages(model.max_positions) * model.kv_heads  # what all slots could ever fill
    whole = MOST_PAGES * len(devices) if case.options.kv_memory_bytes else whole
    share = (layers[1] - layers[0]) / model.layers
    rooms = [(device, min(site.memory_bytes[device] - used, site.kv_bytes[device]), whole // len(devices)) for device in devices]
    rooms += [(device, share * case.kv_bytes(site.names[device], case.attention_room(site.names[device])), whole) for device in workers]
    pools = [Pool(site.names[device], int(min(room // size_bytes, most, MOST_PAGES)), size_bytes) for device, room, most in rooms]
    primary, attention = tuple(site.names[device] for device in devices), tuple(site.names[device] for device in workers)
    return Stage(layers, primary, attention, tuple(pools), case.dtype)
