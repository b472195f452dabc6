"""The ablation of the notes: a genetic search over groups instead of guided changes. Roles as each group is relatively best at.

Nothing is known of the paper's own; chosen here: tournaments of three, children of the better parent's groups with some devices as in the other, one
random change each; as much effort as the guided search.
"""

from __future__ import annotations

import numpy as np

from hetserve.planner.hexgen2.changes import drawn
from hetserve.planner.hexgen2.network import Layout, Network, Outcome
from hetserve.planner.hexgen2.search import GROUP, Progress, Search, effort_of
from hetserve.planner.hexgen2.site import DECODE, PREFILL
from hetserve.planner.hexgen2.start import group_counts, with_roles

POPULATION = 24
TOURNAMENT = 3


def evolve(network: Network, search: Search) -> tuple[Outcome | None, Progress]:
    """The best layout of all generations; None: nothing fits."""
    progress = Progress(effort_of(search, len(network.site)))
    rng = np.random.default_rng(search.seed)
    counts = group_counts(network)
    if not counts:
        return None, progress
    people = [_random(network, int(rng.choice(counts)), rng) for _ in range(POPULATION)]
    scores = [_score(network, one, progress) for one in people]
    progress.first, progress.start = max(scores), "groups drawn at random"
    while progress.left > 0:
        better, worse = sorted((_tournament(scores, rng), _tournament(scores, rng)), key=lambda one: -scores[one])
        child = _crossed(people[better], people[worse], rng)
        for change in drawn(network.site, child, rng, 1):
            child = change.apply(child)
        score, weakest = _score(network, child, progress), int(np.argmin(scores))
        if score >= scores[weakest]:
            people[weakest], scores[weakest] = child, score
    best = network.solve(people[int(np.argmax(scores))])
    return best if best.total > 0 else None, progress


def _score(network: Network, layout: Layout, progress: Progress) -> float:
    known = network.strategies.searched
    progress.tried += 1
    total = network.total(layout, network.rates(layout))
    progress.left -= 1 + GROUP * (network.strategies.searched - known)
    return total


def _random(network: Network, count: int, rng: np.random.Generator) -> Layout:
    labels = rng.integers(count, size=len(network.site))
    groups = [tuple(np.flatnonzero(labels == one).tolist()) for one in range(count) if (labels == one).any()]
    return next(with_roles(network, groups), Layout(tuple(groups), (PREFILL, *[DECODE] * (len(groups) - 1))))


def _tournament(scores: list[float], rng: np.random.Generator) -> int:
    return max(rng.integers(len(scores), size=TOURNAMENT).tolist(), key=lambda one: scores[one])


def _crossed(mine: Layout, other: Layout, rng: np.random.Generator) -> Layout:
    """My groups, but one group is as the other parent has it."""
    number = int(rng.integers(len(other.groups)))
    taken = set(other.groups[number])
    kept = [tuple(one for one in group if one not in taken) for group in mine.groups]
    made = [(group, role) for group, role in zip(kept, mine.roles, strict=True) if group] + [(other.groups[number], other.roles[number])]
    return Layout(tuple(group for group, _ in made), tuple(role for _, role in made))
