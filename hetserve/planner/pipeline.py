"""Pipelines over unlike devices: layers cut so that the slowest stage is as fast as it can be and every stage fits its budget."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from math import inf

import numpy as np

from hetserve.planner.case import Case
from hetserve.planner.draft import Part, group
from hetserve.planner.estimate import Load, dense_s, load, rated, whole_prompt_s
from hetserve.planner.kinds import Ranks, renamed, signature
from hetserve.planner.whole import product_s, whole_group
from hetserve.solve.partition import Floats, best_cuts
from hetserve.spec.plan import Group

ORDERED = 4  # up to so many stages in every order; more: fastest first
ROOMS = (1, 8, 32, 128, 256)  # sequences that every stage must have room for: a cut for more holds more, and its slowest stage may be slower


def pipeline(case: Case, stages: Sequence[Ranks], attention: tuple[str, ...] = (), role: str = "mixed") -> Group | None:
    """The pipeline over all of `stages` with the best rate over orders and batch sizes; None where none fits.

    Args:
        stages: the devices of each; the ranks of a stage are alike and in one node.
        attention: devices that hold KV for every stage.
    """
    names = [name for ranks in stages for name in ranks] + list(attention)
    like = (tuple(map(len, stages)), role, signature(case, names))
    made, first = case.remembered(("pipeline", *like), lambda: (_best(case, stages, attention, role), names))
    return made and renamed(made, dict(zip(first, names, strict=True)))


def _best(case: Case, stages: Sequence[Ranks], attention: tuple[str, ...], role: str) -> Group | None:
    if len(stages) == 1:
        return whole_group(case, stages[0], role, attention)
    if len(stages) > case.model.layers:
        return None
    cuts = case.remembered(("cuts", tuple(stages), role), lambda: _every_cut(case, stages, role))
    made = [group(case, [replace(part, attention=attention) for part in parts], role) for parts in cuts]
    return max((rated(case, one) for one in made if one is not None), key=lambda one: one.requests_per_s, default=None)


def _every_cut(case: Case, stages: Sequence[Ranks], role: str) -> list[tuple[Part, ...]]:
    """Stages without attention workers, each way once."""
    runnings = (case.options.max_seqs, 8)  # a slow stage counts differently in large and in small batches
    return list(dict.fromkeys(parts for order in _orders(case, stages) for one in runnings for parts in _cuts(case, order, role, one / len(order))))


def _orders(case: Case, stages: Sequence[Ranks]) -> list[tuple[Ranks, ...]]:
    """Those to try; no two alike to the costs."""
    fastest_first = tuple(sorted(stages, key=lambda ranks: product_s(case, ranks)))
    if len(stages) > ORDERED:
        return [fastest_first]
    orders: dict[Hashable, tuple[Ranks, ...]] = {}
    for order in permutations(fastest_first):
        orders.setdefault(tuple((case.like(ranks[0]), case.device(ranks[0]).node, len(ranks)) for ranks in order), order)
    return list(orders.values())


def _cuts(case: Case, order: Sequence[Ranks], role: str, running: float) -> Iterator[tuple[Part, ...]]:
    """Stages with weights stored as each device multiplies them fastest, or in the plan's own dtype, which takes less room."""
    work = load(case, running, role)
    for as_fastest in (True, False) if any(len(case.weights(ranks[0])) > 1 for ranks in order) else (True,):
        kinds = [case.weights(ranks[0]) if as_fastest else (case.dtype,) for ranks in order]
        counts: list[int] = []
        for room in ROOMS:
            times = []
            for number, (ranks, some) in enumerate(zip(order, kinds, strict=True)):
                ends = (number == 0, number == len(order) - 1)
                times.append([_times_s(case, ranks, kind, ends, work, role, room) for kind in some])
            if counts and all(len(each) == 1 and each[0][count] < inf for each, count in zip(times, counts, strict=True)):
                continue  # the cut for less room has so much
            cuts = best_cuts(np.array([np.min(some, axis=0) for some in times]))
            if cuts is None:
                break
            counts = [last - first for first, last in cuts[1]]
            parts = []
            for layers, ranks, some, each, count in zip(cuts[1], order, kinds, times, counts, strict=True):
                seconds = [float(one[count]) for one in each]
                parts.append(Part(layers, ranks, some[seconds.index(min(seconds))]))
            yield tuple(parts)


def _times_s(case: Case, ranks: Ranks, weights: str, ends: tuple[bool, bool], work: Load, role: str, room: int) -> Floats:
    """[layers + 1] seconds of a step on a stage with so many layers; inf where it has no room for them and the KV of `room` sequences.

    Args:
        ends: whether the model's first and last layer are the stage's.
    """
    device, count = ranks[0], len(ranks)
    kind = (case.like(device), count, weights, *ends)
    numbers = np.arange(case.model.layers + 1)

    def ranges() -> list[tuple[int, int] | None]:
        return [_range(case, layers, *ends) for layers in numbers.tolist()]

    def seconds() -> Floats:
        costs = [where and case.step(device, where, weights, count) for where in ranges()]
        return np.array([(whole_prompt_s(case, cost) if role == "prefill" else dense_s(cost, work)) if cost else inf for cost in costs])

    def used() -> Floats:
        memory = case.device(device).memory_bytes
        return np.array([float(memory - case.primary_room(device, where, weights, count)) if where else inf for where in ranges()])

    needed = case.model.kv_bytes_per_token(case.dtype) / case.model.layers / count  # of a layer and token, on each rank
    length = max(case.workload.input_tokens + case.workload.output_tokens, case.options.max_model_len) * room
    fits = case.device(device).memory_bytes - case.remembered(("used", *kind), used) >= needed * length * numbers
    return np.where(fits, case.remembered(("times", *kind, work, role), seconds), inf)


def _range(case: Case, layers: int, first: bool, last: bool) -> tuple[int, int] | None:
    """Some range of so many layers; None where there is none that begins, or ends, as it should."""
    total = case.model.layers
    begin = 0 if first else total - layers if last else 1
    end = begin + layers
    return (begin, end) if layers and (end == total if last else end < total) else None
