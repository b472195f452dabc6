"""`hetserve simulate` beyond one plan at one rate: several systems, sweeps, knees, traces, files, and what it says when it cannot."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from hetserve.cli.simulate import simulate
from hetserve.errors import HetserveError

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 50}
DEVICE = '[[device]]\nname = "{}"\nkind = "cpu"\ncores = [{}]\nmemory = "64 MiB"\n'
LOAD = ("--num-prompts", "40", "--random-input-len", "30", "--random-output-len", "6")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    """A model of two sizes as far as plans go, a cluster of two devices, and no public data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HETSERVE_DATA", raising=False)
    for name, shape in (("small", SHAPE), ("other", SHAPE | {"intermediate_size": 128})):
        config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 256, "dtype": "bfloat16", **shape}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    devices = "".join(DEVICE.format(name, core) for core, name in enumerate(("one", "two")))
    (tmp_path / "two.toml").write_text(f'[cluster]\nname = "two"\ncontrol_cores = [0]\n{devices}')
    (tmp_path / "one.toml").write_text(f'[cluster]\nname = "one"\ncontrol_cores = [0]\n{DEVICE.format("one", 0)}')


@pytest.fixture
def out(capsys):
    """out(*flags) -> what the command prints on stdout; `--json` in them: read."""

    def go(*flags: str):
        capsys.readouterr()
        simulate.main([*flags], standalone_mode=False)
        said = capsys.readouterr().out
        return json.loads(said) if "--json" in flags else said

    return go


ON_TWO = ("--model", "small", "--cluster", "two.toml", *LOAD)


def test_systems_beside_each_other(out) -> None:
    """Each is planned for the same requests and gets them; the others are called as bench calls baselines."""
    result = out(*ON_TWO, "--system", "hexgen,splitwise,uniform", "--goodput", "ttft:1e9", "tpot:1e9", "--request-rate", "50", "--json")
    systems = result["systems"]
    assert list(systems) == ["hexgen", "splitwise-policy", "uniform-policy"] and not result["missing"]
    assert [one["system"] for one in systems.values()] == ["hexgen", "splitwise", "uniform"]
    for one in systems.values():
        assert (one["kind"], one["completed"], one["total_input_tokens"], one["total_output_tokens"]) == ("simulated", 40, 1200, 240)
        assert one["slo_attainment"] == 1 and one["request_rate"] == 50 and one["layout"]
    assert systems["splitwise-policy"]["moves"] == 40 and systems["uniform-policy"]["utilisation"]["two"] == 0
    table = out(*ON_TWO, "--system", "hexgen,splitwise")
    assert "metric" in table and "splitwise-policy" in table and "mean TTFT, ms" in table and "busy share of the time" in table
    assert next(line for line in table.splitlines() if line.startswith("two ")).count("%") == 2


def test_a_system_without_a_layout_says_why_and_stops_nobody(out) -> None:
    flags = ("--model", "small", "--cluster", "one.toml", *LOAD)
    result = out(*flags, "--system", "splitwise,uniform", "--json")
    assert list(result["systems"]) == ["uniform-policy"] and list(result["missing"]) == ["splitwise"] and result["missing"]["splitwise"]
    assert f"splitwise: not simulated: {result['missing']['splitwise']}" in out(*flags, "--system", "splitwise,uniform")
    with pytest.raises(HetserveError) as caught:
        out(*flags, "--system", "splitwise")
    assert caught.value.message == result["missing"]["splitwise"]


def test_a_name_may_carry_options_of_its_planner(out) -> None:
    result = out(*ON_TWO, "--system", "hetis,hetis heads=paper theta=none", "--json")
    assert list(result["systems"]) == ["hetis", "hetis-policy heads=paper theta=none"]
    assert len({one["plan"] for one in result["systems"].values()}) == 2


def test_a_sweep_has_a_run_a_rate_and_a_knee(out, tmp_path) -> None:
    flags = (*ON_TWO, "--system", "uniform", "--max-num-seqs", "4")
    once = out(*flags, "--json")["systems"]["uniform"]
    low, high = once["request_throughput"] / 20, once["request_throughput"] * 20
    swept = out(*flags, "--request-rate", f"{high},{low}", "--csv", "rows.csv", "--json")["systems"]["uniform"]
    assert [run["request_rate"] for run in swept["runs"]] == [low, high] and "duration" not in swept
    assert (swept["knee"]["request_rate"], swept["knee"]["above"]) == (low, high)
    rows = pd.read_csv("rows.csv")
    assert list(rows["request_rate"]) == [low, high] and {"name", "p99_ttft_ms", "utilisation of two", "output_share"} <= set(rows.columns)
    even = out(*flags, "--sweep", f"{low}:{3 * low}:3", "--json")["systems"]["uniform"]
    assert [run["request_rate"] for run in even["runs"]] == pytest.approx([low, 2 * low, 3 * low]) and even["knee"]["above"] is None
    found = out(*flags, "--find-knee", "--json")["systems"]["uniform"]["knee"]
    assert low < found["request_rate"] < found["above"] <= 1.05 * found["request_rate"] < high
    table = out(*flags, "--request-rate", f"{low},{high}")
    assert "uniform: knee at" in table and "output / due" in table and "  knee: the highest rate" in table


def test_a_trace_is_followed_at_its_own_times(out, tmp_path) -> None:
    rows = "".join(f"2023-11-16 18:15:{2 * row:02d}.0000000,30,5\n" for row in range(20))
    (tmp_path / "trace.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    flags = ("--model", "small", "--dataset-name", "azure-conv", "--dataset-path", "trace.csv", "--use-trace-timestamps", "--json")
    as_it_was = out(*flags)["systems"]["uniform"]
    assert as_it_was["num_prompts"] == 20 and as_it_was["request_rate"] == pytest.approx(20 / 38) and 38 < as_it_was["duration"] < 39
    assert 76 < out(*flags, "--slowdown-factor", "2")["systems"]["uniform"]["duration"] < 77
    stretched = out(*flags, "--request-rate", "5", "--num-prompts", "10")["systems"]["uniform"]
    assert stretched["num_prompts"] == 10 and 2 < stretched["duration"] < 3


def test_what_plans_are_made_for_is_simulated_unless_another_dataset_is_named(out) -> None:
    flags = ("--model", "small", "--num-prompts", "9", "--max-request-len", "256", "--workload", "azure-conv:LPLD", "--json")
    inputs = out(*flags)["inputs"]
    assert (inputs["dataset"], inputs["class"]) == ("azure-conv", "LPLD")
    inputs = out(*flags, "--dataset-name", "humaneval")["inputs"]
    assert inputs["dataset"] == "humaneval" and "class" not in inputs


def test_a_plan_is_for_its_model(out, tmp_path) -> None:
    from hetserve.cli.plan import plan

    plan.main(["--model", "small", "-o", "plan.json"], standalone_mode=False)
    result = out("--plan", "plan.json", "--model", "small", *LOAD, "--json")
    assert result["systems"]["uniform"]["completed"] == 40
    with pytest.raises(HetserveError, match="made for the model 'small', which has another shape than 'other'"):
        out("--plan", "plan.json", "--model", "other", *LOAD)
    for flags in (("--system", "hexgen"), ("--dtype", "auto"), ("--cluster", "cpu")):
        with pytest.raises(HetserveError, match=f"made already, so {flags[0]} cannot"):
            out("--plan", "plan.json", *flags, *LOAD)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--request-rate", "0"), "--request-rate got '0'"),
        (("--request-rate", "1,-2"), "--request-rate got '1,-2'"),
        (("--request-rate", "fast"), "--request-rate got 'fast'"),
        (("--request-rate", "1,inf"), "inf is no rate of a sweep"),
        (("--sweep", "4:1:3"), "--sweep got '4:1:3'"),
        (("--sweep", "1:4"), "--sweep got '1:4'"),
        (("--sweep", "1:4:3", "--request-rate", "2"), "both say the rates"),
        (("--slowdown-factor", "2"), "stretches the times of"),
        (("--use-trace-timestamps",), "no times of their own"),
        (("--dataset-name", "azure-con"), "no dataset called 'azure-con'"),
        (("--workload", "empty.csv"), "no dataset called 'empty.csv'"),
        (("--dataset-name", "azure-conv", "--dataset-path", "empty.csv"), "no rows"),
        (("--data-dir", "nowhere"), "nowhere does not exist"),
        (("--system", "vllm"), "system of this engine"),
        (("--system", "uniform,vllm"), "cannot be simulated"),
        (("--system", "uniform,uniform"), "names a system twice"),
        (("--system", "uniform,hexgn"), "no baseline called 'hexgn'"),
        (("--plot", "figure.bmp"), "a figure is drawn as"),
        (("--percentile-metrics", "tftt"), "does not know tftt"),
        (("--journal", "run.journal", "--request-rate", "1,2"), "--journal records one run"),
        (("--find-knee", "--num-prompts", "4"), "too few to tell"),
        (("--find-knee", "--num-prompts", "4", "--system", "uniform,hexgen"), "too few to tell"),
    ],
)
def test_mistakes_are_told_in_a_sentence(out, tmp_path, flags, said) -> None:
    (tmp_path / "empty.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(HetserveError) as caught:
        out("--model", "small", *LOAD, *flags)
    assert said in caught.value.message and "\n" not in caught.value.message
