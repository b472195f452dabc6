"""Pools against a plain model of themselves: a dictionary of reference counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hetserve.control.pages import Pool, Pools

PAGES = 20


class PoolMachine(RuleBasedStateMachine):
    """Takes, shares and gives at random; what is held is a list of id arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(PAGES)
        self.held: list[np.ndarray] = []

    @rule(share=st.floats(0, 1))
    def take(self, share: float) -> None:
        count = int(share * self.pool.free)
        ids = self.pool.take(count)
        assert len(set(ids.tolist())) == count
        assert not set(ids.tolist()) & {page for one in self.held for page in one.tolist()}
        self.held.append(ids)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1000), count=st.integers(0, PAGES))
    def share(self, which: int, count: int) -> None:
        ids = self.held[which % len(self.held)][:count]
        self.pool.share(ids)
        self.held.append(ids)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1000))
    def give(self, which: int) -> None:
        self.pool.give(self.held.pop(which % len(self.held)))

    @invariant()
    def agrees(self) -> None:
        references = np.zeros(PAGES, np.int32)
        for ids in self.held:
            references[ids] += 1
        self.pool.check(references)
        assert self.pool.free == PAGES - np.count_nonzero(references)


TestPool = PoolMachine.TestCase


def test_more_than_there_is_cannot_be_taken() -> None:
    pool = Pool(3)
    pool.take(2)
    with pytest.raises(AssertionError):
        pool.take(2)


def test_pages_used_last_are_used_first() -> None:
    pool = Pool(8)
    first = pool.take(3)
    pool.take(2)
    pool.give(first)
    assert set(pool.take(3).tolist()) == set(first.tolist())


def test_rows_given_back_are_handed_out_again_in_their_order() -> None:
    """A sequence's pages stay one run of memory from owner to owner."""
    pools, placement = Pools((40,)), np.zeros((5, 4), np.int32)
    pools.take(np.zeros((2, 4), np.int32))
    rows = pools.take(placement)
    pools.give(np.ascontiguousarray(rows.T), placement[0])
    assert pools.take(placement).tolist() == rows.tolist()


def test_rows_are_taken_from_the_pools_of_their_placement() -> None:
    pools = Pools((4, 6))
    placement = np.array([[0, 1, 1], [1, 1, 0]], np.int32)
    assert pools.fit(placement) and not pools.fit(placement, rows=2) and not pools.fit(placement, spare=0.5)
    pages = pools.take(placement)
    assert pages.shape == placement.shape
    assert pools.free_each().tolist() == [2, 2]
    for device, count in ((0, 2), (1, 4)):
        assert len(set(pages[placement == device].tolist())) == count
    pools.give(pages[0][:, None], placement[0])
    assert pools.free_each().tolist() == [3, 4]
