"""Splitting over pools: exact for one request (brute force), near the linear program's bound for several, never over a pool's room."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetserve.solve.minmax import NO_SPACE, State, ideal_s, on_one, one_by_one, split_one
from hetserve.solve.relaxed import relaxed, rounded
from hetserve.solve.together import split_all

TIMES = st.integers(0, 12).map(lambda value: value / 4)


@st.composite
def pools(draw, least: int = 1, most: int = 4) -> State:
    count = draw(st.integers(least, most))
    holds = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    work_s, fixed_s, slower = (np.array(draw(st.lists(TIMES, min_size=count, max_size=count))) for _ in range(3))
    free = np.array(draw(st.lists(st.integers(0, 20), min_size=count, max_size=count)), np.int64)
    return State(np.where(holds, work_s, 0.0), fixed_s, holds, free, 1 + slower * draw(st.sampled_from([0, 1])))


def costs(draw, requests: int, state: State) -> np.ndarray:
    shape = (requests, len(state.free))
    return np.array(draw(st.lists(TIMES, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).reshape(shape) + 0.25


def brute(units: int, homes: int, unit_s: np.ndarray, pages: int, state: State) -> float:
    """The best time over every split there is, slowed or not as it has pools that hold something; inf: none fits."""
    count, best = len(unit_s), np.inf
    ways = []
    for row in range(homes):
        free = [pool == row or pool >= homes for pool in range(count)]
        ways.append([one for one in product(*(range(units + 1 if may else 1) for may in free)) if sum(one) == units])
    for combined in product(*ways):
        split = np.array(combined).sum(axis=0)
        holds = state.holds | (split > 0)
        work_s = (state.work_s + split * unit_s) / (1 if holds.sum() > 1 else state.shared)
        if (split * pages <= state.free).all():
            best = min(best, (work_s + state.fixed_s)[holds].max())
    return best


@settings(max_examples=150, deadline=None)
@given(pools(), st.data())
def test_one_request_is_split_as_well_as_brute_force_finds(state, data) -> None:
    homes = data.draw(st.integers(1, min(2, len(state.free))))
    units, pages = data.draw(st.integers(1, 4 // homes)), data.draw(st.integers(1, 6))
    unit_s = costs(data.draw, 1, state)[0]
    best = brute(units, homes, unit_s, pages, state)
    split = split_one(units, homes, unit_s, pages, state)
    assert (split is None) == (best == np.inf)
    if split is not None:
        assert split.sum(axis=1).tolist() == [units] * homes
        assert not any(split[row, other] for row in range(homes) for other in range(homes) if other != row)
        state.put(split, np.tile(unit_s, (homes, 1)), np.full(homes, pages))
        assert state.slowest_s() == pytest.approx(best) and (state.free >= 0).all()


@settings(max_examples=150, deadline=None)
@given(pools(), st.data())
def test_several_requests_fit_and_are_never_worse_than_one_by_one(state, data) -> None:
    requests, homes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, min(2, len(state.free))))
    units = data.draw(st.integers(1, 4))
    pages = np.array(data.draw(st.lists(st.integers(1, 4), min_size=requests, max_size=requests)))
    unit_s = costs(data.draw, requests, state)
    together, apart, before = state.copy(), state.copy(), state.copy()
    found = split_all(units, homes, unit_s, pages, state)
    alone = one_by_one(units, homes, unit_s, pages, np.arange(requests), apart)
    assert np.array_equal(state.free, before.free) and np.array_equal(state.work_s, before.work_s) and np.array_equal(state.holds, before.holds)
    for request in range(requests):
        if found[request, 0, 0] == NO_SPACE:
            assert (found[request] == NO_SPACE).all()
            continue
        assert (found[request] >= 0).all() and found[request].sum(axis=1).tolist() == [units] * homes
        assert not any(found[request, row, other] for row in range(homes) for other in range(homes) if other != row)
        together.put(found[request], unit_s[[request] * homes], pages[[request] * homes])
    assert (together.free >= 0).all()
    missing, missing_alone = ((one[:, 0, 0] == NO_SPACE).sum() for one in (found, alone))
    assert missing <= missing_alone
    if missing == missing_alone:
        assert together.slowest_s() <= apart.slowest_s() * (1 + 1e-9)


def arrivals(seed: int, requests: int, workers: int, idle: bool = False) -> tuple[np.ndarray, np.ndarray, State]:
    """A primary and workers half as fast to four times as fast, links and loads unlike, requests of 100 to 4,000 tokens.

    Idle ones slow each other by up to 2.
    """
    rng = np.random.default_rng(seed)
    token_s = np.append(1.0, rng.uniform(0.25, 2.0, workers)) * 1e-6
    head_s = np.append(0.0, rng.uniform(1e-5, 2e-4, workers))
    tokens = np.exp(rng.uniform(np.log(100), np.log(4000), requests)).astype(int)
    work_s, count = np.append(5e-3, rng.uniform(1e-3, 5e-3, workers)), workers + 1
    shared = rng.uniform(1, 2, count) if idle else np.ones(count)
    state = State(work_s * (not idle), np.zeros(count), np.full(count, not idle), np.full(count, 10**6), shared)
    return (head_s + token_s * tokens[:, None]) * shared, -(-tokens // 16) + 1, state


def gaps_over_20_cases(requests: int, most_workers: int, idle: bool) -> tuple[list[float], int]:
    """How far above the linear bound splits are, and how many leave everything on one pool."""
    gaps, whole = [], 0
    for seed in range(20):
        unit_s, pages, state = arrivals(seed, requests, seed % most_workers + 1, idle)
        split_s, _ = relaxed(16, 1, unit_s, pages, state.load_s, state.free)
        _, whole_s = on_one(1, 16 * unit_s.sum(axis=0), 16 * int(pages.sum()), state)
        found = split_all(16, 1, unit_s, pages, state)
        state.put(found[:, 0], unit_s, pages)
        gaps.append(state.slowest_s() / min(split_s, whole_s) - 1)
        whole += np.count_nonzero(state.holds) == 1
    print(f"{requests} requests, up to {most_workers} workers: mean gap {np.mean(gaps):.4f}, largest {max(gaps):.4f}; {whole} on one pool")
    return gaps, whole


@pytest.mark.parametrize("most_workers", [1, 7])
@pytest.mark.parametrize("requests, most", [(1, 0.10), (4, 0.03), (16, 0.01)])
def test_the_gap_to_the_linear_bound(requests, most_workers, most) -> None:
    """For one request the gap is what whole head groups cost: the split is exact."""
    gaps, _ = gaps_over_20_cases(requests, most_workers, idle=False)
    assert min(gaps) > -1e-6 and np.mean(gaps) < most


@pytest.mark.parametrize("most_workers, least_whole", [(1, 3), (7, 0)])
@pytest.mark.parametrize("requests, most", [(1, 0.12), (4, 0.03), (16, 0.01)])
def test_the_gap_where_pools_slow_each_other(requests, most_workers, most, least_whole) -> None:
    """The bound is the better of the program's with all pools slowed, and everything on one pool. On idle pools whole head groups cost one request
    more."""
    gaps, whole = gaps_over_20_cases(requests, most_workers, idle=True)
    assert min(gaps) > -1e-6 and np.mean(gaps) < most and least_whole <= whole < 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4))
def test_rounding_keeps_sums_and_room_and_stays_above_the_bound(seed, requests, workers) -> None:
    unit_s, pages, state = arrivals(seed, requests, workers)
    state.free = np.full(workers + 1, int(pages.sum() * 8 * 1.3) // (workers + 1))
    answer = relaxed(8, 1, unit_s, pages, state.load_s, state.free)
    if answer is None:
        return
    bound_s, parts = answer
    found = rounded(parts, 8, pages, unit_s, state)
    placed = found[:, 0, 0] != NO_SPACE
    assert (found[placed].sum(axis=2) == 8).all() and (state.free >= 0).all()
    if placed.all():
        assert state.load_s.max() >= bound_s * (1 - 1e-6)


def test_the_ideal_is_reached_by_cutting_everything_alike() -> None:
    """Everybody's parts that end by then add up to everything; homes of several ranks take no more than their own."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        count = int(rng.integers(1, 6))
        homes = int(rng.integers(1, count + 1))
        head_s, token_s, fixed_s = rng.uniform(0, 2, count), rng.uniform(0.1, 2, count), rng.uniform(0, 30, count)
        found = ideal_s(10.0, 20.0, homes, head_s, token_s, fixed_s)
        whole_s = head_s * 10 + token_s * 20
        shares = np.maximum(found - fixed_s, 0) / whole_s
        shares[:homes] = np.minimum(shares[:homes], 1 / homes)
        assert shares.sum() == pytest.approx(1)


def test_an_arrival_over_8_devices_and_64_groups_takes_under_5_ms() -> None:
    """The budget is 1 ms; the bound leaves room for a busy machine."""
    unit_s, pages, state = arrivals(3, 1, 7)
    taken = []
    for _ in range(50):
        start = time.perf_counter()
        split_all(64, 1, unit_s, pages, state)
        taken.append(time.perf_counter() - start)
    print(f"one arrival: median {np.median(taken) * 1e6:.0f} us")
    assert min(taken) < 5e-3
