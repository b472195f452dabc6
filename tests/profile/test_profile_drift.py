"""How far a second measurement is off: what counts, and where the bound is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetserve.engine.model.recipes import RECIPES
from hetserve.profile.drift import BOUND, LINK_BOUND, UNBOUND, Drift, drifts
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import AttentionLine, Contention, DensePoint, DenseTimes, DeviceProfile, LinkProfile, Profile, Slowed

TINY = ModelSpec.from_hf(RECIPES["tiny"].config, None, "tiny")
DENSE = DenseTimes("bfloat16", (DensePoint(1, 1e-3), DensePoint(4, 2e-3)), (DensePoint(1, 2e-3),))
DEVICE = DeviceProfile("fast", "cpu", "avx2", 1, 3e10, AttentionLine(4e-7, 6e-9, 5e-5, 0.05), 3e-8, (DENSE,))
LINK = LinkProfile("fast", "slow", 2e-8, 5e-5, 3e9, 0.1)
THEN = Profile("tiny", "", "bfloat16", "here", 2600.0, "", "2026-11-21", (DEVICE,), (LINK,))


def beyond(**changes) -> list[str]:
    now = replace(THEN, devices=(replace(DEVICE, **changes),))
    return [one.what for one in drifts(THEN, now, TINY) if one.beyond]


def test_the_same_numbers_have_not_drifted() -> None:
    found = drifts(THEN, THEN, TINY)
    assert all(one.share == 0 and not one.beyond for one in found)
    assert {one.where for one in found} == {"fast", "fast to slow"}


def test_each_kind_of_number_is_judged() -> None:
    assert beyond(read_bytes=2e10) == ["read_bytes"]
    assert beyond(prefill_pair_s=4e-8) == ["prefill_pair_s"]
    slower = replace(DENSE, layer=tuple(replace(point, layer_s=1.3 * point.layer_s) for point in DENSE.layer))
    assert beyond(dense=(slower,)) == ["layer, bfloat16 weights, mean s"]
    assert beyond(attention=AttentionLine(4e-7, 9e-9, 5e-5, 0.05)) == ["attention of 16 x 1,024 tokens, s"]
    links = (replace(LINK, bytes_per_s=1e9),)
    assert [one.what for one in drifts(THEN, replace(THEN, links=links), TINY) if one.beyond] == ["bytes_per_s"]


def test_contention_is_judged_where_both_have_measured_it() -> None:
    before, after = (replace(THEN, contention=(Contention("fast", "slow", Slowed(factor), Slowed(1.2, 1.5)),)) for factor in (1.1, 1.5))
    (found,) = [one for one in drifts(before, after, TINY) if one.beyond]
    assert (found.where, found.what, found.then, found.now) == ("fast beside slow", "attention by attention, times slower", 1.1, 1.5)
    assert not [one for one in drifts(THEN, after, TINY) if "beside" in one.where]


def test_links_may_drift_further_than_devices() -> None:
    links = (replace(LINK, bytes_per_s=LINK.bytes_per_s / (1 + LINK_BOUND) + 1),)
    assert not [one for one in drifts(THEN, replace(THEN, links=links), TINY) if one.beyond]


def test_coefficients_may_trade_against_each_other() -> None:
    assert beyond(attention=AttentionLine(4e-7, 6.1e-9, 2e-5, 0.05)) == []


@pytest.mark.parametrize(
    ("then", "now", "is_beyond"),
    [
        (1.0, 1 + BOUND - 0.01, False),
        (1.0, 1 + BOUND + 0.01, True),
        (1 + BOUND - 0.01, 1.0, False),
        (1 + BOUND + 0.01, 1.0, True),
        (0, 1, True),
        (0, 0, False),
    ],
)
def test_the_bound_is_the_same_in_both_directions(then, now, is_beyond) -> None:
    assert Drift("", "", then, now, BOUND).beyond is is_beyond
    assert not Drift("", "", then, now, UNBOUND).beyond
