"""Seconds as a function of rows, by straight lines between known points: what a matrix product takes. A roofline is a curve of one point."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Fewer rows than the first point take as long as it; more than the last, in proportion to it.

    Attributes:
        rows: ascending, at least one, positive.
        seconds: of each.
    """

    rows: tuple[float, ...]
    seconds: tuple[float, ...]

    @classmethod
    def floor(cls, floor_s: float, row_s: float) -> Curve:
        """max(floor_s, row_s * rows)."""
        return cls((max(floor_s / row_s, 1e-9),), (floor_s,)) if floor_s > 0 else cls((1e-9,), (row_s * 1e-9,))

    def at(self, rows: float) -> float:
        """Seconds of so many rows."""
        if rows <= self.rows[0]:
            return self.seconds[0]
        if rows >= self.rows[-1]:
            return rows * self.row_s
        above = bisect_left(self.rows, rows)
        (low, high), (low_s, high_s) = self.rows[above - 1 : above + 1], self.seconds[above - 1 : above + 1]
        return low_s + (high_s - low_s) * (rows - low) / (high - low)

    @property
    def row_s(self) -> float:
        """Seconds a row where there are many."""
        return self.seconds[-1] / self.rows[-1]

    def __mul__(self, factor: float) -> Curve:
        return Curve(self.rows, tuple(factor * one for one in self.seconds))


NOTHING = Curve((1.0,), (0.0,))


def measured(points: Iterable[tuple[float, float]]) -> Curve:
    """The curve through (rows, seconds), in ascending order; where a measurement says that more rows take less time, both take the mean.

    Raises:
        ValueError: there are none.
    """
    blocks: list[tuple[float, int]] = []  # (mean, of so many points): pool adjacent violators
    rows = []
    for row, taken_s in points:
        rows.append(row)
        blocks.append((taken_s, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean_s, count), (more_s, more) = blocks.pop(-2), blocks.pop()
            blocks.append(((mean_s * count + more_s * more) / (count + more), count + more))
    if not rows:
        raise ValueError("a curve needs a point")
    return Curve(tuple(rows), tuple(mean_s for mean_s, count in blocks for _ in range(count)))
