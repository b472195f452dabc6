"""Layers on units so that the most flows through pipelines that share no unit: Helix's placement as one integer program, solved by CP-SAT.

Units hold ranges of blocks of layers; a pipeline is a way from the first block to the last on which each unit goes on where the one before ends.
Helix (ASPLOS 2025) lets ways share units; here every unit is on one way at most, because a group of stages is what can be run. The solver has one
worker and stops after a fixed amount of work, not time: the same input always gives the same pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNITS = 100_000  # integer units that the fastest unit's rate is cut into


@dataclass(frozen=True)
class Pipelines:
    """Attributes:
    total: the sum of the pipelines' flows.
    bound: no placement's total is larger.
    ways: of each pipeline its units in order, each with its first block and the one behind its last.
    """

    total: float
    bound: float
    ways: tuple[tuple[tuple[int, int, int], ...], ...]


def best_pipelines(rates: Floats, carried: Floats, alike: Sequence[int], effort: float) -> Pipelines:
    """The pipelines with the largest total found.

    Args:
        rates: [units, blocks + 1] what each unit lets through if it holds so many blocks; 0: it has no room for them, or holds none.
        carried: [units, units] what the link from one to another lets through at most.
        alike: [units] those with one number have equal rates and links.
        effort: of the solver, in its own deterministic seconds.
    """
    from ortools.sat.python import cp_model  # here: planners are imported where nothing is planned

    count, blocks = rates.shape[0], rates.shape[1] - 1
    top = float(rates.max(initial=0.0))
    if not top:
        return Pipelines(0.0, 0.0, ())
    model = cp_model.CpModel()
    whole = np.floor(rates / top * UNITS).astype(np.int64)
    first = [model.new_int_var(0, blocks, f"first {one}") for one in range(count)]
    held = [model.new_int_var(0, int(np.flatnonzero(whole[one]).max(initial=0)), f"held {one}") for one in range(count)]
    passed = [model.new_int_var(0, int(whole[one].max()), f"passed {one}") for one in range(count)]
    begun = [model.new_int_var(0, int(whole[one].max()), f"begun {one}") for one in range(count)]
    used, begins, ends = ([model.new_bool_var(f"{name} {one}") for one in range(count)] for name in ("used", "begins", "ends"))
    arcs = {}
    for one in range(count):
        model.add_element(held[one], whole[one].tolist(), limit := model.new_int_var(0, UNITS, f"limit {one}"))
        model.add(passed[one] <= limit)
        model.add(held[one] >= 1).only_enforce_if(used[one])
        model.add(held[one] == 0).only_enforce_if(~used[one])
        model.add(first[one] == 0).only_enforce_if(begins[one])
        model.add(first[one] + held[one] == blocks).only_enforce_if(ends[one])
        model.add(begun[one] <= passed[one])
        model.add(begun[one] == 0).only_enforce_if(~begins[one])
        for other in range(count):
            if one != other and held[one].proto.domain[1] and held[other].proto.domain[1]:
                arc = arcs[one, other] = model.new_bool_var(f"{one} to {other}")
                model.add(first[one] + held[one] == first[other]).only_enforce_if(arc)
                model.add(passed[one] == passed[other]).only_enforce_if(arc)
                if carried[one, other] < top:
                    model.add(passed[one] <= int(carried[one, other] / top * UNITS)).only_enforce_if(arc)
    for one in range(count):
        model.add_exactly_one([~used[one], begins[one], *(arc for (_, target), arc in arcs.items() if target == one)])
        model.add_exactly_one([~used[one], ends[one], *(arc for (source, _), arc in arcs.items() if source == one)])
    for kind in set(alike):
        for one, other in pairwise(unit for unit in range(count) if alike[unit] == kind):  # no two orders of what is alike
            model.add(passed[one] >= passed[other])
    work = int((whole * np.arange(blocks + 1)).max(axis=1).sum())
    model.add(blocks * sum(begun) <= work)  # each way takes all blocks; no unit does more than it can
    model.maximize(sum(begun))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(model)
    assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN), solver.status_name(status)
    if status == cp_model.UNKNOWN:
        return Pipelines(0.0, float("inf"), ())
    follows = {source: target for (source, target), arc in arcs.items() if solver.boolean_value(arc)}
    ways = []
    for one in range(count):
        if solver.boolean_value(begins[one]) and solver.value(begun[one]) > 0:
            way = [one]
            while way[-1] in follows:
                way.append(follows[way[-1]])
            ways.append(tuple((unit, int(solver.value(first[unit])), int(solver.value(first[unit]) + solver.value(held[unit]))) for unit in way))
    return Pipelines(solver.objective_value / UNITS * top, solver.best_objective_bound / UNITS * top, tuple(ways))
