"""A GPU and the CPU beside it, as typed: the emulated twin goes the whole way anywhere."""

from __future__ import annotations

import json
import os

import pytest

from hetserve.engine.model.recipes import RECIPES
from hetserve.spec.load import load_cluster, load_model, load_profile
from hetserve.spec.profile import require

TWIN = "gpu-emulated-plus-cpu"
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two devices need two cores")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model folder as far as plans go: its config."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RECIPES["tiny"].config))
    return folder


@needs_two
def test_a_profile_is_measured_and_planned_with(run, tiny, tmp_path) -> None:
    path = tmp_path / "p.toml"
    done = run("profile", str(tiny), "--cluster", TWIN, "--quick", "-o", str(path), timeout_s=300)
    assert done.returncode == 0, done.stderr
    assert "cuda-emulated" in done.stdout and "gpu was busy" not in done.stdout
    profile, cluster = load_profile(path), load_cluster(TWIN)
    require(profile, cluster, load_model(tiny), "bfloat16")
    gpu, cpu = profile.devices
    assert (gpu.kind, gpu.isa, gpu.cap, gpu.cpu_share, cpu.kind) == ("cuda-emulated", "cuda-emulated", "", 1.0, "cpu")
    assert gpu.read_bytes > 1e8 and gpu.prefill_pair_s > cpu.prefill_pair_s and gpu.attention.b_s > cpu.attention.b_s
    assert [one.weights for one in gpu.dense] == ["bfloat16", "float32"]
    assert all(point.layer_s > 0 for one in gpu.dense for point in (*one.layer, *one.lm_head))
    assert [(one.source, one.target) for one in profile.links] == [("gpu", "cpu"), ("cpu", "gpu")]
    assert all(0 < one.bytes_per_s < 1e12 and one.gamma_s * 1024 + one.beta_s > 1e-6 for one in profile.links)
    assert [(one.device, one.other) for one in profile.contention] == [("gpu", "cpu"), ("cpu", "gpu")]
    made = run("plan", "--model", str(tiny), "--cluster", TWIN, "--system", "hetis", "--profile", str(path), "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["profile"]["devices"][0]["kind"] == "cuda-emulated"


@needs_two
@pytest.mark.parametrize("system", ["hetis", "uniform"])
def test_without_a_profile_the_twin_is_planned_for_as_if_it_had_a_gpu(run, tiny, system) -> None:
    made = run("plan", "--model", str(tiny), "--cluster", TWIN, "--system", system, "--json")
    assert made.returncode == 0, made.stderr
    (stage,) = json.loads(made.stdout)["groups"][0]["stages"]
    assert stage["primary"] == ["gpu"] and stage["attention"] == (["cpu"] if system == "hetis" else []) and stage["weights"] == "bfloat16"


@needs_two
def test_the_twin_can_be_looked_at(run) -> None:
    done = run("doctor", "--quick", "--cluster", TWIN, "--json")
    assert done.returncode == 0 and [one["kind"] for one in json.loads(done.stdout)["cluster"]["devices"]] == ["cuda-emulated", "cpu"]
