"""plan, simulate and replay as typed: one file goes from the first to the second, one from the second to the third."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder as far as plans go: its config."""
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 50}
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 256, "dtype": "bfloat16", **shape}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_plan_is_made_simulated_and_replayed(run, folder, tmp_path) -> None:
    plan, journal = tmp_path / "plan.json", tmp_path / "run.journal"
    made = run("plan", "--model", str(folder), "--cluster", "cpu-1", "--kv-memory", "1 MiB", "-o", str(plan), "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said.pop("price")["cluster"]["unpriced"] == ["cpu"] and said == json.loads(plan.read_text())
    load = ("--num-prompts", "20", "--random-input-len", "30", "--random-output-len", "9", "--goodput", "ttft:1e9")
    done = run("simulate", "--plan", str(plan), *load, "--journal", str(journal), "--json")
    assert done.returncode == 0, done.stderr
    system = json.loads(done.stdout)["systems"]["uniform"]
    assert (system["completed"], system["failed"], system["total_output_tokens"], system["kind"]) == (20, 0, 180, "simulated")
    assert system["request_goodput"] == system["request_throughput"]
    again = run("simulate", "--plan", str(plan), *load, "--json")
    assert again.stdout == done.stdout
    slowed = json.loads(run("simulate", "--plan", str(plan), *load, "--fault", "cpu:0:3", "--json").stdout)["systems"]["uniform"]
    assert 2 < slowed["duration"] / system["duration"] < 3.01 and slowed["completed"] == 20
    replayed = run("replay", str(journal), "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["counts"]["stop_total"] == 20


def test_tables_for_people(run, folder) -> None:
    made = run("plan", "--model", str(folder))
    assert made.returncode == 0 and "primary" in made.stdout and "not written" in made.stderr
    done = run("simulate", "--model", str(folder), "--num-prompts", "3", "--random-input-len", "9", "--random-output-len", "2")
    assert done.returncode == 0 and "SIMULATED" in done.stdout and "mean TTFT, ms" in done.stdout


def test_every_system_plans_and_says_why(run, folder, tmp_path) -> None:
    two = tmp_path / "two.toml"
    devices = "".join(f'[[device]]\nname = "{name}"\nkind = "cpu"\ncores = [{core}]\nmemory = "64 MiB"\n' for core, name in enumerate(("one", "two")))
    two.write_text(f'[cluster]\nname = "two"\ncontrol_cores = [0]\n{devices}')
    for system in ("hetis", "replicas", "hexgen", "splitwise"):
        flags = ("--cluster", str(two), "--system", system, "--heads", "dealt", "--theta", "off", "--delta", "0.1", "--mean-output-len", "20")
        made = run("plan", "--model", str(folder), *flags, "--mean-concurrency", "3", "--max-num-seqs", "8", "--json")
        assert made.returncode == 0, made.stderr
        plan = json.loads(made.stdout)
        assert plan["system"] == system and any("one:" in note or "one layers" in note or "on one" in note for note in plan["notes"])
        if system == "hetis":
            assert plan["online"] == {"heads": "dealt", "theta": None}


def test_the_schema_of_plans(run) -> None:
    done = run("plan", "--schema")
    assert json.loads(done.stdout)["$defs"]["Plan"]["properties"]["format"] == {"const": 1}


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("plan",), 2, "--model FOLDER"),
        (("plan", "--model", "nowhere"), 4, "neither a model folder nor"),
        (("plan", "--model", "FOLDER", "--system", "unifrom"), 2, "did you mean 'uniform'"),
        (("plan", "--model", "FOLDER", "--cluster", "cpo"), 3, "did you mean 'cpu'"),
        (("plan", "--model", "FOLDER", "--theta", "of"), 2, "neither a number nor off"),
        (("plan", "--model", "FOLDER", "--theta", "0"), 2, "positive"),
        (("plan", "--model", "FOLDER", "--profile", "none.toml"), 3, "none.toml"),
        (("plan", "--model", "FOLDER", "--kv-memory", "1 GB"), 3, "GiB"),
        (("plan", "--model", "FOLDER", "--kv-memory", "900 TiB"), 5, "budget"),
        (("plan", "--model", "FOLDER", "--max-model-len", "300"), 5, "at most 256"),
        (("plan", "--model", "FOLDER", "--max-num-batched-tokens", "9"), 2, "--max-num-seqs"),
        (("plan", "--model", "FOLDER", "-o", "no/such/folder/plan.json"), 3, "cannot be written"),
        (("simulate", "--plan", "nowhere.json"), 3, "cannot be read"),
        (("simulate", "--model", "FOLDER", "--fault", "cpu:now:2"), 2, "DEVICE:SECONDS:TIMES"),
        (("simulate", "--model", "FOLDER", "--fault", "gpu:1:2"), 2, "no device of cluster 'cpu'"),
        (("simulate", "--model", "FOLDER", "--num-prompts", "2", "--random-input-len", "9", "--journal", "no/such/file"), 3, "cannot be written"),
        (("replay", "nowhere.journal"), 8, "cannot be read"),
        (("replay", "FOLDER/config.json"), 8, "no journal"),
        (("replay", "FOLDER"), 8, "cannot be read"),
    ],
)
def test_mistakes_are_told_in_a_sentence(run, folder, args, code, said) -> None:
    done = run(*(arg.replace("FOLDER", str(folder)) for arg in args))
    assert said in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr and done.stdout == ""
