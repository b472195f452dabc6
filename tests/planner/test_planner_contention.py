"""Devices that slow each other: what is left of a second one's worth, when it stays out, and when its memory alone is worth having it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import cluster, contention, model, profile

from hetserve.errors import SpecError
from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import Part, stage
from hetserve.planner.estimate import attention_s, held, load, rate, together
from hetserve.planner.hetis import Layout, best_of
from hetserve.planner.options import Options
from hetserve.planner.pipeline import pipeline
from hetserve.planner.whole import whole_group
from hetserve.spec.cluster import Link
from hetserve.spec.plan import Plan
from hetserve.spec.workload import Workload
from hetserve.systems import SYSTEMS, system

MODEL = model()
PAIR = cluster({"fast": ("amx", 4.0), "slow": ("avx2", 4.0)})
SHORT = cluster({"fast": ("amx", 0.75), "slow": ("avx2", 0.75)})  # of memory: beside the weights the fast one holds a few sequences
LONG = Workload(1100.0, 400.0)
BALANCED = {"amx": 2e-6, "avx2": 4e-6}
APART = {"amx": 2e-6, "avx2": 2e-4}  # no product pays on the slow one


def case(on=PAIR, work=LONG, row_s=APART, attention: float | None = None, dense: float = 1.0, floor_s: float = 0.0) -> Case:
    known = profile(MODEL, on, row_s, floor_s)
    if attention is not None:
        known = replace(known, contention=contention(on, attention, dense))
    return open_case(on, MODEL, work, Options(profile=known))


def plan(name: str, one: Case) -> Plan:
    return system(name).planner(one.cluster, MODEL, one.workload, one.options)


def workers(made: Plan) -> set[str]:
    return {name for group in made.groups for one in group.stages for name in one.attention}


def primaries(made: Plan) -> list[str]:
    return [one.primary[0] for group in made.groups for one in group.stages]


@pytest.mark.parametrize("row_s", [BALANCED, APART])
@pytest.mark.parametrize("name", SYSTEMS)
def test_devices_that_do_not_slow_each_other_are_planned_as_if_nobody_had_measured(name, row_s) -> None:
    """Only what was not measured is noted."""
    unknown, known = (plan(name, case(row_s=row_s, attention=factor)) for factor in (None, 1.0))
    assert unknown.groups == known.groups
    told = [note for note in unknown.notes if note not in known.notes]
    assert len(told) == (name != "uniform") and all("how devices slow each other was not measured" in note for note in told)


def test_two_devices_worth_one_are_planned_as_one() -> None:
    one, both = case(attention=2.0, dense=2.0), case(attention=1.0)
    assert workers(plan("hetis", both)) == {"slow"}
    made = plan("hetis", one)
    assert made.groups == plan("uniform", one).groups
    (note,) = [note for note in made.notes if note.startswith("slow: left out")]
    times = ", ".join(f"{work} 2.00 and 2.00" for work in ("attention", "decode", "prompt"))
    assert f"if devices did not slow each other (slow and fast: {times} times slower)" in note
    with_it, calm = plan("hetis", both).groups[0].requests_per_s, float(note.split("; ")[1].split()[0])
    assert calm == pytest.approx(with_it, rel=1e-2)


def test_what_attention_gains_falls_with_contention() -> None:
    rates = [plan("hetis", case(attention=factor)).groups[0].requests_per_s for factor in (1.0, 1.2, 1.4, 2.0)]
    assert rates[0] > rates[1] > rates[2] > rates[3]
    assert rates[3] == plan("uniform", case()).groups[0].requests_per_s


def test_where_memory_is_short_the_second_devices_is_worth_it() -> None:
    """Even two devices that attend no faster than one: more sequences share each reading of the weights."""
    one = case(on=SHORT, attention=2.0, dense=2.0)
    made = plan("hetis", one)
    assert (primaries(made), workers(made)) == (["fast"], {"slow"})
    alone = whole_group(one, ("fast",))
    assert held(one, made.groups[0]) > 2 * held(one, alone) and made.groups[0].requests_per_s > 1.05 * alone.requests_per_s


@pytest.mark.parametrize("attention", [1.4, 2.0])
def test_a_few_sequences_that_fit_at_home_stay_there(attention) -> None:
    """The same cluster and lengths: whether the second device pays is a matter of how many requests there are."""
    many, few = (case(SHORT, replace(LONG, concurrency=count), APART, attention, floor_s=3e-3) for count in (1e9, 2.0))
    assert workers(plan("hetis", many)) == {"slow"}
    made = plan("hetis", few)
    assert made.groups == plan("uniform", few).groups and "left out" in made.notes[1]
    assert held(few, made.groups[0]) == 2


def test_a_larger_layout_has_to_pay_also_when_it_is_found_first() -> None:
    one = case(row_s=BALANCED)
    alone = Layout((replace(whole_group(one, ("fast",)), requests_per_s=1.0),))
    both = Layout((replace(pipeline(one, [("fast",), ("slow",)]), requests_per_s=1.04),))
    assert best_of([both, alone]) is best_of([alone, both]) is alone
    worth = Layout((replace(both.groups[0], requests_per_s=1.06),))
    assert best_of([worth, alone]) is best_of([alone, worth]) is worth


def test_a_slow_link_leaves_the_device_out_however_calm_it_is() -> None:
    links = tuple(Link(a, b, 0.010, 2e9, emulate=True) for a, b in (("fast", "slow"), ("slow", "fast")))
    one = case(on=replace(PAIR, links=links), work=replace(LONG, concurrency=16.0), attention=1.0)
    made = plan("hetis", one)
    assert made.groups == plan("uniform", one).groups
    assert not any("slow each other" in note for note in made.notes)


def test_replicas_slow_each_other() -> None:
    one, calm = case(row_s=BALANCED, attention=1.5, dense=1.5), case(row_s=BALANCED)
    for slowed, alone in zip(plan("replicas", one).groups, plan("replicas", calm).groups, strict=True):
        assert slowed.requests_per_s == pytest.approx(alone.requests_per_s / 1.5)
    notes = plan("replicas", one).notes
    assert all("if it were alone" in note for note in notes[:2])
    assert all(group.requests_per_s > 0 for group in plan("replicas", calm).groups)


def test_hexgen_takes_one_device_where_two_are_worth_less() -> None:
    assert len(set(primaries(plan("hexgen", case(row_s=BALANCED))))) == 2
    made = plan("hexgen", case(row_s=BALANCED, attention=2.5, dense=2.5))
    assert primaries(made) == ["fast"]
    assert any("slow: left out" in note and "slow each other" in note for note in made.notes)


def test_a_pipelines_stages_slow_each_other_only_while_both_work() -> None:
    calm, one = (case(row_s=BALANCED, dense=factor, attention=factor) for factor in (1.0, 1.5))
    alone, beside = (pipeline(each, [("fast",), ("slow",)]) for each in (calm, one))
    assert alone.requests_per_s / 1.5 * (1 - 1e-9) <= beside.requests_per_s < alone.requests_per_s
    single = replace(one, workload=replace(one.workload, concurrency=1.0))
    assert rate(single, alone) == pytest.approx(rate(replace(calm, workload=single.workload), alone)), "one sequence, one stage at a time"


def test_splitwises_phases_slow_each_other_for_the_time_both_work() -> None:
    """The phase that waits for the other slows it for part of the time only."""
    calm, one = (plan("splitwise", case(row_s=BALANCED, dense=factor, attention=factor)) for factor in (1.0, 1.5))
    slowest = calm.groups[0].requests_per_s  # of both: each waits for the slower
    assert slowest / 1.5 < one.groups[0].requests_per_s < slowest


def test_a_loads_concurrency_is_shared_by_speed() -> None:
    one = case(row_s=BALANCED, work=replace(LONG, concurrency=9.0))
    groups = [whole_group(one, (name,)) for name in ("fast", "slow")]
    fast, slow = together(one, groups)
    assert fast.requests_per_s < groups[0].requests_per_s and slow.requests_per_s < groups[1].requests_per_s
    whole = replace(one, workload=LONG)
    assert fast.requests_per_s + slow.requests_per_s < sum(each.requests_per_s for each in together(whole, groups))


@settings(max_examples=60, deadline=None)
@given(st.floats(1.0, 4.0), st.floats(1.0, 200.0), st.floats(1.0, 3.0))
def test_dealt_attention_is_never_slower_than_at_home_and_never_faster_for_more_contention(factor, running, more) -> None:
    """And no faster than the two devices would be if they were independent."""
    calm, one, worse = (case(attention=times) for times in (1.0, factor, factor * more))
    alone, dealt = (stage(one, Part(one.whole, ("fast",), "bfloat16", names)) for names in ((), ("slow",)))
    work = load(one, min(running, held(one, whole_group(one, ("fast",)))))
    home_s, best_s, dealt_s, worse_s = (attention_s(*args, work) for args in ((one, alone), (calm, dealt), (one, dealt), (worse, dealt)))
    assert best_s <= dealt_s * (1 + 1e-9) and dealt_s <= worse_s * (1 + 1e-9) and worse_s <= home_s * (1 + 1e-9)
    assert home_s <= 2 * best_s * (1 + 1e-9)


def test_a_concurrency_must_be_positive() -> None:
    with pytest.raises(SpecError, match="concurrency"):
        Workload(10.0, 10.0, concurrency=0)
