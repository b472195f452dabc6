"""The description of the machine: parsed from text a test can hold, and true of the machine the test runs on."""

from __future__ import annotations

import json
import os

import pytest

from hetserve import machine
from hetserve.spec.host import parse_gpus

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 fma f16c avx2 avx512f avx512bw avx512dq avx512vl avx512_bf16 amx_tile amx_bf16 amx_int8
"""


def flags(text: str) -> str:
    return f"processor\t: 0\nflags\t\t: {text}\n"


def test_levels_of_the_instruction_set() -> None:
    assert machine.isa_levels(XEON) == ["avx2", "avx512", "avx512bf16", "amx"]
    assert machine.isa_levels(flags("avx2 fma f16c")) == ["avx2"]
    assert machine.isa_levels(flags("avx2 fma f16c avx512f amx_tile amx_bf16")) == ["avx2"]  # a level needs those before it
    assert machine.isa_levels("") == []


def test_names() -> None:
    assert machine.cpu_model(XEON).startswith("Intel(R) Xeon(R) Platinum 8481C")
    assert machine.machine_name(machine.cpu_model(XEON), 4) == "intel-xeon-platinum-8481c-4c"
    assert machine.machine_name("AMD EPYC 9B14 96-Core Processor", 2) == "amd-epyc-9b14-2c"


@pytest.mark.parametrize(("text", "cores"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None)])
def test_cgroup_quota(text: str, cores: float | None) -> None:
    assert machine.cpu_quota(text) == cores


def test_gpus_are_what_nvidia_smi_lists(monkeypatch) -> None:
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: parse_gpus("NVIDIA H200, 143771, 9.0, 570.1\nbroken line\n"))
    assert machine.gpus() == [{"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "compute_capability": "9.0", "driver": "570.1"}]
    assert parse_gpus("") == ()


def test_the_description_is_json_and_true_here() -> None:
    facts = json.loads(json.dumps(machine.describe()))
    assert facts["cores"] == len(os.sched_getaffinity(0)) >= 1
    assert 2**28 < facts["memory_free_bytes"] <= facts["memory_bytes"] + 2**30
    assert facts["packages"]["numpy"] and facts["python"].startswith("3.")
    assert facts["name"].endswith(f"-{facts['cores']}c")


def test_commit_is_a_hash_or_unknown() -> None:
    state = machine.source_state()
    assert state == {"commit": None, "dirty": None} or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_a_wheel_has_no_commit(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site-packages" / "hetserve" / "machine.py"))
    assert machine.source_state() == {"commit": None, "dirty": None}


def test_read_bandwidth_is_plausible_and_leaves_the_affinity_alone() -> None:
    before, rounds = os.sched_getaffinity(0), []
    speed = machine.read_bandwidth(machine.usable_cores(), 2**26, rounds=2, done=lambda: rounds.append(1))
    assert 2e8 < speed < 5e12  # bytes/s
    assert len(rounds) == 2 and os.sched_getaffinity(0) == before
