"""An experiment run and written down: verdicts, files that are never written over, inputs that are never mixed, processes that give the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hetserve.errors import BenchError
from hetserve.reproduce import figure, runner
from hetserve.reproduce.claims import About, Claim
from hetserve.reproduce.report import Bars, Found, Report, Table, show, wanted
from hetserve.reproduce.runner import run, write
from hetserve.reproduce.setup import Requests, Setup, at_hand

ABOUT = About("made-up", "a made-up experiment", "simulated", 1, 1, ("sharegpt", "humaneval"), ("everything",))
CLAIM = Claim("faster", "P", "twice as fast", 2.0, "times", "Fig. 1", "quoted", "made-up", "ratio", (1.6, 2.5), (1.05, float("inf")), "it is made up")
MACHINE = {"name": "box", "commit": "abc", "dirty": False, "cores": 2}
ROWS = ({"system": "a", "tokens/s": 3000.0, "of": "simulated"}, {"system": "b", "tokens/s": None, "of": "simulated"})


@pytest.fixture(autouse=True)
def claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "claims_of", lambda name: [CLAIM])


def report(number: float = 2.2) -> Report:
    bars = Bars("tokens/s", ("x", "y"), {"a": [1.0, 2.0], "b": [None, 1.0]}, {"twice": 2.0})
    return Report({"faster": Found(number, "row a")}, (Table("Rows", "simulated", ROWS, ({"dataset": "sharegpt", "rows": 7},)),), bars, ("a note",))


def test_a_result_says_what_it_is_of(tmp_path: Path) -> None:
    done, found = run(ABOUT, lambda setup: report(), Setup(), MACHINE, "hetserve reproduce made-up")
    kept = write(done, found, Setup(), tmp_path)
    assert kept.path is not None and kept.path.parent.parent == tmp_path / "made-up" and kept.path.name == "box.json"
    said = json.loads(kept.path.read_text())
    assert (said["kind"], said["commit"], said["command"]) == ("simulated", "abc", "hetserve reproduce made-up")
    assert "tables" in said["source"] and said["tables"][0]["label"] == "simulated" and said["tables"][0]["inputs"][0]["rows"] == 7
    (claim,) = said["claims"]
    assert claim["paper"]["label"] == "paper" and claim["paper"]["value"] == 2.0 and claim["ours"] == {"value": 2.2, "how": "row a"}
    assert claim["verdict"] == "reproduced" and claim["because"] == "" and claim["partly"] == [1.05, None]
    page = kept.path.with_suffix(".md").read_text()
    assert "**reproduced**" in page and "2 times (P, Fig. 1, quoted)" in page and "| a | 3,000 | simulated |" in page and "a note" in page


def test_a_claim_that_is_missed_says_why() -> None:
    done, _ = run(ABOUT, lambda setup: report(0.9), Setup(), MACHINE, "")
    assert done.result["claims"][0]["verdict"] == "not reproduced" and "faster: it is made up" in done.page


def test_nothing_is_written_over(tmp_path: Path) -> None:
    done, found = run(ABOUT, lambda setup: report(), Setup(), MACHINE, "")
    first, second = (write(done, found, Setup(), tmp_path) for _ in range(2))
    files = write(done, found, Setup(data=tmp_path), tmp_path)
    assert first.path is not None and second.path is not None and files.path is not None
    assert [one.path.name for one in (first, second, files) if one.path] == ["box.json", "box-2.json", "box-files.json"]
    if figure.drawable():
        assert "(box-2.svg)" in second.path.with_suffix(".md").read_text()
        assert first.path.with_suffix(".svg").read_bytes() == second.path.with_suffix(".svg").read_bytes()  # the same report, the same bytes


def test_an_experiment_that_forgets_a_claim_fails() -> None:
    with pytest.raises(BenchError, match="found no number for faster"):
        run(ABOUT, lambda setup: replace(report(), found={}), Setup(), MACHINE, "")


def test_files_are_used_only_if_all_are_there(tmp_path: Path) -> None:
    (tmp_path / "helix_shared_gpt_lengths.csv").write_text("input_tokens,output_tokens\n10,20\n")
    assert at_hand(ABOUT, tmp_path) is None and at_hand(ABOUT, None) is None
    (tmp_path / "humaneval_lengths_llama2_tokenizer.csv").write_text("prompt_tokens,canonical_solution_tokens\n10,20\n")
    assert at_hand(ABOUT, tmp_path) == tmp_path
    drawn = Requests("sharegpt", 3, 2048, tmp_path).drawn()
    assert drawn.lengths.input_tokens == (10, 10, 10) and drawn.lengths.inputs["input"] == "file"


def test_requests_come_from_the_committed_tables_and_are_always_the_same() -> None:
    asked = Requests("humaneval", 50, 2048)
    assert asked.drawn().lengths == asked.drawn().lengths and asked.drawn().lengths.inputs["input"] == "table"
    early, late = asked.arriving(10.0).arrivals_s, asked.arriving(5.0).arrivals_s
    assert late == pytest.approx([2 * at_s for at_s in early])  # the same pattern at every rate


def _twice(cell: int) -> int:
    return 2 * cell


def test_two_processes_give_what_one_gives_in_the_same_order() -> None:
    heard: list[tuple[int, int]] = []
    one, two = Setup(), Setup(processes=2, advance=lambda done, total: heard.append((done, total)))
    assert one.each(_twice, range(3)) == two.each(_twice, range(3)) == [0, 2, 4]
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_numbers_for_people() -> None:
    assert [show(one) for one in (None, 1234.6, 0.12345, 12345, "x")] == ["-", "1,235", "0.123", "12,345", "x"]
    assert [wanted(one) for one in ((1.6, 2.5), (2.0, None), (0.0, 4.0), (None, 4.0), (1.0, 1.0))] == [
        *("1.6 to 2.5", "at least 2", "at most 4", "at most 4", "1"),
    ]
