"""Many systems in one benchmark, over made-up servers: who is compared, on which budgets, and what one is told."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from hetserve.bench import launches, vllm_install
from hetserve.bench.launches import Setup
from hetserve.bench.result import without_local_paths
from hetserve.bench.vllm_install import VllmInstall
from hetserve.cli.bench import bench
from hetserve.cli.bench_systems import asked_for, needed_tokens, scales, window
from hetserve.cli.bench_table import render_many
from hetserve.cli.console import Screen
from hetserve.errors import HetserveError, ResourceError, UsageError
from hetserve.profile.tasks import QUICK
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.load import load_model, load_plan, load_profile

MIB = 2**20
SMALL = ["--dataset-name", "random", "--random-input-len", "20", "--random-output-len", "6", "--num-prompts", "4", "--profile", "none"]
CLUSTER = """
[cluster]
name = "two"
control_cores = [0]

[[device]]
name = "fast"
kind = "cpu"
cores = [0]
memory = "800 MiB"

[[device]]
name = "slow"
kind = "cpu"
cores = [1]
memory = "700 MiB"
isa = "avx2"
"""


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A cluster of two cores with 800 and 700 MiB."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    (tmp_path / "two.toml").write_text(CLUSTER.replace("[0]", f"[{cores[0]}]").replace("[1]", f"[{cores[1]}]"))
    return str(tmp_path / "two.toml")


def run(*arguments: str) -> Result:
    got = CliRunner().invoke(bench, list(arguments))
    if got.exception is not None:
        raise got.exception
    return got


def test_each_baseline_is_compared_in_pairs_of_its_own(faked: Any, model: Path, two: str) -> None:
    arguments = ["--system", "uniform", "--baseline", "uniform,vllm-replicas", "--cluster", two, "--model", str(model), *SMALL]
    got = json.loads(run(*arguments, "--json").stdout)
    assert list(got["systems"]) == ["uniform", "uniform-policy", "vllm-replicas"] and got["ours"] == "uniform"
    ours = got["systems"]["uniform"]
    others = ["uniform-policy", "vllm-replicas"]
    assert [(one["against"], one["pair"]) for one in ours["runs"]] == [(name, pair) for name in others for pair in (0, 1)]
    for name in others:
        assert len(got["systems"][name]["runs"]) == 2
        ratio = got["ratios"][name]["output_throughput"]
        assert len(ratio["pairs"]) == 2 and ratio["ci95"] is None
        mine = [one["output_throughput"] for one in ours["runs"] if one["against"] == name]
        assert ratio["pairs"][0] == pytest.approx(mine[0] / got["systems"][name]["runs"][0]["output_throughput"])
        assert got["agreement"][name]["identical"] == 8
        assert {"p95_tpot_ms", "peak_kv_tokens", "preemptions", "server_cpu_s"} <= set(got["systems"][name])
    assert len(got["systems"]["vllm-replicas"]["runs"][0]["replica_tokens_per_s"]) == 2
    assert ours["layout"][0]["stages"][0]["primary"] == ["fast"] and ours["memory_scale"] == 1
    assert got["missing"] == {} and (got["protocol"]["kind"], got["protocol"]["pairs"]) == ("measured", 2)
    assert "--system uniform" in got["command"] and "--kv-memory" not in got["command"]


def test_a_baseline_that_fails_is_a_line_and_not_the_end(faked: Any, model: Path, two: str) -> None:
    faked.faults = {"uniform-policy": "status"}
    arguments = ["--baseline", "uniform,vllm-all", "--cluster", two, "--model", str(model), *SMALL, "--pairs", "1"]
    said = run(*arguments).stdout
    assert "uniform-policy: not run: No request to uniform-policy completed" in said
    assert (
        "vllm-all (other hardware: for scale)" in said and "TPOT p95, ms" in said and "peak KV tokens" in said and "too few for an interval" in said
    )
    saved = json.loads(next(Path("results/bench").glob("*/*.json")).read_text())
    assert list(saved["missing"]) == ["uniform-policy"] and list(saved["ratios"]) == ["vllm-all"]


def test_devices_are_measured_where_no_profile_is_given(faked: Any, model: Path, two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile stands beside the result and in its command, and the plans carry it."""
    monkeypatch.setattr("hetserve.profile.tasks.FULL", QUICK)
    arguments = [word for word in SMALL if word not in ("--profile", "none")]
    got = run("--baseline", "hetis", "--cluster", two, "--model", str(model), *arguments, "--pairs", "1", "--json")
    (path,) = Path("results/bench").glob("*/*-profile-*.toml")
    assert [one.name for one in load_profile(path).devices] == ["fast", "slow"] and "measured first" in got.stderr
    assert f"--profile {path}" in json.loads(got.stdout)["command"]
    again = run("--baseline", "hetis", "--cluster", two, "--model", str(model), *arguments, "--pairs", "1", "--profile", str(path), "--json")
    assert json.loads(again.stdout)["systems"]["hetis"]["plan"] == json.loads(got.stdout)["systems"]["hetis"]["plan"]


def test_a_curve_over_memory_has_the_same_requests_everywhere(faked: Any, model: Path, two: str) -> None:
    arguments = ["--memory-scale", "1,2", "--baseline", "vllm", "--cluster", two, "--model", str(model), *SMALL, "--pairs", "1"]
    got = json.loads(run(*arguments, "--json").stdout)["scales"]
    assert [one["protocol"]["memory_scale"] for one in got] == [1, 2]
    assert got[0]["inputs"] == got[1]["inputs"] and got[1]["protocol"]["budgets_bytes"] == {"fast": 1600 * MIB, "slow": 1400 * MIB}
    assert len(list(Path("results/bench").glob("*/*.json"))) == 2
    windows = {setup.max_model_len for setup in faked.setups}
    vllm = [setup.kv_bytes for setup in faked.setups if [device.name for device in setup.cluster.devices] == ["fast"]]
    assert len(windows) == 1 and vllm[1] - vllm[0] == 800 * MIB
    recorded = Console(file=io.StringIO(), width=200)
    render_many(got, Screen(out=recorded))
    assert "x1" in recorded.file.getvalue() and "x2" in recorded.file.getvalue()  # type: ignore[attr-defined]


def test_the_servers_get_plans_of_the_scaled_cluster(model: Path, two: str, tmp_path: Path) -> None:
    from hetserve.cli.bench_systems import own_system, planner_of
    from hetserve.spec.cluster import scaled
    from hetserve.spec.load import load_cluster

    spec, cluster = load_model(model), scaled(load_cluster(two), 2)
    (one,) = asked_for("uniform", baseline=True)
    plan = planner_of(spec, "bfloat16")(one, cluster, 256)
    setup = Setup(model, "m", cluster, "bfloat16", 0, spec.kv_bytes_per_token("bfloat16"), 256, tmp_path)
    found = own_system(one, plan, setup, tmp_path, "--max-waiting 3")
    command = found.target.command
    assert load_plan(command[command.index("--plan") + 1]) == plan and "--kv-memory" not in command and command[-2:] == ("--max-waiting", "3")
    assert found.target.name == "uniform-policy" and plan.limits.max_model_len == 256
    assert plan.cluster.device("fast").memory_bytes == 1600 * MIB


INSTALL = VllmInstall("/opt/vllm", "cpu", vllm_install.VERSION, "2.13.0+cpu", "")


def test_replicas_are_pinned_capped_and_get_what_their_budget_leaves(model: Path, tmp_path: Path) -> None:
    spec = load_model(model)
    devices = (Device("fast", "cpu", (0,), "", 800 * MIB), Device("slow", "cpu", (1,), "avx2", 700 * MIB), Device("tiny", "cpu", (2,), "", MIB))
    setup = Setup(model, "m", Cluster("c", (1,), devices), "bfloat16", 0, spec.kv_bytes_per_token("bfloat16"), 256, tmp_path)
    fast, slow = launches.vllm_replicas_launch(setup, INSTALL, spec).launches  # the third has no room
    assert (fast.cores, slow.cores) == ((0, 1), (1,)) and fast.control_cores == slow.control_cores == (1,)
    assert [one.environment["VLLM_CPU_OMP_THREADS_BIND"] for one in (fast, slow)] == ["0", "1"]
    assert (slow.environment["ONEDNN_MAX_CPU_ISA"], slow.environment["ATEN_CPU_CAPABILITY"]) == ("AVX2", "avx2")
    assert fast.environment["ONEDNN_MAX_CPU_ISA"] is None and fast.environment["PYTHONPATH"] is None
    assert (Path(str(slow.environment["PYTHONPATH"])) / "sitecustomize.py").read_text() == launches.ASK_FOR_TILES
    assert launches.on_device(setup, devices[0], spec).kv_bytes - launches.on_device(setup, devices[1], spec).kv_bytes == 100 * MIB
    with pytest.raises(ResourceError, match="no replicas"):
        launches.vllm_replicas_launch(Setup(**{**vars(setup), "cluster": Cluster("c", (1,), devices[:1])}), INSTALL, spec)
    whole = launches.vllm_all_launch(setup, INSTALL, spec)
    assert whole.cores == (0, 1, 2) == whole.control_cores and whole.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,2"


def test_names_scales_and_the_window() -> None:
    assert [one.label for one in asked_for("vllm, uniform", baseline=True)] == ["vllm", "uniform-policy"]
    one, other = asked_for("hetis heads=paper theta=none,uniform max_seqs=8", baseline=True)
    assert (one.label, one.planning) == ("hetis-policy heads=paper theta=none", (("heads", "paper"), ("theta", None)))
    assert (other.label, other.planning) == ("uniform-policy max_seqs=8", (("max_seqs", 8),))
    wrong = ("unifrom", "uniform,uniform", "vllm heads=paper", "hetis head=paper", "hetis theta=much", "hetis theta")
    for text, baseline in (("vllm", False), *((one, True) for one in wrong)):
        with pytest.raises(HetserveError):
            asked_for(text, baseline)
    assert scales("1,2,0.5") == (1.0, 2.0, 0.5)
    for text in ("0", "a", "", "-1"):
        with pytest.raises(UsageError):
            scales(text)
    assert window([1000, 700, 0], 500) == 640 and window([1000, 700, 0], 650) == 700 and window([100, 90], 800) == 100
    assert needed_tokens([5] * 98 + [9, 9]) == 5 and needed_tokens([5, 6, 9]) == 9


@pytest.mark.parametrize("more", [["--plan", "p.json"], ["--kv-memory", "1GiB"], ["--base-url", "http://x"], ["--baseline-url", "http://x"]])
def test_what_does_not_go_together_is_said(more: list[str], model: Path) -> None:
    with pytest.raises(UsageError):
        run("--system", "uniform", "--model", str(model), *more)


def test_results_name_no_local_folder() -> None:
    value = {"a": ["/home/me/src/hetserve/x.py --plan /home/me/p.json", 3], "b": "/home/meadow", "c": {"d": "at '/home/me'", "e": None}}
    cleaned = without_local_paths(value, Path("/home/me"), Path("/home/me/src/hetserve"))
    assert cleaned == {"a": ["./x.py --plan ~/p.json", 3], "b": "/home/meadow", "c": {"d": "at '~'", "e": None}}


def test_a_cluster_of_several_devices_is_always_planned_for(two: str, model: Path) -> None:
    with pytest.raises(UsageError, match="--kv-memory is not for systems planned here"):  # as --system would say
        run("--cluster", two, "--model", str(model), "--kv-memory", "1GiB")


def test_an_interrupted_run_keeps_what_was_measured(faked: Any, model: Path, two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hetserve.bench import session

    whole = session.run_both

    def interrupted(experiment: Any, ours: Any, other: Any, *more: Any) -> Any:
        if other.name == "vllm-all":
            raise KeyboardInterrupt
        return whole(experiment, ours, other, *more)

    monkeypatch.setattr(session, "run_both", interrupted)
    said = run("--baseline", "uniform,vllm-all", "--memory-scale", "1,2", "--cluster", two, "--model", str(model), *SMALL, "--pairs", "1").stdout
    assert "vllm-all: not run: interrupted" in said
    (saved,) = Path("results/bench").glob("*/*.json")  # the second scale was not begun
    assert list(json.loads(saved.read_text())["ratios"]) == ["uniform-policy"]
