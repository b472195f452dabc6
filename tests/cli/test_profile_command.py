"""hetserve profile as a user meets it: measures, writes, checks, and says in a sentence what it will not do."""

from __future__ import annotations

import json
import os

import pytest

CORES = sorted(os.sched_getaffinity(0))
ONE = f"""
[cluster]
name = "one"
control_cores = "first"
[[device]]
name = "cpu"
kind = "cpu"
cores = [{CORES[0]}]
memory = "64 MiB"
"""


@pytest.fixture
def one(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text(ONE)
    return path


def test_measures_writes_and_checks(run, tmp_path, one) -> None:
    from hetserve.spec.load import load_profile

    out = tmp_path / "p.toml"
    done = run("profile", "tiny", "--cluster", str(one), "--quick", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "held-out error" in done.stdout and "GFLOP/s" in done.stdout and str(out) in done.stderr
    assert load_profile(out).devices[0].name == "cpu"

    again = run("profile", "tiny", "--cluster", str(one), "--quick", "--check", str(out), "--json")
    said = json.loads(again.stdout)
    assert {"share", "beyond", "what", "bound"} <= said["drift"][0].keys() and said["profile"]["model"] == "tiny"
    assert again.returncode == (3 if any(row["beyond"] for row in said["drift"]) else 0)

    out.write_text(out.read_text().replace("read_bytes = ", "read_bytes = 1"))  # ten times and more
    drifted = run("profile", "tiny", "--cluster", str(one), "--quick", "--check", str(out))
    assert drifted.returncode == 3 and "no longer describes this machine" in drifted.stderr and "beyond" in drifted.stdout

    other = run("profile", "tiny-mha", "--cluster", str(one), "--quick", "--check", str(out))
    assert other.returncode == 3 and "another shape" in other.stderr and not other.stdout


def test_what_it_does_not_measure(run, one) -> None:
    assert "models that can be made" in run("profile", "elephant").stderr
    one.write_text(ONE.replace(f"[{CORES[0]}]", "[4097]"))
    absent = run("profile", "tiny", "--cluster", str(one))
    assert absent.returncode == 5 and "[4097]" in absent.stderr


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(run, one, tmp_path) -> None:
    lost = run("profile", "tiny", "--cluster", str(one), "-o", str(tmp_path / "nowhere" / "p.toml"))
    assert lost.returncode == 2 and "no such folder" in lost.stderr and "measuring" not in lost.stderr


def test_a_stretched_device_is_labelled(run, one) -> None:
    one.write_text(ONE + "stretch = {dense = 3}\n")
    done = run("profile", "tiny", "--cluster", str(one), "--quick")
    assert done.returncode == 0 and "cpu is emulated" in done.stdout
