"""Measuring: a tiny model on two devices end to end, and the parts that can be held against a count."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from hetserve.engine.accelerator import CpuAccelerator
from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import UnsupportedError, WorkerError
from hetserve.profile.attention import PROMPT_SHARE, chunk_pairs, page_table
from hetserve.profile.contention import keep_at, serve
from hetserve.profile.dense import head_flops, layer_flops
from hetserve.profile.rounds import LEAST_ROUNDS, interleaved, own_clock
from hetserve.profile.run import measure, measure_contention, measure_pair, ticks
from hetserve.profile.site import Site
from hetserve.profile.tasks import ATTENTION, DECODE, PROMPT, QUICK, REST, ContentionTask
from hetserve.spec.cluster import Cluster, Device, Stretch
from hetserve.spec.load import load_profile, save_profile, this_host
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import AttentionLine, DensePoint, DenseTimes, DeviceProfile, require

HOST = this_host()


def model(name: str) -> ModelSpec:
    return ModelSpec.from_hf(RECIPES[name].config, None, name)


def pair(isa: str = "avx2") -> Cluster:
    fast, slow = HOST.cores[:1], HOST.cores[-1:]
    return Cluster("pair", slow, (Device("fast", "cpu", fast, "", 2**26), Device("slow", "cpu", slow, isa, 2**25)))


@pytest.mark.skipif(len(HOST.cores) < 2, reason="two devices need two cores")
def test_a_cluster_is_measured_end_to_end(tmp_path) -> None:
    cluster, tiny = pair(), model("tiny")
    done = []
    profile = measure(cluster, tiny, "bfloat16", QUICK, lambda: done.append(1))
    assert len(done) == ticks(cluster, QUICK)
    save_profile(profile, tmp_path / "p.toml")
    assert load_profile(tmp_path / "p.toml") == profile
    require(profile, cluster, tiny, "bfloat16")
    assert [(one.name, one.isa, one.cap) for one in profile.devices] == [("fast", HOST.isa, ""), ("slow", "avx2", "avx2")]
    for device in profile.devices:
        assert device.read_bytes > 1e8 and device.prefill_pair_s > 0 and device.attention.b_s > 0
        assert [one.weights for one in device.dense] == ["bfloat16", "float32"]
        assert all([point.tokens for point in one.layer] == list(QUICK.tokens) for one in device.dense)
        assert all(point.layer_s > 0 for one in device.dense for point in (*one.layer, *one.lm_head))
    assert [(one.source, one.target) for one in profile.links] == [("fast", "slow"), ("slow", "fast")]
    assert [(one.device, one.other) for one in profile.contention] == [("fast", "slow"), ("slow", "fast")]
    assert all(1e-6 < one.gamma_s * 1024 + one.beta_s < 1 and one.bytes_per_s > 1e6 for one in profile.links)


def test_devices_of_other_nodes_are_not_measured_here() -> None:
    cluster = Cluster("two", (0,), (Device("far", "cpu", (0,), "", 2**26, node="b"),))
    with pytest.raises(UnsupportedError, match="far"):
        measure(cluster, model("tiny"), "bfloat16", QUICK, lambda: None)


def test_a_process_that_fails_is_told(tmp_path) -> None:
    missing = max(HOST.cores) + 4096
    cluster = Cluster("one", (0,), (Device("gone", "cpu", (missing,), "", 2**26),))
    with pytest.raises(WorkerError, match="'gone' failed"):
        measure(cluster, model("tiny"), "bfloat16", QUICK, lambda: None)


@pytest.mark.parametrize("number", [0, 1])
def test_neither_end_of_a_link_waits_for_one_that_fails(number) -> None:
    ends = [Device(name, "cpu", HOST.cores[:1], "", 2**26) for name in ("a", "b")]
    ends[number] = replace(ends[number], cores=(max(HOST.cores) + 4096,))
    with pytest.raises(WorkerError, match=f"'{ends[number].name}' failed"):
        measure_pair((ends[0], ends[1]), QUICK, lambda: None)


@pytest.mark.parametrize("number", [0, 1])
def test_neither_of_two_devices_works_on_beside_one_that_fails(number) -> None:
    ends = [Device(name, "cpu", HOST.cores[:1], "", 2**26) for name in ("a", "b")]
    ends[number] = replace(ends[number], cores=(max(HOST.cores) + 4096,))
    known = DeviceProfile("", "cpu", "", 1, 1.0, AttentionLine(0.0, 0.0, 0.0, 0.0), 1.0, (DenseTimes("bfloat16", (DensePoint(1, 1.0),), ()),))
    with pytest.raises(WorkerError, match=f"'{ends[number].name}' failed"):
        measure_contention((ends[0], ends[1]), {"a": known, "b": known}, model("tiny"), "bfloat16", QUICK, lambda: None)


def test_a_device_stretched_and_not_can_be_told_to_work_and_to_rest() -> None:
    """Orders one by one, as many as come; a median for each kind of work, and none for resting."""
    device = Device("a", "cpu", HOST.cores[:1], "", 2**24, Stretch(1.5, 1.5))
    task = ContentionTask(device, model("tiny"), "bfloat16", QUICK, "float32")
    read, write = os.pipe()
    answers: list[list[float]] = []
    orders = [ATTENTION, DECODE, PROMPT, REST]

    def say(answer) -> None:
        answers.append(list(answer))
        if orders:
            os.write(write, f"{orders.pop(0)}\n".encode())
        else:
            os.close(write)

    with os.fdopen(read, "rb") as told:
        serve(task, Site(CpuAccelerator(), own_clock(device.cores), 2**16, 0), told, say)
    assert [len(answer) for answer in answers] == [0, 1, 1, 1, 0]
    assert all(0 < one_s < 10 for answer in answers for one_s in answer)


def test_work_goes_on_after_its_time_until_told_otherwise() -> None:
    done, answers = [], []

    def point() -> float:
        done.append(1)
        return float(len(done))

    keep_at([point], 0.0, lambda: len(done) == 7, lambda answer: answers.append((len(done), list(answer))))
    assert len(done) == 7 and answers == [(LEAST_ROUNDS, [2.0])]
    keep_at([point], 0.0, lambda: True, lambda answer: answers.append((len(done), list(answer))))
    assert len(done) == 7 + LEAST_ROUNDS, "whoever is told too early answers all the same"
    keep_at([], 1e9, lambda: False, lambda answer: answers.append((0, list(answer))))
    assert answers[-1] == (0, [])


def test_every_round_goes_through_all_points_and_slow_ones_stop_early() -> None:
    calls: list[str] = []

    def point(name: str, *times_s: float):
        taken = iter(times_s)
        return lambda: calls.append(name) or next(taken)

    ticked: list[int] = []
    found = interleaved([point("quick", 3, 1, 2, 9, 9), point("slow", 7, 9, 8)], 5, lambda: ticked.append(1), slow_s=6)
    assert calls[:6] == ["quick", "slow"] * LEAST_ROUNDS and calls.count("slow") == LEAST_ROUNDS
    assert found == [3, 8] and len(ticked) == 5


def test_pages_are_each_used_once_and_mostly_in_runs() -> None:
    lengths = np.array([5, 160, 333, 16], np.int32)
    table, most = page_table(lengths, 3)
    counts = np.repeat(-(-lengths // 16), 3)
    assert table.shape == (12, most) and most == 21
    used = np.concatenate([row[:count] for row, count in zip(table, counts, strict=True)])
    assert sorted(used) == list(range(counts.sum()))
    row = table[6, :21]  # 21 pages of one head: the first 16 in a run
    assert (np.diff(row[: int(21 * PROMPT_SHARE)]) == 1).all() and (np.diff(row[17:]) > 1).all()


def test_counts() -> None:
    assert chunk_pairs(1, 10) == 10 and chunk_pairs(4, 4) == 1 + 2 + 3 + 4 and chunk_pairs(2, 10) == 19
    llama = model("llama-250m")
    assert layer_flops(llama) == 2 * (1024 * (1024 + 2 * 512) + 1024 * 1024 + 3 * 1024 * 2816)
    assert head_flops(llama) == 2 * 32000 * 1024
