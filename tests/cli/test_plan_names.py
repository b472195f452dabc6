"""`hetserve plan` and `simulate` by names alone: a model of the catalog, a cluster on paper, a published load; and what is said of misspelt ones."""

from __future__ import annotations

import json

import pytest


def test_a_plan_by_names_is_simulated(run, tmp_path) -> None:
    plan = tmp_path / "plan.json"
    named = ("--model", "llama-2-70b", "--cluster", "h100x8", "--system", "hexgen2", "--workload", "azure-conv:HPHD")
    made = run("plan", *named, "-o", str(plan))
    assert made.returncode == 0, made.stderr
    assert "H100-SXM-80GB" in made.stdout and "fit" in made.stdout and "roofline" not in made.stdout
    assert json.loads(plan.read_text())["model"]["shape"]["name"] == "Llama-2-70B"
    done = run("simulate", "--plan", str(plan), "--dataset-name", "azure-conv", "--num-prompts", "3", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["systems"]["hexgen2"]["completed"] == 3, done.stderr


@pytest.mark.parametrize(
    ("named", "code", "said", "hint"),
    [
        (("--model", "llama-2-7o"), 4, "'llama-2-7o' is neither", "did you mean 'Llama-2-7"),
        (("--workload", "azure-con"), 2, "no workload called 'azure-con'", "did you mean 'azure-conv'"),
        (("--workload", "azure-conv:HPHP"), 2, "no class called 'HPHP'", "did you mean 'HPHD'"),
        (("--workload", "{empty}"), 3, "empty.csv has no rows", "at least one request"),
    ],
)
def test_names_that_nobody_knows(run, tmp_path, named, code, said, hint) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("ContextTokens,GeneratedTokens\n")
    given = dict([("--model", "Llama-2-7B"), tuple(one.format(empty=empty) for one in named)])
    done = run("plan", "--cluster", "h100x8", "--system", "uniform", *(word for pair in given.items() for word in pair))
    assert done.returncode == code and said in done.stderr and hint in done.stderr and "Traceback" not in done.stderr
    if "empty" in said:
        drawn = run("simulate", "--model", "Llama-2-7B", "--cluster", "h100x8", "--dataset-name", "azure-conv", "--dataset-path", str(empty))
        assert drawn.returncode == code and said in drawn.stderr
