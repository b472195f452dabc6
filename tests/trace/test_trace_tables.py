"""Length tables keep a trace's joint shape, and arrivals keep their rate."""

from __future__ import annotations

import math
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve.errors import SpecError, UsageError
from hetserve.trace import files, tables
from hetserve.trace.arrivals import Arrivals, arrival_times

FOLDER = Path(str(resources.files("hetserve.workloads") / "lengths"))
# shares (HPHD, HPLD, LPHD, LPLD), means and medians as the traces' public statistics state them
PUBLISHED = {
    "azure-conv": ((0.393, 0.212, 0.109, 0.286), (1154.7, 211.1), (1020, 129)),
    "azure-code": ((0.023, 0.744, 0.007, 0.226), (2047.8, 27.9), (1469, 13)),
    "sharegpt": ((0.023, 0.011, 0.725, 0.241), (74.1, 228.6), (20, 217)),
    "sharegpt-8k": ((0.670, 0.097, 0.182, 0.051), (2340.0, 438.7), (1730, 415)),
    "arxiv": ((), (2588.1, 291.4), (2730, 167)),  # no shares are stated of these
    "humaneval": ((), (156.5, 66.9), (136, 55)),
    "mooncake-conv": ((), (12035.1, 342.6), (6909, 350)),
}


def trace(rows: int, seed: int = 0) -> np.ndarray:
    """A made-up trace whose long answers follow short prompts."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(1, 2000, rows)
    return np.stack([inputs, np.where(inputs > 512, rng.integers(1, 100, rows), rng.integers(200, 400, rows))], axis=1)


def test_a_fitted_table_gives_back_shares_and_quantiles() -> None:
    rows = trace(20_000)
    table = tables.fit("t", "s", "l", "0" * 64, rows)
    drawn = tables.sample(table, 50_000, np.random.default_rng(1))
    assert {one.name for one in table.classes} == {"HPLD", "LPHD"}  # classes without rows are left out
    assert abs((drawn[:, 0] > 512).mean() - (rows[:, 0] > 512).mean()) < 0.01
    for column in (0, 1):
        assert np.allclose(np.quantile(drawn[:, column], [0.1, 0.5, 0.9]), np.quantile(rows[:, column], [0.1, 0.5, 0.9]), rtol=0.05, atol=2)
    assert abs(np.corrcoef(drawn.T)[0, 1] - np.corrcoef(rows.T)[0, 1]) < 0.03  # independent marginals would give 0; the trace has about -0.8
    assert np.corrcoef(rows.T)[0, 1] < -0.6


def test_a_table_survives_being_written_and_read(tmp_path: Path) -> None:
    table = tables.fit("t", "s", "l", "0" * 64, trace(500))
    path = tmp_path / "t.toml"
    path.write_text(tables.to_toml(table, "a command"))
    back = files.read_table(path)
    assert [one.name for one in back.classes] == [one.name for one in table.classes]
    assert np.allclose(back.classes[0].input_tokens, table.classes[0].input_tokens, rtol=1e-4)
    assert sum(one.share for one in back.classes) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_committed_tables_have_the_published_statistics(name: str) -> None:
    shares, means, medians = PUBLISHED[name]
    table = files.read_table(FOLDER / f"{name}.toml")
    assert not shares or [round(one.share, 3) for one in table.classes] == pytest.approx(shares, abs=0.001)
    drawn = tables.sample(table, 100_000, np.random.default_rng(0))
    assert drawn.mean(axis=0) == pytest.approx(means, rel=0.03)
    assert np.median(drawn, axis=0) == pytest.approx(medians, rel=0.08)


@pytest.mark.parametrize("change", [{"levels": [0.0, 1.0]}, {"class": []}, {"rows": "many"}, {"source": None}])
def test_a_damaged_table_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    data = tomllib.loads(tables.to_toml(tables.fit("t", "s", "l", "0", trace(50)), "c")) | change
    with pytest.raises(SpecError):
        tables.from_toml({key: value for key, value in data.items() if value is not None}, tmp_path)


@given(st.floats(0.1, 1000), st.floats(0.05, 50), st.integers(1, 300), st.integers(0, 5))
def test_arrivals_end_exactly_at_n_over_rate(rate: float, burstiness: float, count: int, seed: int) -> None:
    times = arrival_times(Arrivals(rate, burstiness), count, np.random.default_rng(seed))
    assert len(times) == count and (np.diff(times) >= 0).all() and times[0] >= 0
    assert times[-1] == pytest.approx(count / rate)


def test_burstiness_is_the_gamma_shape_of_the_gaps() -> None:
    for shape in (0.25, 1.0, 4.0):
        gaps = np.diff(arrival_times(Arrivals(10, shape), 40_000, np.random.default_rng(0)))
        assert gaps.std() / gaps.mean() == pytest.approx(shape**-0.5, rel=0.04)  # coefficient of variation of a gamma distribution
    regular = arrival_times(Arrivals(4, math.inf), 8, np.random.default_rng(0))
    assert regular == pytest.approx(np.arange(1, 9) / 4)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert arrival_times(Arrivals(), 5, np.random.default_rng(0)).tolist() == [0] * 5


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_a_ramp_speeds_up(kind: str) -> None:
    times = arrival_times(Arrivals(ramp=kind, ramp_start_per_s=1, ramp_end_per_s=100), 4000, np.random.default_rng(0))
    gaps = np.diff(times)
    assert 1 / gaps[-200:].mean() == pytest.approx(100, rel=0.2)
    assert gaps[:200].mean() > 5 * gaps[-200:].mean()


def test_a_ramp_from_nothing_still_begins() -> None:
    assert np.isfinite(arrival_times(Arrivals(ramp="linear", ramp_start_per_s=0, ramp_end_per_s=5), 10, np.random.default_rng(0))).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_per_s": 0},
        {"rate_per_s": math.nan},
        {"burstiness": 0},
        {"ramp": "linear", "ramp_start_per_s": 5, "ramp_end_per_s": 5},
        {"ramp": "exponential", "ramp_start_per_s": 0, "ramp_end_per_s": 5},
        {"ramp": "linear", "ramp_end_per_s": 5, "rate_per_s": 3},
    ],
)
def test_senseless_arrivals_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Arrivals(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PUBLISHED)
def test_means_are_the_published_ones_and_of_what_is_drawn(name) -> None:
    table = files.read_table(FOLDER / f"{name}.toml")
    assert tables.means(table) == pytest.approx(PUBLISHED[name][1], rel=0.03)
    heavy = tables.narrowed(table, table.classes[0].name)
    assert tables.means(heavy) == pytest.approx(tables.sample(heavy, 100_000, np.random.default_rng(0)).mean(axis=0), rel=0.02)
