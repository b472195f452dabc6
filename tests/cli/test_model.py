"""model make and model show, as typed."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models") / "tiny"


def test_make_then_show(run, folder) -> None:
    made = run("model", "make", "tiny", str(folder), "--json")
    assert made.returncode == 0, made.stderr
    shown = run("model", "show", str(folder), "--json")
    facts = json.loads(shown.stdout)
    assert facts == json.loads(made.stdout)
    assert facts["spec"]["family"] == "llama"
    assert facts["weight_bytes"] == 2 * facts["parameters"] <= sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    spec = facts["spec"]
    assert facts["kv_bytes_per_token"] == 2 * 2 * spec["layers"] * spec["kv_heads"] * spec["head_dim"]


def test_the_table_for_people(run, folder) -> None:
    run("model", "make", "tiny", str(folder))
    done = run("model", "show", str(folder))
    assert done.returncode == 0
    assert "KV cache" in done.stdout and "bytes a token" in done.stdout and "M parameters" in done.stdout
    assert "1,536 bytes a token and layer head by head; along the sequence over 4 devices 2.67 times" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["make", "nix", "x"], 2, "tiny-opt"),
        (["make", "tiny", "x", "--seed", "-1"], 2, "--seed"),
        (["make", "tiny", "."], 2, "something else"),
        (["make", "tiny", "/proc/x"], 5, "/proc/"),
        (["show", "."], 4, "config.json"),
        (["show", "nowhere"], 4, "nowhere"),
        (["show"], 2, "FOLDER"),
    ],
)
def test_what_cannot_be_done_is_said(run, tmp_path, monkeypatch, args: list[str], code: int, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    done = run("model", *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert "error: " in done.stderr and expected in done.stderr
    assert "Traceback" not in done.stderr and "fault in hetserve" not in done.stderr


def test_a_model_of_an_unknown_kind_is_refused(run, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}))
    done = run("model", "show", str(tmp_path))
    assert done.returncode == 9
    assert "mixtral" in done.stderr.lower() and "llama" in done.stderr.lower()
