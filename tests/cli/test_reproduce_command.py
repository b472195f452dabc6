"""hetserve reproduce as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hetserve.cli.reproduce import reproduce
from hetserve.errors import SpecError, UsageError
from hetserve.reproduce import table
from hetserve.reproduce.claims import claims_of, everything
from hetserve.reproduce.report import Found, Report, Table
from hetserve.reproduce.setup import Setup


def quick(name: str) -> Any:
    """An experiment that gives every claim the paper's own number."""

    def run(setup: Setup) -> Report:
        found = {one.name: Found(one.value, "made up") for one in claims_of(name)}
        return Report(found, (Table("Rows", "simulated", ({"claim": "all"},)),))

    return run


def fails(setup: Setup) -> Report:
    raise SpecError("the trace is gone")


@pytest.fixture(autouse=True)
def quick_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HETSERVE_DATA", raising=False)
    monkeypatch.setattr(table, "EXPERIMENTS", {one.name: quick(one.name) for one in everything()[0]})


def test_the_list_maps_claims_to_experiments(run) -> None:
    done = run("reproduce", "--list", HETSERVE_DATA="")
    assert done.returncode == 0 and "hetis-search" in done.stdout and "tables (no data folder)" in done.stdout
    said = json.loads(run("reproduce", "--list", "--json", HETSERVE_DATA="").stdout)
    listed = {one["name"]: one for one in said["experiments"]}
    assert "hetis-rule" in listed["hetis-search"]["claims"] and listed["hetis-search"]["compute_minutes"] < 3


def test_without_names_all_that_are_simulated_are_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(reproduce, ["--result-dir", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    ran = [one["experiment"] for one in json.loads(done.stdout)["results"]]
    assert ran == [one.name for one in everything()[0] if one.kind == "simulated"]
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(ran)


def test_a_claim_names_its_experiment(tmp_path: Path) -> None:
    done = CliRunner().invoke(reproduce, ["hetis-rule", "--result-dir", str(tmp_path), "--json"])
    assert [one["experiment"] for one in json.loads(done.stdout)["results"]] == ["hetis-search"]


def test_an_experiment_that_fails_does_not_keep_others_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = (one.name for one in everything()[0] if one.kind == "simulated")
    monkeypatch.setitem(table.EXPERIMENTS, first, fails)
    done = CliRunner().invoke(reproduce, ["--result-dir", str(tmp_path), "--json"])
    said = json.loads(done.stdout)
    assert done.exit_code == 1 and said["failed"] == [{"experiment": first, "error": "the trace is gone"}]
    assert [one["experiment"] for one in said["results"]] == others


@pytest.mark.parametrize(
    ("args", "kind", "said"),
    [
        (["hetis-serach"], UsageError, "there is no experiment or claim called 'hetis-serach'"),
        (["--data", "/nowhere"], SpecError, "does not exist"),
    ],
)
def test_what_it_will_not_do(args: list[str], kind: type[Exception], said: str) -> None:
    done = CliRunner().invoke(reproduce, args)
    assert isinstance(done.exception, kind) and said in str(done.exception)
    if kind is UsageError:
        assert "did you mean 'hetis-search'" in done.exception.hint
