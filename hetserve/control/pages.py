"""Pages of one group: which are free, how often each is referred to. Never over-commits; no object per page.

A page id belongs to one pool, the pool to one device and stage. A *row* is one page of every lane (a KV head in a stage's layers): what a
sequence needs for the next page_tokens tokens. Its placement says which pool holds each lane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetserve.control.messages import Int32s


class Pool:
    """The pages of one device. Free ids lie on a stack, so the ids used last are used again first: their memory is warm."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.free = pages
        self.references = np.zeros(pages, np.int32)
        self._stack = np.arange(pages - 1, -1, -1, dtype=np.int32)

    def take(self, count: int) -> Int32s:
        """`count` free pages, each with one reference. The caller has asked `free` first."""
        assert count <= self.free, (count, self.free)
        top = self.free
        self.free = top - count
        ids = self._stack[top - count : top][::-1].copy()
        self.references[ids] = 1
        return ids

    def share(self, ids: Int32s) -> None:
        """One more reference to each of these pages (no id twice)."""
        self.references[ids] += 1

    def give(self, ids: Int32s) -> None:
        """One reference less to each of these pages (no id twice); those without any are free again."""
        left = self.references[ids] - 1
        self.references[ids] = left
        gone = ids[left == 0]
        self._stack[self.free : self.free + len(gone)] = gone
        self.free += len(gone)

    def check(self, references: Int32s) -> None:
        """Asserts that the free stack and the counts agree with `references`, counted from the holders' side."""
        free = self._stack[: self.free]
        assert np.array_equal(self.references, references)
        assert len(np.unique(free)) == self.free
        assert not self.references[free].any()
        assert self.free + np.count_nonzero(self.references) == self.pages


class Pools:
    """The pools of a group, addressed by placement: int32 [..., lanes], each lane's pool."""

    def __init__(self, pages: tuple[int, ...]) -> None:
        self.pools = [Pool(count) for count in pages]
        self.pages = sum(pages)
        self.given = 0  # how often pages were given back: as long as it is the same there is no more room

    @property
    def free(self) -> int:
        return sum(pool.free for pool in self.pools)

    def free_each(self) -> Int32s:
        """int32 [pools] free pages of each pool."""
        return np.array([pool.free for pool in self.pools], np.int32)

    def fit(self, placement: Int32s, rows: int = 1, spare: float = 0.0) -> bool:
        """Whether `rows` more rows for every sequence in `placement` fit, leaving the share `spare` of each pool free."""
        if len(self.pools) == 1:
            pool = self.pools[0]
            return rows * placement.size <= pool.free - int(spare * pool.pages)
        needed = rows * np.bincount(placement.ravel(), minlength=len(self.pools))
        return all(need == 0 or need <= pool.free - int(spare * pool.pages) for need, pool in zip(needed.tolist(), self.pools, strict=True))

    def short(self, placement: Int32s) -> NDArray[np.bool_]:
        """[pools] that do not hold one more row for every sequence in `placement`."""
        return np.bincount(placement.ravel(), minlength=len(self.pools)) > self.free_each()

    def take(self, placement: Int32s) -> Int32s:
        """One page for every entry of `placement`; the same shape."""
        if len(self.pools) == 1:
            return self.pools[0].take(placement.size).reshape(placement.shape)
        ids = np.empty(placement.shape, np.int32)
        for index, pool in enumerate(self.pools):
            here = placement == index
            ids[here] = pool.take(int(np.count_nonzero(here)))
        return ids

    def share(self, pages: Int32s, placement: Int32s) -> None:
        """One more reference to pages [lanes, rows] placed by [lanes]."""
        for index, pool in enumerate(self.pools):
            pool.share(pages[placement == index].ravel())

    def give(self, pages: Int32s, placement: Int32s) -> None:
        """One reference less to pages [lanes, rows] placed by [lanes].

        Last row first, so that `take` finds them in the order in which they were handed out: rows stay runs of memory, which attention reads faster.
        """
        self.given += 1
        for index, pool in enumerate(self.pools):
            pool.give(pages[placement == index].T.ravel()[::-1])
