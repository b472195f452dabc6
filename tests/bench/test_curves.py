"""Figures and tables of simulated results: the same bytes for the same result, a row for each run, and what cannot be drawn is said first."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest

from hetserve.bench.curves import draw, frame, require_drawable, save_csv
from hetserve.errors import SpecError, UnsupportedError, UsageError


def run(rate: float | str, throughput: float) -> dict:
    numbers = {"output_throughput": throughput, "median_ttft_ms": 20.0, "median_tpot_ms": 3.0, "slo_attainment": None, "saturated": False}
    return {"model_id": "small", "request_rate": rate, **numbers, "utilisation": {"one": 0.5, "two": 0.0}}


SWEPT = {
    "inputs": {"dataset": "random"},
    "systems": {
        "hetis": {"knee": {"request_rate": 2.0}, "runs": [run(1.0, 10.0), run(2.0, 20.0), run(4.0, 21.0)]},
        "hexgen-policy": {"knee": None, "runs": [run(1.0, 9.0), run(2.0, 11.0)]},
    },
}
ALONE = {"inputs": {"dataset": "random"}, "systems": {"hetis": run("inf", 20.0), "hexgen-policy": run("inf", 11.0)}}


def test_a_row_for_each_run(tmp_path) -> None:
    rows = frame(SWEPT)
    assert list(rows["name"]) == ["hetis"] * 3 + ["hexgen-policy"] * 2 and list(rows["output_throughput"]) == [10, 20, 21, 9, 11]
    assert list(rows["utilisation of one"]) == [0.5] * 5 and set(rows["dataset"]) == {"random"}
    save_csv(SWEPT, tmp_path / "rows.csv")
    assert list(pd.read_csv(tmp_path / "rows.csv").columns) == list(rows.columns)
    with pytest.raises(SpecError, match="cannot be written"):
        save_csv(SWEPT, tmp_path / "no" / "rows.csv")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_same_result_gives_the_same_figure(tmp_path) -> None:
    for path in ("swept.svg", "again.svg"):
        draw(SWEPT, tmp_path / path)
    drawn = (tmp_path / "swept.svg").read_text()
    assert (tmp_path / "again.svg").read_text() == drawn
    assert "hexgen-policy" in drawn and "median TTFT, ms" in drawn and "share within the limits" not in drawn
    draw(ALONE, tmp_path / "alone.png")
    assert (tmp_path / "alone.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SpecError, match="cannot be written"):
        draw(ALONE, tmp_path / "no" / "figure.svg")


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match=r"\.svg, \.png, \.pdf"):
        require_drawable(tmp_path / "figure.txt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="matplotlib, which is not installed") as caught:
        require_drawable(tmp_path / "figure.svg")
    assert "pip install" in caught.value.hint
