"""Devices that slow each other in the simulator: work that overlaps takes longer for as long as it overlaps, by the kinds of work that meet."""

from __future__ import annotations

import heapq
from functools import partial
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve.sim.shared import SharedDevices

TWICE = tuple((1.0,) * 3 for _ in range(3))


def run(excess, works) -> dict[str, float]:
    """When each piece of work is done: works are (name, device, begins, parts)."""
    heap, number, done_s = [], count(), {}

    def push(at_s, call) -> None:
        heapq.heappush(heap, (at_s, next(number), call))

    devices = SharedDevices(excess, push)
    for name, device, begins_s, parts_s in works:
        done = partial(done_s.__setitem__, name)
        push(begins_s, partial(devices.begin, device, parts_s, done))
    while heap:
        at_s, _, call = heapq.heappop(heap)
        call(at_s)
    return done_s


BOTH = {("a", "b"): TWICE, ("b", "a"): TWICE}


def test_only_the_time_together_counts() -> None:
    whole = (0.0, 1.0, 0.0)
    assert run(BOTH, [("x", "a", 0.0, whole), ("y", "b", 0.0, whole)]) == pytest.approx({"x": 2.0, "y": 2.0})
    assert run(BOTH, [("x", "a", 0.0, whole), ("y", "b", 0.5, whole)]) == pytest.approx({"x": 1.5, "y": 2.0})
    assert run(BOTH, [("x", "a", 0.0, whole), ("y", "b", 1.0, whole)]) == pytest.approx({"x": 1.0, "y": 2.0})
    assert run(BOTH, [("x", "a", 0.0, whole), ("y", "c", 0.0, whole)]) == pytest.approx({"x": 1.0, "y": 1.0})
    assert run({("a", "b"): TWICE}, [("x", "a", 0.0, whole), ("y", "b", 0.0, whole)]) == pytest.approx({"x": 1.5, "y": 1.0})
    assert run({}, [("x", "a", 0.0, whole), ("y", "b", 0.0, (0.0, 0.0, 0.0))]) == pytest.approx({"x": 1.0, "y": 0.0})


def test_kinds_of_work_meet_by_their_shares() -> None:
    """Half of what b does slows attention by one half; products are not minded. So a's attention takes 1.25 times as long."""
    excess = {("a", "b"): ((0.5, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))}
    long = ("y", "b", 0.0, (50.0, 25.0, 25.0))
    assert run(excess, [("x", "a", 0.0, (2.0, 1.0, 1.0)), long])["x"] == pytest.approx(2.0 * 1.25 + 2.0)
    assert run(excess, [("x", "a", 0.0, (0.0, 3.0, 1.0)), long])["x"] == pytest.approx(4.0)


def test_several_others_slowdowns_add_up() -> None:
    every = {(one, other): TWICE for one in "abc" for other in "abc" if one != other}
    whole = (1.0, 0.0, 0.0)
    assert run(every, [(name, name, 0.0, whole) for name in "abc"]) == pytest.approx(dict.fromkeys("abc", 3.0))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3), st.floats(0.01, 2)), min_size=1, max_size=8))
def test_nothing_is_lost_and_nothing_is_faster_than_alone(works) -> None:
    given_works = [(str(number), device, begins_s, (0.0, length_s, 0.0)) for number, (device, begins_s, length_s) in enumerate(works)]
    done_s = run(BOTH, given_works)
    assert done_s.keys() == {name for name, *_ in given_works}
    for name, device, begins_s, parts_s in given_works:
        others_s = sum(sum(parts) for _, other, _, parts in given_works if other != device)
        assert begins_s + sum(parts_s) - 1e-9 <= done_s[name] <= begins_s + (1 + len(works)) * sum(parts_s) + others_s * len(works) + 1e-9
