"""claims.toml: every claim has an experiment that answers it, every experiment a function, and what contradicts itself is refused."""

from __future__ import annotations

import pytest

from hetserve.errors import SpecError
from hetserve.reproduce.claims import MISSED, PARTLY, REPRODUCED, Claim, claims_of, everything, parse
from hetserve.reproduce.table import EXPERIMENTS
from hetserve.trace.files import FILES

ONE = """
[[experiment]]
name = "e"
title = "something"
kind = "simulated"
human_minutes = 1
compute_minutes = 1

[[claim]]
name = "c"
paper = "P"
says = "twice as fast"
value = 2.0
unit = "times"
where = "Fig. 1"
mark = "quoted"
experiment = "e"
number = "ratio"
reproduced = [1.6, 2.5]
partly = [1.05, inf]
"""


def test_every_experiment_has_a_function_and_claims_and_known_datasets() -> None:
    experiments, claims = everything()
    assert {one.name for one in experiments} == set(EXPERIMENTS)
    assert {one.experiment for one in claims} == set(EXPERIMENTS)
    assert all(name in FILES for one in experiments for name in one.datasets)
    assert sum(len(claims_of(one.name)) for one in experiments) == len(claims)


def test_what_counts_as_reproduced_is_the_same_rule_for_every_gain() -> None:
    """A gain is reproduced from 0.8 (1.05 at least) to 1.25 times the paper's number: nobody's band is made to fit."""
    for claim in everything()[1]:
        if claim.unit == "times":
            assert claim.reproduced == pytest.approx((max(1.05, 0.8 * claim.value), 1.25 * claim.value), rel=0.01), claim.name
            assert claim.partly == (1.05, float("inf")), claim.name


@pytest.mark.parametrize(("number", "verdict"), [(2.0, REPRODUCED), (1.6, REPRODUCED), (1.5, PARTLY), (40.0, PARTLY), (1.0, MISSED), (0.4, MISSED)])
def test_verdicts(number: float, verdict: str) -> None:
    assert parse(ONE)[1][0].verdict(number) == verdict


def test_bounds_are_inclusive() -> None:
    claim: Claim = parse(ONE)[1][0]
    assert claim.verdict(2.5) == REPRODUCED and claim.verdict(2.5 + 1e-9) == PARTLY


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('experiment = "e"', 'experiment = "f"', "which there is not"),
        ('mark = "quoted"', 'mark = "heard"', "expected one of quoted"),
        ('kind = "simulated"', 'kind = "guessed"', "expected one of simulated"),
        ("reproduced = [1.6, 2.5]", "reproduced = [1.0, 2.5]", "not within what is partly"),
        ('number = "ratio"', 'nmuber = "ratio"', "unknown key 'nmuber'"),
        ('\n[[claim]]\nname = "c"', '\n[[claim]]\nname = "c"\npaper = "P"', "overwrite"),
    ],
)
def test_what_contradicts_itself_is_refused(old: str, new: str, said: str) -> None:
    assert old in ONE
    with pytest.raises((SpecError, ValueError), match=said):
        parse(ONE.replace(old, new))


def test_names_are_unique_and_no_experiment_is_idle() -> None:
    with pytest.raises(SpecError, match="two claims called 'c'"):
        parse(ONE + ONE[ONE.index("[[claim]]") :])
    idle = ONE + ONE[: ONE.index("[[claim]]")].replace('"e"', '"idle"')
    with pytest.raises(SpecError, match="no claim is held against experiment 'idle'"):
        parse(idle)
