"""Moves between pools: those behind a step go layer by layer as it passes them, no two wait for each other, and one that cannot be finished fails."""

from __future__ import annotations

import queue
import threading
import time
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from devices_stand_in import LateGpu

from hetserve.control.messages import MoveKv, Place
from hetserve.engine import mover as mover_module
from hetserve.engine.accelerator import CpuAccelerator
from hetserve.engine.mover import Mover
from hetserve.engine.progress import Progress, StageStopped
from hetserve.engine.transport.local import LocalHub, LocalLinks
from hetserve.engine.wire import GroupLayout, MoveResult, PoolLayout, StageLayout

LAYERS, PAGES, PAGE_BYTES = 7, 16, 24
FIRST = 2  # of the model, in these pools
LAYOUT = (GroupLayout((StageLayout((FIRST, FIRST + LAYERS), "float32", tuple(PoolLayout(name, PAGES) for name in "abc"), 0),), False),)
WAIT_S = 20


@dataclass
class Memory:
    """As much of a KvMemory as moves use."""

    seed: int
    first_layer: int = FIRST

    def __post_init__(self) -> None:
        self.rows = torch.from_numpy(np.random.default_rng(self.seed).integers(1, 256, (LAYERS, PAGES, PAGE_BYTES), np.uint8))


@dataclass
class Devices:
    """Three of them, a with a stage's primary, b and c with attention workers; each has a pool and a mover."""

    hub: LocalHub = field(default_factory=LocalHub)
    progress: Progress = field(default_factory=lambda: Progress(CpuAccelerator()))  # of a's stage
    peer_s: float = WAIT_S
    results: dict[str, queue.Queue[MoveResult]] = field(default_factory=lambda: {name: queue.Queue() for name in "abc"})

    def __post_init__(self) -> None:
        self.memories = {name: Memory(seed) for seed, name in enumerate("abc")}
        self.movers = {name: self.make(name) for name in "abc"}

    def make(self, name: str) -> Mover:
        pool = "abc".index(name)
        links = {peer: LocalLinks(self.hub, name).connect(peer, "moves") for peer in "abc" if peer != name}
        progress = {(0, 0): self.progress} if name == "a" else {}
        memories, report = {(0, pool): self.memories[name]}, self.results[name].put
        return Mover(name, LAYOUT, memories, progress, links, report, self.peer_s, frozenset(), CpuAccelerator())  # type: ignore[arg-type]

    def order(self, number: int, pages_from: list[int], pages_to: list[int], way: str = "ab", step: int = -1, told: str = "") -> None:
        """A move from way[0] to way[1], of which both are told, or those named."""
        source, target = (Place(0, "abc".index(name)) for name in way)
        pages = np.array([pages_from]), np.array([pages_to])
        move = MoveKv(number, 0, 0, (FIRST, FIRST + LAYERS), np.zeros(1, np.int32), *pages, source, target, step)
        for name in told or way:
            self.movers[name].order(move)

    def close(self) -> None:
        self.progress.stop()
        for name, mover in self.movers.items():
            self.hub.leave(name)
            mover.close()
            assert mover.fault is None


@pytest.fixture
def devices(monkeypatch, request):
    monkeypatch.setattr(mover_module, "CHUNK_BYTES", 2 * PAGE_BYTES)  # two pages of one layer
    devices = Devices(peer_s=getattr(request, "param", WAIT_S))
    yield devices
    devices.close()


def checksum(memory: Memory, pages: list[int], layers: slice = slice(None)) -> int:
    return zlib.crc32(memory.rows[layers][:, pages].numpy().tobytes())


def arrived(devices: Devices, pages_from: list[int], pages_to: list[int], layers: slice) -> bool:
    return checksum(devices.memories["a"], pages_from, layers) == checksum(devices.memories["b"], pages_to, layers)


def test_what_is_written_goes_at_once(devices) -> None:
    before = devices.memories["b"].rows.clone()
    devices.order(1, [3, 1, 7, 5, 9], [2, 4, 6, 8, 10])
    assert devices.results["b"].get(timeout=WAIT_S) == MoveResult(1, True)
    assert arrived(devices, [3, 1, 7, 5, 9], [2, 4, 6, 8, 10], slice(None))
    rest = [page for page in range(PAGES) if page not in (2, 4, 6, 8, 10)]
    assert devices.memories["b"].rows[:, rest].equal(before[:, rest])


def test_what_a_step_writes_goes_layer_by_layer_as_the_step_passes_them(devices) -> None:
    """What stands in a layer before the step has passed it never arrives."""
    here, there = [3, 1, 7], [2, 4, 6]
    devices.progress.passed(4, FIRST + LAYERS - 1)  # an earlier step says nothing
    devices.order(1, here, there, step=5)
    for layer in range(LAYERS):
        time.sleep(0.01)
        assert not arrived(devices, here, there, slice(layer, layer + 1))
        devices.memories["a"].rows[layer, here] += 1  # the step writes
        devices.progress.passed(5, FIRST + layer)
        until_s = time.monotonic() + WAIT_S
        while not arrived(devices, here, there, slice(layer + 1)):
            assert time.monotonic() < until_s
            time.sleep(0.001)
        assert devices.results["b"].empty() or layer + 1 == LAYERS
    assert devices.results["b"].get(timeout=WAIT_S) == MoveResult(1, True)


def test_a_step_may_be_long_past(devices) -> None:
    devices.progress.passed(9, FIRST)
    devices.order(1, [0, 1], [0, 1], step=8)
    assert devices.results["b"].get(timeout=WAIT_S) == MoveResult(1, True)


@pytest.mark.parametrize("devices", [0.1], indirect=True)
def test_a_step_is_waited_for_and_a_peer_is_not(devices) -> None:
    devices.order(1, [0, 1], [0, 1], step=0)
    time.sleep(0.3)
    assert devices.results["a"].empty() and devices.results["b"].empty()
    devices.progress.passed(0, FIRST + LAYERS - 1)
    assert devices.results["b"].get(timeout=WAIT_S) == MoveResult(1, True)
    devices.order(2, [0, 1], [0, 1], "ba", told="a")
    devices.order(3, [0, 1], [0, 1], "ab", told="b")
    assert devices.results["a"].get(timeout=WAIT_S) == MoveResult(2, False, lost="b")
    assert devices.results["b"].get(timeout=WAIT_S) == MoveResult(3, False), "an attention worker does not tell of its primary"


def test_a_step_holds_up_moves_of_its_own_pair_of_devices_only(devices) -> None:
    devices.order(1, [0, 1], [0, 1], "ab", step=0)
    devices.order(2, [2, 3], [2, 3], "ab")
    devices.order(3, [4, 5], [4, 5], "cb")
    devices.order(4, [6, 7], [6, 7], "ca")
    assert devices.results["b"].get(timeout=WAIT_S) == MoveResult(3, True) and devices.results["a"].get(timeout=WAIT_S) == MoveResult(4, True)
    assert devices.results["b"].empty()
    devices.progress.passed(0, FIRST + LAYERS - 1)
    assert [devices.results["b"].get(timeout=WAIT_S).move for _ in range(2)] == [1, 2]


def test_moves_in_both_directions_and_behind_several_steps_do_not_wait_for_each_other(devices) -> None:
    """In whatever order the steps come relative to the orders."""
    rng = np.random.default_rng(3)
    expected = {name: memory.rows.clone() for name, memory in devices.memories.items()}
    step, targets = 0, []
    for number in range(40):
        pages = rng.permutation(PAGES)[:6].tolist()
        there, behind = bool(rng.random() < 0.6), rng.random() < 0.5
        step += behind and there
        source, target = "ab" if there else "ba"
        devices.order(number, pages[:3], pages[3:], source + target, step if behind and there else -1)
        expected[target][:, pages[3:]] = expected[source][:, pages[:3]]
        targets.append(target)
        if rng.random() < 0.5:
            devices.progress.passed(step, FIRST + LAYERS - 1)
    devices.progress.passed(step, FIRST + LAYERS - 1)
    assert all(devices.results[target].get(timeout=WAIT_S).ok for target in targets)
    assert all(devices.memories[name].rows.equal(expected[name]) for name in "ab")


def test_pools_of_one_device() -> None:
    """A prefill and a decode group may have one; it copies, behind the step too."""
    layout = tuple(GroupLayout((StageLayout((FIRST, FIRST + LAYERS), "float32", (PoolLayout("a", PAGES),), 0),), True) for _ in range(2))
    at, results = CpuAccelerator(), queue.Queue()
    progress = {(0, 0): Progress(at), (1, 0): Progress(at)}
    memories = {(0, 0): Memory(1), (1, 0): Memory(2)}
    mover = Mover("a", layout, memories, progress, {}, results.put, WAIT_S, frozenset(), at)  # type: ignore[arg-type]
    pages = np.array([[1, 2, 3]], np.int32)
    mover.order(MoveKv(1, 0, 0, (FIRST, FIRST + LAYERS), np.zeros(1, np.int32), pages, pages + 4, Place(0, 0), Place(1, 0), 0))
    time.sleep(0.02)
    assert results.empty() and checksum(memories[0, 0], [1, 2, 3]) != checksum(memories[1, 0], [5, 6, 7])
    progress[0, 0].passed(0, FIRST + LAYERS - 1)
    assert results.get(timeout=WAIT_S) == MoveResult(1, True)
    assert checksum(memories[0, 0], [1, 2, 3]) == checksum(memories[1, 0], [5, 6, 7])
    mover.close()


@pytest.mark.parametrize("half_way", [False, True], ids=["before its step", "in the middle of its step"])
@pytest.mark.parametrize("gone", ["a", "b"])
def test_a_move_whose_source_or_target_goes_away_fails(devices, gone, half_way) -> None:
    devices.order(1, [0, 1], [0, 1], step=0)
    if half_way:
        devices.progress.passed(0, FIRST + 1)
    time.sleep(0.02)
    devices.hub.leave(gone)
    if gone == "b":  # its step goes on, and what it passes can no longer be sent
        devices.progress.passed(0, FIRST + LAYERS - 1)
    assert devices.results["a" if gone == "b" else "b"].get(timeout=WAIT_S) == MoveResult(1, False, lost="b" if gone == "b" else "")


def test_a_stage_that_stops_fails_what_waits_for_its_steps(devices) -> None:
    devices.order(1, [0, 1], [0, 1], step=0)
    devices.order(2, [2, 3], [2, 3], step=1)
    devices.progress.passed(0, FIRST + 2)
    devices.progress.stop()
    assert [devices.results["a"].get(timeout=WAIT_S) for _ in range(2)] == [MoveResult(1, False), MoveResult(2, False)]


def test_progress_counts_steps_before_layers() -> None:
    progress = Progress(CpuAccelerator())
    out = progress.noting(3, lambda layer, q, k, v: q * layer)(5, torch.full((1,), 2.0), torch.zeros(1), torch.zeros(1))
    assert out.tolist() == [10.0]
    progress.wait(3, 5)
    progress.wait(2, 100)
    progress.stop()
    progress.wait(3, 5)
    with pytest.raises(StageStopped):
        progress.wait(3, 6)
    with pytest.raises(StageStopped):
        progress.wait(4, 0)


def test_a_layer_is_passed_when_the_device_has_done_it() -> None:
    """What has only been put on the stream of the steps is waited for, layer by layer."""
    gpu = LateGpu(late=True)
    progress, came = Progress(gpu), queue.Queue()
    waiting = threading.Thread(target=lambda: (progress.wait(3, 5), came.put(5), progress.wait(3, 6), came.put(6)))
    waiting.start()
    progress.passed(3, 4)
    for layer in (5, 6, 7):
        progress.passed(3, layer)
    for layer in (5, 6):
        with pytest.raises(queue.Empty):
            came.get(timeout=0.05)
        gpu.marks[layer - 4].passed.set()
        assert came.get(timeout=WAIT_S) == layer, "and for no later one"
    waiting.join(WAIT_S)


def test_progress_forgets_layers_that_are_long_past() -> None:
    gpu = LateGpu()
    progress = Progress(gpu)
    for layer in range(1000):
        progress.passed(1, layer)
    progress.wait(1, 0)
    assert [mark.waited for mark in gpu.marks[-256:]] == [1] + 255 * [0], "the earliest it knows comes after it"
