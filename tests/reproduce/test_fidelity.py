"""The simulator held against an engine that is a stand-in here: what is compared, what is judged, and that both had the same requests."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import BenchError
from hetserve.reproduce import fidelity
from hetserve.reproduce.fidelity import CLAIMS, DECLARED, Declared, beside
from hetserve.reproduce.setup import Setup
from hetserve.spec.load import load_plan

PROFILE = Path(__file__).parents[2] / "results" / "profile" / "20261121" / "amd-epyc-2c-llama-250m.toml"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with no weights: planner and simulator ask for the shape only."""
    folder = tmp_path / "llama-250m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RECIPES["llama-250m"].config))
    return folder


def stand_in(monkeypatch: pytest.MonkeyPatch, times: float = 1.0, fewer: int = 0) -> list[list[str]]:
    """`bench` answers with what the simulator finds of its plan and requests, `times` slower and with `fewer` tokens; returns the flags it got."""
    asked: list[list[str]] = []

    def bench(arguments, folder):
        asked.append(arguments)
        plan, flags = load_plan(Path(arguments[arguments.index("--plan") + 1])), dict(zip(arguments[::2], arguments[1::2], strict=True))
        rate = float(flags["--request-rate"])
        workload = fidelity.Requests("azure-conv", int(flags["--num-prompts"]), fidelity.MOST_TOKENS, None, flags.get("--class", "")).arriving(rate)
        done = fidelity.assemble(plan, fidelity.arrivals_of(workload))
        done.run()
        found = fidelity.summary(done, rate)
        found |= {"output_throughput": found["output_throughput"] / times, "total_output_tokens": found["total_output_tokens"] - fewer}
        return {"systems": {"hetserve": found}}

    monkeypatch.setattr(fidelity, "bench", bench)
    return asked


def test_the_worst_of_all_runs_is_judged(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    asked = stand_in(monkeypatch, times=1.25)
    monkeypatch.setattr(fidelity, "checkpoint", lambda folder: model)
    report = fidelity.run(Setup(profile=PROFILE))
    assert len(asked) == len(DECLARED) == 5 and {one.cluster for one in DECLARED} == {"cpu-hetero", "cpu-hetero-wide"}
    assert {claim: round(found.number, 6) for claim, found in report.found.items()} == dict(zip(CLAIMS, (0.25, 0.0, 0.0), strict=True))
    (table,) = report.tables
    assert len(table.rows) == 15 and {row["off by"] for row in table.rows} == {"+25.0%", "+0.0%"}


def test_an_engine_with_other_requests_is_no_comparison(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    stand_in(monkeypatch, fewer=1)
    with pytest.raises(BenchError, match="not the same requests"):
        beside(Declared("cpu-hetero", "HPHD", math.inf, 3), model, PROFILE, None, tmp_path)
