"""The fits: known coefficients come back, and the held-out error is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from hetserve.cost.fit import every_fourth, fit_line, nonnegative


def grid(size: int = 8) -> np.ndarray:
    heads, vectors = np.meshgrid(np.geomspace(16, 1024, size), np.geomspace(2e4, 5e5, size), indexing="ij")
    return np.stack([heads.ravel(), vectors.ravel(), np.ones(size * size)], axis=1)


@pytest.mark.parametrize("truth", [(4e-7, 6e-9, 4e-5), (0.0, 6e-9, 4e-5), (4e-7, 6e-9, 0.0)])
def test_exact_times_give_the_coefficients_back(truth) -> None:
    fit = fit_line(grid(), grid() @ np.array(truth), every_fourth(8, 8))
    assert fit.coefficients_s == pytest.approx(truth, rel=1e-6, abs=1e-15)
    assert fit.held_out_error < 1e-9 and (fit.points, fit.held_out) == (48, 16)


def test_the_error_is_that_of_the_points_held_out() -> None:
    features, held = grid(), every_fourth(8, 8)
    seconds = features @ np.array((4e-7, 6e-9, 4e-5))
    seconds[held] *= 1.25  # the fit must not see this
    fit = fit_line(features, seconds, held)
    assert fit.coefficients_s == pytest.approx((4e-7, 6e-9, 4e-5), rel=1e-6)
    assert fit.held_out_error == pytest.approx(0.2)  # |1 / 1.25 - 1|
    assert fit.predict_s(features[held]) == pytest.approx(seconds[held] / 1.25)


def test_small_and_large_times_count_alike() -> None:
    rng = np.random.default_rng(0)
    features, held = grid(), every_fourth(8, 8)
    seconds = features @ np.array((4e-7, 6e-9, 4e-5)) * rng.uniform(0.95, 1.05, 64)
    fit = fit_line(features, seconds, held)
    assert fit.held_out_error < 0.05
    assert min(fit.coefficients_s) >= 0
    assert fit.predict_s(features[:1])[0] == pytest.approx(seconds[0], rel=0.1)  # the smallest point


def test_no_coefficient_is_negative() -> None:
    features = np.stack([np.arange(1.0, 9.0), np.ones(8)], axis=1)
    fit = fit_line(features, features @ np.array((1.0, -0.5)), np.arange(8) % 4 == 1)
    assert min(fit.coefficients_s) >= 0


def test_a_quarter_is_held_out_in_every_row_and_column() -> None:
    for size in (4, 8):
        held = every_fourth(size, size).reshape(size, size)
        assert held.sum() == size * size // 4 and held.any(axis=1).all() and held.any(axis=0).all()


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_the_nearest_without_negative_numbers_is_scipys(columns: int) -> None:
    rng, clipped = np.random.default_rng(columns), 0
    for _ in range(50):
        matrix, wanted = rng.random((12, columns)), rng.standard_normal(12) + 0.3
        found = nonnegative(matrix, wanted)
        np.testing.assert_allclose(found, nnls(matrix, wanted)[0], atol=1e-9)
        clipped += int((found == 0).any())
    assert clipped > 5
