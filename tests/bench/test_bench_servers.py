"""Servers as process trees: started, awaited, frozen, stopped, to the last child; and the whole protocol over two made-up servers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hetserve.bench import comparison, session, watch
from hetserve.bench.comparison import Remote
from hetserve.bench.process import Launch, Server, drain, free_port, get
from hetserve.bench.replicas import ReplicaLaunch
from hetserve.bench.session import Experiment
from hetserve.errors import BaselineError, BenchError
from hetserve.trace.arrivals import Arrivals
from hetserve.trace.datasets import DatasetSpec, Workload, build
from hetserve.trace.vocab import Vocabulary

SCRIPT = Path(__file__).with_name("bench_fake_server.py")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetserve.bench.process.CHILDREN_S", 0.2)  # the fake server's child ends on SIGTERM only


@contextmanager
def stage(label: str, total: float | None) -> Iterator[Any]:
    yield lambda done=1, note="": None


def launch(folder: Path, name: str = "fake", fault: str = "none", program: tuple[str, ...] = ()) -> Launch:
    port = free_port()
    command = program or (sys.executable, str(SCRIPT), str(port), "--fault", fault, "--noted", str(folder / f"{name}.noted"))
    return Launch(
        name, command, {"FAKE_SETTING": "1", "HOME": None}, (0,), f"http://127.0.0.1:{port}", folder / f"{name}.log", BaselineError, "a hint"
    )


def processes(server: Server) -> list[psutil.Process]:
    return [process for process in server.tree() if process.is_running()]


def test_a_server_is_awaited_frozen_thawed_and_stopped_with_its_children(tmp_path: Path) -> None:
    with Server(launch(tmp_path)) as server:
        ticks = []
        server.wait_ready(30, lambda: ticks.append(1))
        members = processes(server)
        assert len(members) == 2 and ticks
        assert {process.cpu_affinity() == [0] for process in members} == {True}
        environment = members[0].environ()
        assert environment["FAKE_SETTING"] == "1" and "HOME" not in environment
        server.freeze()
        assert server.frozen and {process.status() for process in members} == {psutil.STATUS_STOPPED}
        used_s = server.cpu_s()
        time.sleep(0.1)
        assert server.cpu_s() == used_s > 0
        server.thaw()
        assert get(server.url, "/health")[0] == 200
        server.require_alive()
        server.freeze()
    left = [str(process) for process in members if process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)]
    assert left == []  # frozen as it was


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_all_but_engine_processes_go_to_the_control_cores(tmp_path: Path) -> None:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    chosen = replace(launch(tmp_path), cores=(first, second), control_cores=(first,), engine="time.sleep")
    with Server(chosen) as server:
        server.wait_ready(30)
        found = {("sleep" in " ".join(process.cmdline())): process.cpu_affinity() for process in processes(server)}
    assert found == {True: [first, second], False: [first]}


def test_a_server_that_ignores_signals_is_killed_and_so_is_an_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetserve.bench.process.STOP_S", 0.3)
    code = "import signal, subprocess, sys, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\n"
    code += "subprocess.Popen([sys.executable, '-c', sys.argv[1] or 'import time; time.sleep(600)'])\nprint('up', flush=True)\ntime.sleep(600)"
    server = Server(launch(tmp_path, program=(sys.executable, "-c", code, "")))
    deadline = time.monotonic() + 10
    while "up" not in server.log_tail() and time.monotonic() < deadline:
        time.sleep(0.05)
    members = processes(server)
    assert len(members) == 2
    server.stop()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in members)


def test_a_second_signal_does_not_leave_servers_running(tmp_path: Path) -> None:
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    with Server(launch(tmp_path)) as server:
        server.wait_ready(30)
        members = processes(server)
        assert len(members) == 2
        stopping = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))  # the child takes 0.2 s to be told to end
        stopping.start()
    stopping.join()
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == before
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in members)


def test_a_server_that_ends_early_shows_the_end_of_its_log(tmp_path: Path) -> None:
    program = (sys.executable, "-c", "import sys; print('\\n'.join(f'line {i}' for i in range(100))); sys.exit('no such model')")
    with pytest.raises(BaselineError, match="no such model") as caught, Server(launch(tmp_path, "vllm", program=program)) as server:
        server.wait_ready(30)
    assert "exit code 1" in caught.value.message and "line 99" in caught.value.message and "line 3\n" not in caught.value.message
    assert caught.value.hint == "a hint"


def test_a_server_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="not ready after"), Server(launch(tmp_path, program=("sleep", "60"))) as server:
        server.wait_ready(0.3)


def test_draining_waits_for_running_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = 'vllm:num_requests_running{a="1"} 2.0\nvllm:num_requests_waiting 0.0\n'
    said = iter([busy, "vllm:num_requests_waiting 1.0\n", "vllm:num_requests_running 0.0\n"])
    monkeypatch.setattr("hetserve.bench.process.get", lambda url, path: (200, next(said)))
    monkeypatch.setattr("hetserve.bench.process.POLL_S", 0.0)
    drain("http://x")
    assert next(said, None) is None


def workload(count: int = 6, output: int = 12) -> Workload:
    spec = DatasetSpec("random", count, random_input_len=400, random_output_len=output)
    return build(spec, Arrivals(), Vocabulary(np.arange(3, 900), Path(".")), 10_000)


def experiment(pairs: int = 2, **more: Any) -> Experiment:
    return Experiment(workload(), {"return_token_ids": True}, (0,), (0,), pairs=pairs, ready_s=30.0, **more)


def noted(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.noted").read_text().splitlines()]


def test_the_protocol_over_two_servers(tmp_path: Path) -> None:
    ours, theirs = launch(tmp_path, "hetserve"), launch(tmp_path, "vllm")
    chosen = experiment(pairs=3)
    measured = session.run_both(chosen, ours, theirs, {"hetserve": "a", "vllm": "b"}, stage)
    assert [(one.system, one.pair) for one in measured] == [("hetserve", 0), ("vllm", 0), ("vllm", 1), ("hetserve", 1), ("hetserve", 2), ("vllm", 2)]
    for pair in range(3):
        mine, other = (one for one in measured if one.pair == pair)
        assert mine.job.requests == other.job.requests == chosen.workload.requests(1)
    assert all(one.summary["completed"] == 6 for one in measured)
    assert sum(one.summary["server_cpu_s"] for one in measured) > 0
    first, second = noted(tmp_path, "hetserve"), noted(tmp_path, "vllm")
    for rows, warm_ups in ((first, 2), (second, 2)):  # switches: to A, to B, to A, to B (A runs pairs 2 and 3 without one between)
        short = [row for row in rows if row["prompt"] == comparison.LATER_PROMPT_TOKENS]
        assert len(rows) == 3 * 6 + 6 + len(short) and len(short) == (warm_ups - 1) * 3
    spans = [(min(one), max(one)) for one in _turns(first, second)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))  # never both at once


def _turns(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[list[float]]:
    """Arrival times, cut wherever the other server takes over."""
    rows = sorted([(row["at_s"], 0) for row in first] + [(row["at_s"], 1) for row in second])
    turns: list[list[float]] = []
    for number, (at_s, which) in enumerate(rows):
        if number == 0 or rows[number - 1][1] != which:
            turns.append([])
        turns[-1].append(at_s)
    assert len(turns) == 4  # A, BB, AA, B with their warm-ups: requests never interleave
    return turns


def test_outputs_of_equal_servers_agree_and_a_wrong_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetserve.bench.session.HfReference", lambda folder, threads: Sure())
    chosen = experiment(pairs=1)
    for fault, expected in (("none", (6, 6, 0)), ("wrong", (6, 0, 6)), ("short", (6, 0, 6))):
        ours, theirs = launch(tmp_path, "hetserve", fault), launch(tmp_path, "vllm")
        measured = session.run_both(chosen, ours, theirs, {"hetserve": "a", "vllm": "b"}, stage)
        found, by = session.compare_outputs(chosen, measured, tmp_path, stage)
        assert (found.compared, found.identical, found.wrong) == expected and by == "token ids"


class Sure:
    """A reference without rounding: nothing is a tie."""

    def logits(self, text: Any, lengths: Any) -> tuple[Any, Any]:
        exact = np.tile(np.arange(2000, dtype=np.float32), (len(lengths), 1))
        return exact, exact


def test_a_server_without_token_ids_is_compared_by_text(tmp_path: Path) -> None:
    chosen = experiment(pairs=2, fresh_prompts=True)
    with Server(launch(tmp_path, "other", "no-ids")) as other:
        other.wait_ready(30)
        measured = session.run_both(chosen, launch(tmp_path, "hetserve"), Remote("vllm", other.url), {"hetserve": "a", "vllm": "b"}, stage)
    assert [one.job.requests for one in measured] == [chosen.workload.requests(pair + 1) for pair in (0, 0, 1, 1)]  # drawn anew for each pair
    found, by = session.compare_outputs(chosen, measured, tmp_path, stage)
    assert (by, found.compared, found.identical, found.unchecked) == ("text", 12, 12, 0)
    assert measured[1].summary["server_cpu_s"] is None


def test_a_server_that_dies_or_fails_everything_stops_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="while it was measured"):
        session.run_both(experiment(), launch(tmp_path, "hetserve"), launch(tmp_path, "vllm", "dies"), {"hetserve": "a", "vllm": "b"}, stage)
    with pytest.raises(BenchError, match=r"No request to hetserve completed.*503"):
        session.run_one(experiment(), launch(tmp_path, "hetserve", "status"), "a", stage)


def test_an_absent_server_is_said_before_anything_runs() -> None:
    with pytest.raises(BenchError, match="Nobody answers"):
        session.run_one(experiment(), Remote("server", f"http://127.0.0.1:{free_port()}"), "a", stage)


def test_one_system_alone_is_measured_once(tmp_path: Path) -> None:
    measured = session.run_one(experiment(warmups=False), launch(tmp_path, "hetserve"), "a", stage)
    assert len(measured) == 1 and len(noted(tmp_path, "hetserve")) == 6


def test_replicas_are_one_system_whose_speeds_the_warm_up_measures(tmp_path: Path) -> None:
    both = ReplicaLaunch("vllm-replicas", (launch(tmp_path, "fast"), launch(tmp_path, "slow")))
    measured = session.run_both(experiment(pairs=1), launch(tmp_path, "hetserve"), both, {"hetserve": "a", "vllm-replicas": "b"}, stage)
    mine, other = measured
    assert (mine.against, other.against) == ("vllm-replicas", "hetserve")
    assert len(other.job.replicas) == 2 and all(speed not in (0, 1) for _, speed in other.job.replicas)  # 1 is what nobody has measured
    assert len(noted(tmp_path, "fast")) + len(noted(tmp_path, "slow")) == 2 * 12 + 6 + 6  # each alone, twice; warm-up and run together
    assert other.summary["completed"] == 6 and other.summary["server_cpu_s"] > 0
    assert mine.summary["preemptions"] == 6 and mine.summary["moves"] is None  # the fake counts its requests there


PAGE = """# HELP vllm:kv_cache_usage_perc x
vllm:kv_cache_usage_perc{engine="0",model_name="a b"} 0.25
vllm:cache_config_info{block_size="128",num_gpu_blocks="10",engine="0"} 1.0
vllm:num_preemptions_total{engine="0"} 3.0
hetserve:engine_odd nan-ish
"""


def test_resident_tokens_of_either_kind_of_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch.kv_tokens(watch.parse(PAGE)) == 320
    assert watch.kv_tokens(watch.parse(PAGE + 'hetserve:engine_kv_tokens{model_name="m"} 77\n')) == 77
    assert watch.kv_tokens(watch.parse("vllm:kv_cache_usage_perc 0.5\n")) is None
    before = "vllm:num_preemptions_total 3\nhetserve:engine_controller_s 1.5"
    during = 'hetserve:engine_kv_tokens 50\nhetserve:pool_lost{device="fast"} 0\nhetserve:pool_lost{device="slow"} 1'
    after = "hetserve:engine_kv_tokens 20\nvllm:num_preemptions_total 5\nhetserve:engine_controller_s 1.75"
    pages = iter([before, during, after])
    monkeypatch.setattr("hetserve.bench.watch.get", lambda url, path: (200, next(pages) + "\n"))
    seen: list[str] = []
    sampled = watch.Watch("a", ["http://x"], lambda name, pages: seen.append(name))
    sampled.sample()
    totals = {"preemptions": 2.0, "moves": None, "steps": None, "step_s": None, "controller_s": 0.25}
    assert sampled.summary() == {"peak_kv_tokens": 50.0, **totals, "devices_lost": ["slow"]} and seen == ["a", "a"]
