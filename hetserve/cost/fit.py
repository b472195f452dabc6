"""Straight lines through measured times, by non-negative least squares of relative errors, and how well they tell points they have not seen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """seconds = features @ coefficients_s."""

    coefficients_s: tuple[float, ...]
    held_out_error: float  # mean relative error on the points kept out of the fit
    points: int
    held_out: int

    def predict_s(self, features: Floats) -> Floats:
        """features: [n, k] -> seconds [n]."""
        return features @ np.array(self.coefficients_s)


def fit_line(features: Floats, seconds: Floats, held_out: NDArray[np.bool_]) -> Fit:
    """The non-negative coefficients with the smallest sum of squared relative errors on the points not held out.

    Errors count relative to the time measured, or the longest times alone would decide.

    Args:
        features: [n, k]; a column of ones for a constant.
        seconds: [n], positive.
        held_out: [n], which points only judge; at least one, and at least k are left.
    """
    assert held_out.any() and (~held_out).sum() >= features.shape[1] and (seconds > 0).all()
    scale = np.abs(features).max(axis=0)  # columns of very different size would cost accuracy
    used = ~held_out
    found = nonnegative(features[used] / scale / seconds[used, None], np.ones(int(used.sum())))
    coefficients_s = found / scale
    error = np.abs(features[held_out] @ coefficients_s / seconds[held_out] - 1).mean()
    return Fit(tuple(map(float, coefficients_s)), float(error), int(used.sum()), int(held_out.sum()))


def nonnegative(matrix: Floats, wanted: Floats) -> Floats:
    """The x without negative numbers for which matrix @ x is nearest to `wanted` in squares: exactly, for a few columns.

    Some columns of the answer are not used; for the others it is the plain least-squares answer. All choices are tried.
    """
    columns = matrix.shape[1]
    best, least = np.zeros(columns), np.inf
    for used in (list(some) for size in range(columns + 1) for some in combinations(range(columns), size)):
        found = np.zeros(columns)
        found[used] = np.linalg.lstsq(matrix[:, used], wanted, rcond=None)[0]
        error = float(np.square(matrix @ found - wanted).sum())
        if (found >= 0).all() and error < least:
            best, least = found, error
    return best


def every_fourth(rows: int, columns: int) -> NDArray[np.bool_]:
    """A quarter of a grid's points, some of every row and every column, flattened: the ones to hold out."""
    row, column = np.indices((rows, columns))
    return np.asarray((row + column) % 4 == 1).reshape(-1)
