"""The whole model on one device, or shared by ranks, its weights stored as the device is fastest with."""

from __future__ import annotations

from hetserve.planner.case import Case
from hetserve.planner.draft import Part, group
from hetserve.planner.estimate import rated
from hetserve.planner.kinds import Ranks
from hetserve.spec.plan import Group


def whole_group(case: Case, ranks: Ranks, role: str = "mixed", attention: tuple[str, ...] = ()) -> Group | None:
    """One stage, None where it does not fit."""
    options = [group(case, [Part(case.whole, ranks, weights, attention)], role) for weights in case.weights(ranks[0])]
    fitting = [rated(case, one) for one in options if one is not None]
    return max(fitting, key=lambda one: one.requests_per_s, default=None)


def product_s(case: Case, ranks: Ranks) -> float:
    """Seconds of products per token of a large step, weights stored as they are multiplied fastest."""
    return min(case.step(ranks[0], case.whole, kind, len(ranks)).token_s for kind in case.weights(ranks[0]))


def fastest_device(case: Case) -> str:
    """The device with the fastest products, the first of equals."""
    return min((device.name for device in case.cluster.devices), key=lambda name: product_s(case, (name,)))
