"""Moves between pools of CPUs and GPUs: the same pages whatever the layouts, nothing too early, and nothing reported before it is there."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from devices_stand_in import WAIT_S, LateGpu, PlainGpu, make_at
from test_nccl import connect
from test_transport import gloo_pair, local_pair

from hetserve import _C
from hetserve.control.messages import MoveKv, Place
from hetserve.engine import mover as mover_module
from hetserve.engine.accelerator import Accelerator, CpuAccelerator, EmulatedGpu
from hetserve.engine.mover import Mover
from hetserve.engine.progress import Progress
from hetserve.engine.transport.link import MOVES, Link
from hetserve.engine.transport.staged import StagedLink
from hetserve.engine.wire import GroupLayout, MoveResult, PoolLayout, StageLayout

FIRST, LAYERS, PAGES, TOKENS, DIM = 2, 5, 12, 16, 16
HERE, THERE = [3, 1, 7, 5, 9], [2, 4, 6, 8, 10]
DTYPES = [torch.float32, torch.bfloat16]
LAYOUT = (GroupLayout((StageLayout((FIRST, FIRST + LAYERS), "float32", tuple(PoolLayout(name, PAGES) for name in "ab"), 0),), False),)


@dataclass
class Memory:
    """As much of a KvMemory as moves use, full of numbers."""

    at: Accelerator
    dtype: torch.dtype
    seed: int
    first_layer: int = FIRST
    layers: int = LAYERS

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        numbers = torch.randn((self.layers, PAGES, 2 * TOKENS * DIM), generator=random).to(self.dtype)
        self.storage = numbers.view(torch.uint8).flatten().to(self.at.device, copy=True)
        self.pool = _C.KvPool(self.storage, self.layers, PAGES, TOKENS, DIM, self.dtype, self.at.layout)
        self.rows = self.storage.view(self.layers, PAGES, -1)

    def plain(self, pages: list[int], first: int = FIRST, last: int = FIRST + LAYERS) -> torch.Tensor:
        """What stands in the pages in these layers of the model, whatever the layout."""
        out = torch.empty((len(pages), last - first, 2, TOKENS, DIM), dtype=self.dtype, device=self.at.device)
        _C.page_gather(self.pool, self.ids(pages), first - self.first_layer, last - self.first_layer, out)
        return out.cpu()

    def write(self, pages: list[int], layer: int, value: float) -> None:
        """As a step does, with one number."""
        here, numbers = layer - self.first_layer, torch.full((len(pages), 1, 2, TOKENS, DIM), value, dtype=self.dtype, device=self.at.device)
        _C.page_scatter(self.pool, self.ids(pages), here, here + 1, numbers)

    def ids(self, pages: list[int]) -> torch.Tensor:
        return torch.tensor(pages, dtype=torch.int32, device=self.at.device)


@dataclass
class Pair:
    """Two devices, a with a stage's primary and b with an attention worker."""

    accelerators: dict[str, Accelerator]
    dtype: torch.dtype
    links: dict[str, Link]
    staged: bool = True  # at GPUs
    results: dict[str, queue.Queue[MoveResult]] = field(default_factory=lambda: {name: queue.Queue() for name in "ab"})

    def __post_init__(self) -> None:
        self.progress = Progress(self.accelerators["a"])
        self.memories = {name: Memory(at, self.dtype, seed) for seed, (name, at) in enumerate(self.accelerators.items())}
        self.movers = {name: self.make(name, peer, pool) for pool, (name, peer) in enumerate(("ab", "ba"))}

    def make(self, name: str, peer: str, pool: int) -> Mover:
        at, memories = self.accelerators[name], {(0, pool): self.memories[name]}
        links = {peer: StagedLink(self.links[name], at) if at.is_gpu and self.staged else self.links[name]}
        gpus = frozenset(one for one, its in self.accelerators.items() if its.is_gpu)
        progress = {(0, 0): self.progress} if name == "a" else {}
        return Mover(name, LAYOUT, memories, progress, links, self.results[name].put, WAIT_S, gpus, at)  # type: ignore[arg-type]

    def order(self, way: str = "ab", step: int = -1) -> None:
        """A move of the pages HERE of way[0] to THERE of way[1]."""
        source, target = (Place(0, "ab".index(name)) for name in way)
        for mover in self.movers.values():
            mover.order(MoveKv(1, 0, 0, (FIRST, FIRST + LAYERS), np.zeros(1, np.int32), np.array([HERE]), np.array([THERE]), source, target, step))

    def same(self, way: str = "ab", last: int = FIRST + LAYERS) -> bool:
        source, target = (self.memories[name] for name in way)
        return torch.equal(source.plain(HERE, last=last), target.plain(THERE, last=last))

    def close(self) -> None:
        self.progress.stop()
        for mover in self.movers.values():
            mover.close()
            assert mover.fault is None


@contextmanager
def paired(a: Accelerator, b: Accelerator, dtype: torch.dtype, ends: Sequence[Link], staged: bool = True) -> Iterator[Pair]:
    pair = Pair({"a": a, "b": b}, dtype, dict(zip("ab", ends, strict=True)), staged)
    try:
        yield pair
    finally:
        pair.close()


@pytest.fixture(autouse=True)
def two_pages_a_chunk(monkeypatch):
    monkeypatch.setattr(mover_module, "CHUNK_BYTES", 2 * 4 * 2 * TOKENS * DIM)


@pytest.fixture
def emulated() -> Iterator[None]:
    before = _C.info()["isa"]
    yield
    _C.use_isa(before)


@pytest.mark.parametrize("make_links", [local_pair, gloo_pair], ids=["local", "gloo"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("a", "b"), [("cpu", "gpu"), ("gpu", "cpu"), ("gpu", "gpu"), ("cpu", "cpu"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_pages_arrive_as_they_were(a, b, dtype, make_links, tmp_path):
    with paired(make_at(a), make_at(b), dtype, make_links(tmp_path)) as pair:
        for way in ("ab", "ba"):
            target = pair.memories[way[1]]
            rest = [page for page in range(PAGES) if page not in THERE]
            before = target.plain(rest)
            assert not pair.same(way)
            pair.order(way)
            assert pair.results[way[1]].get(timeout=WAIT_S) == MoveResult(1, True)
            assert pair.same(way) and torch.equal(target.plain(rest), before)


def test_pages_arrive_on_an_emulated_gpu(emulated, tmp_path):
    with paired(CpuAccelerator(), EmulatedGpu(), torch.bfloat16, gloo_pair(tmp_path)) as pair:
        for way in ("ab", "ba"):
            pair.order(way)
            assert pair.results[way[1]].get(timeout=WAIT_S) == MoveResult(1, True)
            assert pair.same(way)


@pytest.mark.parametrize("step", [-1, 3], ids=["at once", "behind a step"])
def test_pages_go_from_gpu_to_gpu_over_groups(step, tmp_path):
    """In both directions; the one behind a step keeps its communicator waiting for nothing else."""
    links = connect(tmp_path, MOVES)
    with paired(PlainGpu(), PlainGpu(), torch.bfloat16, [*links.values()], staged=False) as pair:
        for way in ("ab", "ba"):
            pair.order(way, step if way == "ab" else -1)
            if way == "ab" and step >= 0:
                for layer in range(FIRST, FIRST + LAYERS):
                    assert pair.results["b"].empty()
                    pair.memories["a"].write(HERE, layer, float(layer))
                    pair.progress.passed(step, layer)
            assert pair.results[way[1]].get(timeout=WAIT_S) == MoveResult(1, True)
            assert pair.same(way)
    for link in links.values():
        link.close()


@pytest.mark.parametrize("b", ["cpu", "gpu"])
def test_a_layer_leaves_when_the_device_has_done_it(b, tmp_path):
    """Behind a step on a GPU: what stands in a layer while the step is only on its way through it never arrives."""
    gpu = LateGpu()
    with paired(gpu, make_at(b), torch.float32, local_pair(tmp_path)) as pair:
        pair.order(step=5)
        source = pair.memories["a"]
        gpu.late = True
        for layer in range(FIRST, FIRST + LAYERS):
            source.write(HERE, layer, -1.0)
            pair.progress.passed(5, layer)
        marks = gpu.marks[-LAYERS:]
        gpu.late = False
        for layer, mark in enumerate(marks, FIRST):
            source.write(HERE, layer, float(layer))
            mark.passed.set()
            until_s = time.monotonic() + WAIT_S
            while not pair.same(last=layer + 1):
                assert time.monotonic() < until_s
                time.sleep(0.001)
            assert pair.results["b"].empty() or layer + 1 == FIRST + LAYERS
        assert pair.results["b"].get(timeout=WAIT_S) == MoveResult(1, True)
        assert float(pair.memories["b"].plain(THERE)[0, -1].mean()) == FIRST + LAYERS - 1


@pytest.mark.parametrize("a", ["cpu", "gpu"])
def test_a_gpu_says_that_pages_are_there_when_they_are(a, tmp_path):
    gpu = LateGpu()
    with paired(make_at(a), gpu, torch.bfloat16, local_pair(tmp_path)) as pair:
        gpu.late = True
        pair.order()
        with pytest.raises(queue.Empty):
            pair.results["b"].get(timeout=0.2)
        while pair.results["b"].empty():
            gpu.go_on()
        assert pair.results["b"].get(timeout=WAIT_S) == MoveResult(1, True) and pair.same()
        assert gpu.marks[-1].waited == 1


@pytest.mark.parametrize("kind", ["cpu", "gpu", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_pools_of_one_device_that_begin_at_different_layers(kind, dtype):
    """A prefill group of two stages, the second on the device that decodes."""
    at, results = make_at(kind), queue.Queue()
    layout = (
        GroupLayout((StageLayout((FIRST, FIRST + LAYERS), "float32", (PoolLayout("a", PAGES),), 0),), True),
        GroupLayout((StageLayout((0, FIRST + LAYERS), "float32", (PoolLayout("a", PAGES),), 0),), True),
    )
    source, target = Memory(at, dtype, 1), Memory(at, dtype, 2, 0, FIRST + LAYERS)
    below = target.plain(list(range(PAGES)), 0, FIRST)
    progress = Progress(at)
    gpus = frozenset("a") if at.is_gpu else frozenset()
    mover = Mover("a", layout, {(0, 0): source, (1, 0): target}, {(0, 0): progress}, {}, results.put, WAIT_S, gpus, at)  # type: ignore[dict-item]
    mover.order(MoveKv(1, 0, 0, (FIRST, FIRST + LAYERS), np.zeros(1, np.int32), np.array([HERE]), np.array([THERE]), Place(0, 0), Place(1, 0), 4))
    source.write(HERE, FIRST, 3.0)
    for layer in range(FIRST, FIRST + LAYERS):
        progress.passed(4, layer)
    assert results.get(timeout=WAIT_S) == MoveResult(1, True)
    assert torch.equal(source.plain(HERE), target.plain(THERE))
    assert torch.equal(target.plain(list(range(PAGES)), 0, FIRST), below)
    mover.close()
    assert mover.fault is None


def test_moves_are_put_on_the_background_stream(tmp_path):
    """A current stream is a thread's own."""

    inside: set[int] = set()
    marked: list[bool] = []

    class Background(PlainGpu):
        @contextmanager
        def background(self) -> Iterator[None]:
            inside.add(threading.get_ident())
            yield
            inside.remove(threading.get_ident())

        def mark(self, soon=False):
            if threading.current_thread() is not threading.main_thread():  # which gives the orders
                marked.append(threading.get_ident() in inside)
            return super().mark(soon)

    with paired(Background(), CpuAccelerator(), torch.float32, local_pair(tmp_path)) as pair:
        for way in ("ab", "ba"):
            pair.order(way)
            assert pair.results[way[1]].get(timeout=WAIT_S).ok
    assert marked and all(marked)


def test_a_move_waits_for_the_steps_before_it(tmp_path) -> None:
    """They have been put on the GPU when it is ordered, and may have to write the pages yet."""
    at = LateGpu()
    with paired(at, CpuAccelerator(), torch.float32, local_pair(tmp_path)) as pair:
        at.late, before = True, len(at.marks)
        pair.order("ab")
        time.sleep(0.1)
        (ordered,) = at.marks[before:]
        assert ordered.waited == 1 and pair.results["b"].empty()
        at.late = False
        at.go_on()
        assert pair.results["b"].get(timeout=WAIT_S).ok
