"""Fits find coefficients again, are told on shapes they have not seen, and count every table the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hetserve.cost.fits import START, Table, errors, fit, fold_of, held_out_s, merged, predict_s
from hetserve.cost.kernels import Chip, Gemm, Link, Overhead

CHIP = Chip(300e12, 2e12, 100)
TRUE = Gemm(6e-6, 2e-10, 0.7, 0.75, 0.8, 0.6, 1.0, 2.5)


def products(kernel: Gemm, source: str = "one", device: str = "A100-SXM-80GB", noise: float = 0.0) -> Table:
    """A grid of products, told by a formula."""
    m, n, k = (grid.ravel().astype(float) for grid in np.meshgrid([1, 8, 64, 200, 512, 2048], [1024, 4096, 8192, 28672], [1024, 4096, 8192]))
    shapes = np.array([f"{int(a)}x{int(b)}" for a, b in zip(n, k, strict=True)])
    off = np.exp(noise * np.random.default_rng(1).standard_normal(len(m)))
    return Table(device, source, "gemm", CHIP, {"m": m, "n": n, "k": k}, kernel.seconds(CHIP, m, n, k) * off, shapes)


def test_a_fit_finds_what_made_the_times() -> None:
    table = products(TRUE, noise=0.05)
    found = fit(Gemm, [table])
    assert np.median(np.abs(errors(found, products(TRUE)))) < 0.02
    assert np.median(np.abs(errors(START[Gemm], products(TRUE)))) > 0.1  # it did not begin there


def test_held_out_shapes_are_not_seen() -> None:
    """One shape's times are ten times too long: whoever has seen it tells more for it than whoever has not."""
    table = products(TRUE)
    strange = table.shapes == "28672x8192"
    table = replace(table, seconds=np.where(strange, 10 * table.seconds, table.seconds))
    (predicted,) = held_out_s(Gemm, [table], None, folds=12)
    assert np.abs(predicted[~strange] / table.seconds[~strange] - 1).max() < 0.3
    assert (predicted[strange] / table.seconds[strange] < 0.15).all()


def test_every_row_is_held_out_once() -> None:
    table, seen = products(TRUE), []
    held_out_s(Gemm, [table], None, 5, lambda kernel, fold: seen.append(fold))
    folds = fold_of([table], 5)
    assert seen == list(range(5)) and set(folds) == set(table.shapes) and set(folds.values()) == set(range(5))


def test_a_table_counts_the_same_however_long_it_is() -> None:
    fast = products(TRUE, "fast")
    slow = replace(fast, source="slow", seconds=1.2 * fast.seconds)
    few = slow.rows(np.arange(0, len(slow), 5))
    bias = {name: float(np.median(errors(fit(Gemm, tables), fast))) for name, tables in (("few", [fast, few]), ("all", [fast, slow]))}
    assert bias["few"] == pytest.approx(bias["all"], abs=0.03) and 0.05 < bias["few"] < 0.15


def test_without_tables_the_others_word_stands() -> None:
    assert fit(Gemm, [], TRUE) == TRUE and fit(Link, []) == START[Link]


def test_coefficients_that_nothing_tells_stay_near_the_others() -> None:
    few_rows = products(TRUE).rows(products(TRUE).inputs["m"] == 1)
    found = fit(Gemm, [few_rows], replace(TRUE, wide_share=0.33))
    assert found.wide_share == pytest.approx(0.33, rel=0.05)


def test_tables_of_a_source_are_one() -> None:
    one, other = products(TRUE, "one"), products(TRUE, "other")
    joined = merged([one, other, one])
    assert [(table.source, len(table)) for table in joined] == [("one", 2 * len(one)), ("other", len(other))]


def test_a_formula_without_a_place() -> None:
    count = np.arange(1.0, 50.0)
    table = Table("A100-SXM-80GB", "one", "overhead", None, {"sequences": count}, 2e-3 + 3e-5 * count, np.full(len(count), "m"))
    found = fit(Overhead, [table])
    assert predict_s(found, table) == pytest.approx(table.seconds, rel=0.01)
