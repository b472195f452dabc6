"""Policies are functions on numbers: what each promises, over random numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hetserve.policy import batch, evict, heads, rebalance, route
from hetserve.policy.pools import StagePools

COUNTS = st.lists(st.integers(-1, 1000), min_size=1, max_size=6)


@given(st.integers(1, 2000), COUNTS, st.data())
def test_route_takes_the_group_that_would_be_least_loaded(added, tokens, data) -> None:
    capacity = data.draw(st.lists(st.integers(1, 1000), min_size=len(tokens), max_size=len(tokens)))
    group = route.least_loaded(added, np.array(tokens), np.array(capacity), np.ones(len(tokens)))
    up = [index for index, held in enumerate(tokens) if held >= 0]
    if not up:
        assert group == -1
    else:
        assert group == min(up, key=lambda index: ((tokens[index] + added) / capacity[index], index))


@given(st.integers(0, 100), st.lists(st.integers(1, 60), max_size=8))
def test_chunks_are_whole_but_the_last_and_use_the_budget_up(budget, remaining) -> None:
    chunks = batch.in_order(budget, np.array(remaining, np.int32))
    assert sum(chunks) == min(budget, sum(remaining))
    assert all(0 < chunk <= tokens for chunk, tokens in zip(chunks, remaining, strict=False))
    assert chunks[:-1] == remaining[: max(0, len(chunks) - 1)]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True))
def test_the_latest_gives_way(order) -> None:
    assert order[evict.latest(np.array(order, np.int64))] == max(order)


def test_all_heads_lie_on_the_primary_and_nobody_moves() -> None:
    ones, pools = np.ones(2, np.int64), StagePools(*[np.ones(2)] * 7)
    assert heads.on_group(6, 1, ones, ones, pools).tolist() == [[[6, 0]]] * 2
    assert heads.on_group(6, 2, ones, ones, pools).tolist() == [[[3, 0], [0, 3]]] * 2
    assert not len(rebalance.none(6, 1, np.ones((2, 2)), ones, ones, pools))
