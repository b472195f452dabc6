"""Links shared by max-min fairness: rates that nobody can better, and transfers that take the time their rates say."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve.sim.drain import Done
from hetserve.sim.links import FairLinks, Way, fair_rates

ROOM = {"a": 10.0, "b": 4.0, "c": 7.0, "d": 1.0}
WAYS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True).map(tuple), max_size=8)


def run(transfers, room=ROOM) -> list[float]:
    """When each (begins, way, bytes) is there."""
    heap, number, done_s = [], count(), [0.0] * len(transfers)

    def push(at_s, call) -> None:
        heapq.heappush(heap, (at_s, next(number), call))

    links = FairLinks(room, push)
    for index, (begins_s, way, size) in enumerate(transfers):
        done = lambda at_s, index=index: done_s.__setitem__(index, at_s)  # noqa: E731
        push(begins_s, lambda now_s, way=way, size=size, done=done: links.begin(way, size, done, now_s))
    while heap:
        at_s, _, call = heapq.heappop(heap)
        call(at_s)
    return done_s


@given(WAYS)
def test_rates_are_max_min_fair(ways) -> None:
    """No link carries too much, and every flow has a full link on its way on which nobody has more."""
    found = fair_rates(Counter(ways), ROOM)
    rates = [found[way] for way in ways]
    used = {link: sum(rate for rate, way in zip(rates, ways, strict=True) if link in way) for link in ROOM}
    assert all(used[link] <= ROOM[link] * (1 + 1e-9) for link in ROOM)
    for rate, way in zip(rates, ways, strict=True):
        full = [link for link in way if used[link] >= ROOM[link] * (1 - 1e-9)]
        assert any(all(other <= rate * (1 + 1e-9) for other, theirs in zip(rates, ways, strict=True) if link in theirs) for link in full)


def test_one_transfer_takes_latency_and_bytes() -> None:
    assert run([(1.0, Way(0.5, ("a", "b")), 8.0)]) == pytest.approx([3.5])
    assert run([(1.0, Way(0.5, ()), 8.0), (1.0, Way(0.25, ("a",)), 0.0)]) == pytest.approx([1.5, 1.25])


def test_two_share_for_as_long_as_both_flow() -> None:
    assert run([(0.0, Way(0.0, ("b",)), 4.0), (0.5, Way(0.0, ("b",)), 4.0)]) == pytest.approx([1.5, 2.0])
    assert run([(0.0, Way(0.0, ("b",)), 4.0), (0.0, Way(0.0, ("b", "d")), 1.0)]) == pytest.approx([4.0 / 4.0 + 0.25, 1.0])


@given(st.lists(st.tuples(st.floats(0, 3), WAYS.filter(bool).map(lambda ways: ways[0]), st.floats(0.1, 20)), min_size=1, max_size=8))
def test_none_is_faster_than_alone_and_all_arrive(transfers) -> None:
    done_s = run([(begins_s, Way(0.0, way), size) for begins_s, way, size in transfers])
    for at_s, (begins_s, way, size) in zip(done_s, transfers, strict=True):
        assert at_s >= begins_s + size / min(ROOM[link] for link in way) - 1e-9
    longest_s = sum(size / min(ROOM[link] for link in way) for _, way, size in transfers)
    assert max(done_s) <= max(begins_s for begins_s, _, _ in transfers) + longest_s + 1e-6


def test_only_the_next_to_end_is_waited_for() -> None:
    """Many transfers at once cost about one waiting each, not one for every change of every rate."""
    heap: list[tuple[float, int, Done]] = []
    number, ended = count(), list[float]()
    links = FairLinks({"a": 100.0}, lambda at_s, done: heapq.heappush(heap, (at_s, next(number), done)))
    sizes = 1.0 + np.arange(200)
    for size in sizes:
        links.begin(Way(0.0, ("a",)), size, ended.append, 0.0)
    while heap:
        at_s, _, done = heapq.heappop(heap)
        done(at_s)
    np.testing.assert_allclose(ended, np.cumsum(np.diff(sizes, prepend=0.0) * np.arange(200, 0, -1)) / 100.0)  # the smallest first
    assert next(number) <= 3 * len(sizes) + 1
