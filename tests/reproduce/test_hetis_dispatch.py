"""A dispatcher that is misled: its coefficients are all a fifth off, by a draw that is always the same; devices and plan stay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetserve.control.config import config_from_plan
from hetserve.reproduce import hetis_dispatch
from hetserve.reproduce.hetis_case import mean_load, plan_for, requests
from hetserve.reproduce.hetis_dispatch import Way, felt, wrong


def test_every_coefficient_is_a_fifth_off_and_nothing_else() -> None:
    load = mean_load(requests("sharegpt", "Llama-2-13B", None, 200).drawn())
    right = config_from_plan(plan_for("hetis", "Llama-2-13B", load))
    other = wrong(right, 1)
    assert other == wrong(right, 1) != wrong(right, 2)
    for one, another in zip(right.groups, other.groups, strict=True):
        for pool, misled in zip(one.pools, another.pools, strict=True):
            for name in ("head_s", "token_s", "fixed_s"):
                assert abs(getattr(misled.heads, name) - getattr(pool.heads, name)) == pytest.approx(0.2 * getattr(pool.heads, name))
            assert replace(misled, heads=pool.heads) == pool
        assert [stage.cost for stage in one.stages] == [stage.cost for stage in another.stages]


def test_few_requests_are_served_by_a_misled_dispatcher_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hetis_dispatch, "COUNT", 60)
    right, misled = felt(Way()), felt(Way(off=0))
    assert right == felt(Way()) and 0.5 < misled.mean_ms / right.mean_ms < 2
