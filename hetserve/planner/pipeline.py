"""Pipelines over unlike devices: layers cut so that the slowest stage is as fast as it can be and every stage fits its budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import inf

from hetserve.planner.case import Case
from hetserve.planner.draft import Part, group
from hetserve.planner.estimate import Load, dense_s, load, rated
from hetserve.planner.whole import product_s
from hetserve.solve.partition import best_cuts
from hetserve.spec.plan import Group

ORDERED = 4  # up to so many devices in every order; more: fastest first


def pipeline(case: Case, devices: Sequence[str], attention: tuple[str, ...] = ()) -> Group | None:
    """The pipeline over all of `devices` with the best rate over orders and batch sizes; None where none fits.

    Args:
        attention: devices that hold KV for every stage.
    """
    found: dict[tuple[Part, ...], Group] = {}
    for order in _orders(case, devices):
        for running in (case.options.max_seqs, 8):  # a slow stage counts differently in large and in small batches
            for as_fastest in (True, False):
                parts = _cut(case, order, attention, load(case, running / len(order)), as_fastest)
                if parts is not None and parts not in found and (made := group(case, parts)) is not None:
                    found[parts] = rated(case, made)
    return max(found.values(), key=lambda one: one.requests_per_s, default=None)


def _orders(case: Case, devices: Sequence[str]) -> list[tuple[str, ...]]:
    fastest_first = tuple(sorted(devices, key=lambda name: product_s(case, name)))
    return list(permutations(fastest_first)) if len(devices) <= ORDERED else [fastest_first]


def _cut(case: Case, order: Sequence[str], attention: tuple[str, ...], work: Load, as_fastest: bool) -> tuple[Part, ...] | None:
    """The stages; weights stored as each device multiplies them fastest, or in the plan's own dtype, which takes less room."""
    needed = case.costs.model.kv_bytes_per_token(case.dtype) / case.model.layers  # of a layer and token
    length = case.workload.input_tokens + case.workload.output_tokens
    if case.options.max_model_len:
        length = max(length, case.options.max_model_len)
    best: dict[tuple[int, int, int], tuple[float, str]] = {}

    def seconds(stage: int, first: int, last: int) -> float:
        layers, time_s, kind = (first, last), inf, case.dtype
        for one in case.weights(order[stage]) if as_fastest else (case.dtype,):
            if case.primary_room(order[stage], layers, one) >= needed * length * (last - first):
                one_s = dense_s(case, order[stage], layers, one, work)
                if one_s < time_s:
                    time_s, kind = one_s, one
        best[stage, first, last] = time_s, kind
        return time_s

    cuts = best_cuts(case.model.layers, len(order), seconds)
    if cuts is None:
        return None
    return tuple(Part(layers, order[stage], best[stage, *layers][1], attention) for stage, layers in enumerate(cuts[1]))
