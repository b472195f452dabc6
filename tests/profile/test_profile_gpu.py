"""Measuring a GPU: its parts on an emulated one, and what only a real one has, with stand-ins. The whole way: tests/cli/test_gpu_clusters.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from hetserve import _C
from hetserve.engine import accelerator
from hetserve.engine.accelerator import CpuAccelerator, CudaGpu, EmulatedGpu
from hetserve.engine.attention import KvMemory
from hetserve.engine.model.recipes import RECIPES
from hetserve.engine.transport.connect import by_nccl
from hetserve.engine.transport.link import HEADS, make_tag
from hetserve.engine.transport.nccl import device_messages
from hetserve.profile import link
from hetserve.profile import site as sites
from hetserve.profile.attention import AttentionBench, Step, passes
from hetserve.profile.dense import IN_A_ROW, in_turn
from hetserve.profile.run import ticks
from hetserve.profile.site import Site, read_bytes
from hetserve.profile.tasks import (
    FULL,
    FULL_GPU,
    QUICK,
    TRIAL,
    ContentionTask,
    DeviceSamples,
    DeviceTask,
    LinkTask,
    decode,
    device_ticks,
    effort_on,
    encode,
)
from hetserve.spec.cluster import Cluster, Device, Stretch
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import PAGE_TOKENS
from hetserve.spec.profile import DensePoint, DenseTimes

TINY = ModelSpec.from_hf(RECIPES["tiny"].config, None, "tiny")
GPU = Device("gpu", "cuda-emulated", (0,), "", 2**26)


def test_each_kind_of_device_is_measured_as_far_as_it_fills() -> None:
    assert effort_on("cpu", FULL) is FULL and effort_on("cuda", FULL) is FULL_GPU and effort_on("cuda", QUICK) is QUICK
    assert effort_on("cuda-emulated", FULL) is effort_on("cuda-emulated", QUICK) is TRIAL
    assert FULL_GPU.most_requests == 256 and max(FULL_GPU.tokens) == 4096 and FULL_GPU.rounds == FULL.rounds


def test_ticks_are_of_what_each_device_is_measured_with() -> None:
    pair = Cluster("pair", (0,), (GPU, Device("cpu", "cpu", (0,), "", 2**26)))
    assert ticks(pair, FULL) == device_ticks(TRIAL) + device_ticks(FULL) + FULL.mixed_rounds + FULL.rounds


@pytest.mark.parametrize(
    "message",
    [
        DeviceTask(GPU, TINY, "bfloat16", TRIAL),
        ContentionTask(replace(GPU, stretch=Stretch(2.0, 1.5)), replace(TINY, sliding_window=48), "float32", FULL, "bfloat16"),
        LinkTask(GPU, replace(GPU, name="cpu"), False, "a folder", QUICK),
        DeviceSamples("sm_90", 4e12, (), (), (DenseTimes("bfloat16", (DensePoint(1, 1e-5),), ()),), 1.0),
    ],
)
def test_messages_arrive_as_they_were_sent(message) -> None:
    line = encode(message)
    assert "\n" not in line and decode(type(message), line) == message


# ------------------------------------------------------------------------------------------------------- one device


@pytest.fixture
def emulated() -> Iterator[Site]:
    before = _C.info()["isa"]
    yield Site(EmulatedGpu(), lambda: 0.0, 2**16, 8)
    _C.use_isa(before)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_steps_on_a_gpu_attend_as_on_a_cpu(emulated, dtype, decode) -> None:
    """One plan set to each step in turn, beside a plan for each: the same pages, in the layout of each device, and the same new tokens."""
    tolerance = 1e-2 if dtype == "bfloat16" else 1e-5
    on_cpu = replace(emulated, at=CpuAccelerator())
    there, here = (KvMemory((0, 1), 60, PAGE_TOKENS, TINY.head_dim, dtype, site.at) for site in (emulated, on_cpu))
    there.storage.view(there.dtype).copy_(torch.randn(there.storage.numel() // there.dtype.itemsize))
    ids = torch.arange(60, dtype=torch.int32)
    steps = [Step(TINY, np.array(lengths, np.int32), np.array(counts, np.int32)) for lengths, counts in (((40, 7, 90), (1, 1, 1)), ((33,), (9,)))]
    _C.use_isa("ref")
    _C.page_copy(there.pool, ids, here.pool, ids, 0, 1)
    outs = []
    for site, memory, isa in ((emulated, there, "cuda-emulated"), (on_cpu, here, "ref")):
        _C.use_isa(isa)
        torch.manual_seed(1)
        ready = passes(site, memory, TINY, steps, decode)
        for one in (*ready, *ready):
            one.begin()
            one.attend(0)
        outs.append([one.out for one in ready])
    for gpu, cpu in zip(*outs, strict=True):
        torch.testing.assert_close(gpu, cpu, atol=tolerance, rtol=tolerance)


class Counting(EmulatedGpu):
    """An emulated GPU that notes what is captured, and what is timed."""

    def __init__(self) -> None:
        super().__init__()
        self.captured, self.timed = 0, 0

    def capture(self, run):
        self.captured += 1
        return run

    def elapsed_s(self, run) -> float:
        self.timed += 1
        run()
        return 6.0


def test_small_steps_are_captured_and_products_go_in_a_row(emulated) -> None:
    site = replace(emulated, at=Counting(), most_captured=8)
    done: list[tuple[int, str]] = []
    points = in_turn(site, ["a", "b", "c"], {rows: lambda part, rows=rows: done.append((rows, part)) for rows in (8, 9)}, few=64)
    assert site.at.captured == 1 and done == [(8, "a"), (8, "b"), (8, "c"), (8, "a")]
    assert [measure() for measure in points] == [6.0 / IN_A_ROW] * 2 and site.at.timed == 2
    assert done[IN_A_ROW:] == [(rows, part) for rows in (8, 9) for part in "abca"]


def test_products_on_a_cpu_go_one_by_one_and_few_rows_come_warm() -> None:
    done: list[tuple[int, str]] = []
    now = iter(range(100))
    site = Site(CpuAccelerator(), lambda: float(next(now)), 2**16, 64)
    points = in_turn(site, ["a", "b", "c"], {rows: lambda part, rows=rows: done.append((rows, part)) for rows in (1, 64)}, few=64)
    assert [measure() for measure in points] == [1.0, 1.0] and done == [(1, "a"), (1, "b"), (64, "c")]


def test_the_bench_of_a_device_keeps_to_its_budget(emulated) -> None:
    bench = AttentionBench(DeviceTask(replace(GPU, memory_bytes=2**20), TINY, "bfloat16", TRIAL), emulated)
    assert bench.most_tokens == max(2**20 // 4 // (2 * 128 * 2), 4 * 16 * TRIAL.most_requests)
    wide = AttentionBench(DeviceTask(GPU, TINY, "bfloat16", TRIAL), emulated)
    assert wide.most_tokens == TRIAL.most_bytes // (2 * 128 * 2)


def test_a_device_reads_what_a_copy_reads_and_writes(emulated) -> None:
    site = replace(emulated, at=Counting())
    assert read_bytes(replace(GPU, memory_bytes=6 * 2**20), site, 2, lambda: None) == 2 * 1.5 * 2**20 / 6.0


# ------------------------------------------------------------------------------------------------------- with stand-ins for a GPU


class Event:
    """A timing event that is `at_ms` of a clock that its recording moves on."""

    now_ms = 0.0
    waited = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_ms = Event.now_ms

    def synchronize(self) -> None:
        Event.waited += 1

    def elapsed_time(self, end: Event) -> float:
        return end.at_ms - self.at_ms


def test_a_gpus_time_is_between_two_events(monkeypatch) -> None:
    monkeypatch.setattr(accelerator.torch.cuda, "Event", Event)

    def run() -> None:
        Event.now_ms += 250.0

    assert CudaGpu.elapsed_s(object.__new__(CudaGpu), run) == 0.25 and Event.waited == 1


def test_what_a_real_gpu_is_called_and_how_large_its_cache_is(monkeypatch) -> None:
    class Gpu(CpuAccelerator):
        device, is_gpu = torch.device("cuda", 1), True

    class Properties:
        L2_cache_size = 60 * 2**20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties() if device.index == 1 else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(sites, "make_accelerator", lambda kind, index: Gpu())
    opened = sites.open_site(replace(GPU, kind="cuda", index=1), 256)
    assert opened.flush_bytes == 120 * 2**20 and opened.isa == "sm_90" and opened.most_captured == 256


@pytest.mark.parametrize(("kinds", "across"), [(("cuda", "cuda"), True), (("cuda", "cpu"), False), (("cuda-emulated", "cuda-emulated"), False)])
def test_two_devices_exchange_as_their_workers_would(monkeypatch, kinds, across) -> None:
    """Both ends find the same, and what they exchange is what NCCL carries between GPUs."""
    seen = []
    monkeypatch.setattr(link, "make_connect", lambda config, at, host, groups: lambda peer, plane: seen.append((config, peer, plane)))
    ends = [replace(GPU, name=name, kind=kind, index=index) for index, (name, kind) in enumerate(zip("ab", kinds, strict=True))]
    for number in (0, 1):
        link.connected(LinkTask(ends[number], ends[1 - number], number == 0, "", QUICK), CpuAccelerator())
    assert [peer for _, peer, _ in seen] == ["b", "a"] and seen[0][0].groups == seen[1][0].groups
    for config, peer, plane in seen:
        assert by_nccl(config, peer) is across
        assert device_messages(config, peer, plane) == [(make_tag(HEADS), "a"), (make_tag(HEADS), "b")]
