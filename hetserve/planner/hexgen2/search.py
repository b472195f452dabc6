"""The closed loop: first layouts, maximum flow, changes where it is stuck, again, until nothing gains or the bound on effort is reached.

The paper stops when the flow no longer grows. Chosen here: small clusters take the best of all changes in each round and then try all changes
wherever they are; large ones take all that gain one after the other. After the last gain, a few exchanges at random and again from there (iterated
local search), as long as effort is left. What a change does to rates and flow is computed anew; the partition itself is not run again, as the
notes say the paper does. Deterministic for a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetserve.planner.hexgen2.changes import NOTHING, Change, crowded, drawn, everything, guided
from hetserve.planner.hexgen2.network import Layout, Network, Outcome
from hetserve.planner.hexgen2.site import PREFILL
from hetserve.planner.hexgen2.start import first_layouts

METHODS = ("guided", "random", "genetic")
SMALL = 32  # devices up to which every round takes the best change
WIDE = 12  # devices up to which, when no guided change gains, all others are tried
GROUP = 10  # layouts of known groups that can be looked at while one new group's strategy is searched, about
PATIENCE = 24  # rounds without a gain, where rounds look at a part of all changes
GAIN = 1e-6  # relative: less is none
SURPLUS = 1e-3  # relative growth of what groups could serve that counts as a gain where the flow stays


@dataclass(frozen=True)
class Search:
    """How the planner looks.

    Attributes:
        method: one of METHODS; the others are ablations.
        effort: layouts looked at, at most, over all starts; one with a group that is like none before counts GROUP more for each. 0: by the number
            of devices.
        starts: first layouts that are improved.
        fastest_prefill: prefill groups take the strategy with the highest rate instead of the paper's, the one with the least latency.
    """

    method: str = "guided"
    seed: int = 0
    effort: int = 0
    starts: int = 0
    fastest_prefill: bool = False


@dataclass
class Progress:
    """What has been looked at."""

    left: int  # of the effort
    tried: int = 0
    start: str = ""  # what the best layout began as
    first: float = 0.0  # requests per second of the best first layout


def improve(network: Network, search: Search) -> tuple[Outcome | None, Progress]:
    """The best layout found; None: nothing fits."""
    progress = Progress(effort_of(search, len(network.site)))
    starts = first_layouts(network)
    progress.tried += len(starts)
    starts = starts[: search.starts or (6 if len(network.site) <= SMALL else 2)]
    if not starts:
        return None, progress
    rng = np.random.default_rng(search.seed)
    progress.first = network.total(starts[0], network.rates(starts[0]))
    best: Outcome | None = None
    for number, start in enumerate(starts):
        share = progress.left // (len(starts) - number + (not crowded(start)))  # a share is left for what begins at random
        found = _descend(network, network.solve(start), search, rng, progress, share)
        if best is None or found.total > best.total * (1 + GAIN):
            best, progress.start = found, f"{len(start.groups)} groups" + (f", {len(first)} for prefill" if (first := start.of(PREFILL)) else "")
    assert best is not None
    while progress.left > 0 and not crowded(best.layout):
        kicked = network.solve(_kicked(network, best.layout, rng))
        progress.left -= 1
        found = _descend(network, kicked, search, rng, progress, max(1, progress.left // 4))
        if found.total > best.total * (1 + GAIN):
            best = found
    return best if best.total > 0 else None, progress


def improve_more(network: Network, layout: Layout, search: Search, effort: int) -> tuple[Outcome, int]:
    """The same changes from a layout on, with so much effort at most; and how many layouts were looked at."""
    progress = Progress(effort)
    outcome = _descend(network, network.solve(layout), search, np.random.default_rng(search.seed), progress, effort)
    return outcome, progress.tried


def effort_of(search: Search, devices: int) -> int:
    """What was asked for, or the default."""
    return search.effort or bound(devices)


def bound(devices: int) -> int:
    """The effort by default."""
    return 4000 if devices <= WIDE else 15_000 if devices <= SMALL else max(40_000, 300 * devices)


def _descend(network: Network, outcome: Outcome, search: Search, rng: np.random.Generator, progress: Progress, most: int) -> Outcome:
    """Changes while they gain, and with so much effort at most."""
    stop_at, failed = max(0, progress.left - most), 0
    small = len(network.site) <= SMALL
    while failed < (PATIENCE if search.method == "random" or crowded(outcome.layout) else 1) and progress.left > stop_at:
        better = None
        for changes in _rounds(network, outcome, search, rng, failed):
            better = _best(network, outcome, changes, progress, small)
            if better is not None:
                break
        failed = 0 if better is not None else failed + 1
        outcome = outcome if better is None else network.solve(better)
    return outcome


def _rounds(network: Network, outcome: Outcome, search: Search, rng: np.random.Generator, failed: int) -> Iterator[Iterator[Change]]:
    """Changes to look at, one lot after the other until one gains; `failed` rounds before have not. What is drawn is drawn anew each time."""
    site, width = network.site, 2000 if crowded(outcome.layout) else 4000
    if search.method == "random":
        yield drawn(site, outcome.layout, rng, 64)
        return
    yield guided(site, outcome, rng, width, anywhere=failed % 2 == 1)
    if len(site) <= WIDE:
        yield everything(site, outcome.layout)


def _best(network: Network, outcome: Outcome, changes: Iterator[Change], progress: Progress, small: bool) -> Layout | None:
    """The layout of the best change, or, where there are many, of all that gain one after the other; None: none gains."""
    layout, rates = outcome.layout, outcome.rates
    whole = {role: sum(rates[number] for number in layout.of(role)) for role in network.roles}
    best, best_key, best_sides = NOTHING, (outcome.total, outcome.surplus), whole
    for change in changes:
        if progress.left <= 0:
            break
        base, sides = (NOTHING, whole) if small else (best, best_sides)
        if not change.apart(base):
            continue
        known = network.strategies.searched
        progress.tried += 1
        after = dict(sides)
        for number in change.old:
            after[layout.roles[number]] -= rates[number]
        for devices, role in change.new:
            after[role] += network.strategies.rate(devices, role)
        progress.left -= 1 + GROUP * (network.strategies.searched - known)
        surplus = sum(after.values())
        if not _gains((min(after.values()), surplus), best_key):
            continue
        together = base.plus(change)
        changed = together.apply(layout)
        key = (network.total(changed, network.rates(changed), best_key[0]), surplus)
        if _gains(key, best_key):
            best, best_key, best_sides = together, key, after
    return best.apply(layout) if best.old or best.new else None


def _gains(new: tuple[float, float], old: tuple[float, float]) -> bool:
    """More flow, or as much with more to spare."""
    return new[0] > old[0] * (1 + GAIN) or (new[0] >= old[0] * (1 - 1e-12) and new[1] > old[1] * (1 + SURPLUS))


def _kicked(network: Network, layout: Layout, rng: np.random.Generator) -> Layout:
    """After two or three changes at random."""
    for _ in range(int(rng.integers(2, 4))):
        for change in drawn(network.site, layout, rng, 1):
            layout = change.apply(layout)
    return layout
