"""The search alone: from a case to groups with strategies, before they become a plan. Every planner that forms groups freely begins here."""

from __future__ import annotations

from collections.abc import Sequence

from hetserve.errors import UsageError
from hetserve.planner.case import Case
from hetserve.planner.hexgen2.from_case import costs_of, demand_of, site_of
from hetserve.planner.hexgen2.genetic import evolve
from hetserve.planner.hexgen2.network import Layout, Network, Outcome
from hetserve.planner.hexgen2.others import others
from hetserve.planner.hexgen2.search import GAIN, METHODS, Progress, Search, effort_of, improve, improve_more
from hetserve.planner.hexgen2.site import ROLES
from hetserve.planner.hexgen2.strategy import Strategies
from hetserve.planner.hexgen2.told import Found, search_told

MORE = 4  # of the effort, what going on with prefill strategies by rate may take: one part in so many
PAYS = 0.01  # relative: what it has to bring


def network_of(case: Case, search: Search, kind: type[Network] = Network) -> Network:
    """The case as the search sees it.

    Raises:
        UsageError: there is no such method.
    """
    if search.method not in METHODS:
        raise UsageError(f"there is no search called {search.method!r}", f"known: {', '.join(METHODS)}")
    site, costs, demand = site_of(case), costs_of(case), demand_of(case)
    return kind(site, Strategies(site, costs, demand, search.fastest_prefill))


def find(network: Network, search: Search) -> Found | None:
    """The best layout of the search, or that of another system where it is better; None: nothing fits.

    Guided search for groups of two kinds goes on from there with prefill strategies by rate, not latency as the paper has them: prompts take longer
    then, so that this has to bring PAYS.
    """
    outcome, progress = (evolve if search.method == "genetic" else improve)(network, search)
    outcome, came_from = _or_another(network, outcome, search_told(search, progress))
    if outcome is None:
        return None
    if search.method == "guided" and not search.fastest_prefill and network.roles == ROLES:
        by_rate = Network(network.site, network.strategies.by_rate())
        found, tried = improve_more(by_rate, outcome.layout, search, effort_of(search, len(network.site)) // MORE)
        more, told = _or_another(by_rate, found, f"{came_from}; then all by rate, {tried} more layouts, better than {outcome.total:.4g} requests/s")
        if more is not None and more.total > outcome.total * (1 + PAYS):
            return found_of(by_rate, more, progress, told)
    return found_of(network, outcome, progress, came_from)


def _or_another(network: Network, outcome: Outcome | None, came_from: str) -> tuple[Outcome | None, str]:
    """What was found, or another system's layout where that is better."""
    for name, layout in others(network).items():
        other = network.solve(layout)
        if other.total > (outcome.total if outcome else 0.0) * (1 + GAIN):
            outcome, came_from = other, f"as {name} would lay it out, better than what was {came_from}"
    return outcome, came_from


def found_of(network: Network, outcome: Outcome, progress: Progress, came_from: str) -> Found:
    """The layout with its load spread, idle groups dropped, the strategies of the others."""
    outcome = network.spread(outcome)
    outcome = network.spread(network.solve(some(outcome.layout, in_order(network, outcome))))
    layout = outcome.layout
    best = [network.strategies.best(group, role) for group, role in zip(layout.groups, layout.roles, strict=True)]
    strategies = tuple(one for one in best if one is not None)
    assert len(strategies) == len(layout.groups)
    return Found(network.site, network, outcome, progress, strategies, came_from)


def in_order(network: Network, outcome: Outcome) -> list[int]:
    """Groups that do something, prefill first, the fastest of each first."""
    layout = outcome.layout
    order = sorted(range(len(layout.groups)), key=lambda one: (network.roles.index(layout.roles[one]), -outcome.rates[one], layout.groups[one]))
    return [one for one in order if outcome.flows[one] > 0]


def some(layout: Layout, numbers: Sequence[int]) -> Layout:
    """Some of its groups, in that order."""
    return Layout(tuple(layout.groups[one] for one in numbers), tuple(layout.roles[one] for one in numbers))
