"""Messages of a layer posted from C++ and from Python: the same bytes, and the same loss of a peer, with peers that are processes."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from net_peer import LOST, TAG, WAIT_S, answer, leave_in_a_step, serve

from hetserve.engine.heads import DispatchedAttention, RemoteHeads
from hetserve.engine.transport import gloo, posting
from hetserve.engine.transport.gloo import GlooLinks
from hetserve.engine.transport.link import PeerLost

built = pytest.mark.skipif(gloo._net is None, reason="hetserve._net is not built")
POSTED = [pytest.param(True, id="c++", marks=built), pytest.param(False, id="python")]
BIG = 10.0  # seconds in which anything on this machine is done

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["hetserve.engine.heads"])  # torch is read once, not by each of them


def start_process(run: Callable[..., None], *arguments) -> multiprocessing.process.BaseProcess:
    process = processes.Process(target=run, args=arguments, daemon=True)
    process.start()
    return process


class Stage:
    """A primary "a" with attention workers "b", "c", ... in processes, every other one of which posts from the other language."""

    def __init__(self, folder: Path, native: bool, workers: int, group: int, head_dim: int, kv_heads: int, dtype: torch.dtype, layers: int) -> None:
        self.group, self.head_dim, self.kv_heads, self.dtype, self.layers = group, head_dim, kv_heads, dtype, layers
        self.folder, self.native = folder, native
        self.devices = "bcd"[:workers]
        self.random = torch.Generator().manual_seed(1)

    def start(self, steps: list[list[int]], dies_at: dict[str, int] | None = None) -> None:
        """Workers that expect so many pairs in each step (one list of numbers a worker)."""
        self.workers = {}
        for place, device in enumerate(self.devices):
            native = self.native ^ bool(place % 2) and gloo._net is not None
            arguments = (str(self.folder), device, native, (self.group, self.head_dim), self.dtype, self.layers, steps[place])
            self.workers[device] = start_process(serve, *arguments, (dies_at or {}).get(device, -1))
        links = GlooLinks(str(self.folder), "a", "127.0.0.1")
        self.links = {device: links.connect(device, "steps") for device in self.devices}
        spec = SimpleNamespace(group=self.group, head_dim=self.head_dim)
        self.remotes = [RemoteHeads(device, link, TAG, spec, self.dtype) for device, link in self.links.items()]

    def step(self, rows: int, pairs: dict[str, np.ndarray], patience_s: float = WAIT_S) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One step's layers: what came out, and what should have (NaN: not asked for)."""
        chosen = [remote for remote in self.remotes if remote.device in pairs]
        for remote in chosen:
            remote.begin(pairs[remote.device], self.layers, patience_s)
        attend = DispatchedAttention(lambda layer, q, k, v, out: out.fill_(torch.nan), chosen, self.dtype)
        self.waited_s = 0.0
        results = []
        for layer in range(self.layers):
            q, k, v = self.numbers(rows)
            expected = torch.full(q.shape, torch.nan, dtype=self.dtype)
            heads = expected.view(rows, self.kv_heads, self.group, self.head_dim)
            full = answer(q.reshape(-1, self.group, self.head_dim), k.reshape(-1, self.head_dim), v.reshape(-1, self.head_dim))
            for row, head in np.concatenate(list(pairs.values())).tolist():
                heads[row, head] = full[row * self.kv_heads + head]
            results.append((attend(layer, q, k, v).clone(), expected))
        self.waited_s = attend.waited_s
        return results

    def numbers(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v as views of one buffer, of small whole numbers."""
        sizes = [self.kv_heads * self.group * self.head_dim, *[self.kv_heads * self.head_dim] * 2]
        return torch.randint(-20, 20, (rows, sum(sizes)), generator=self.random).to(self.dtype).split(sizes, 1)

    def deal(self, rows: int) -> dict[str, np.ndarray]:
        """Every head group of every row to one of the workers or to nobody, in turn."""
        everything = np.argwhere(np.ones((rows, self.kv_heads), bool)).astype(np.int32)
        parts = len(self.devices) + 1
        return {device: everything[place::parts].copy() for place, device in enumerate(self.devices)}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.join()


@pytest.fixture(params=POSTED)
def native(request, monkeypatch):
    """Whether this process posts from C++."""
    if not request.param:
        monkeypatch.setattr(posting, "_net", None)
    return request.param


@pytest.fixture
def make_stage(native, tmp_path):
    made = []

    def make(workers: int = 1, group: int = 2, head_dim: int = 16, kv_heads: int = 3, dtype: torch.dtype = torch.float32, layers: int = 5) -> Stage:
        made.append(Stage(tmp_path, native, workers, group, head_dim, kv_heads, dtype, layers))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


def equal(results) -> bool:
    return all(torch.equal(got.nan_to_num(-99.0), expected.nan_to_num(-99.0)) for got, expected in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_answers_come_back_to_their_places(make_stage, dtype):
    stage = make_stage(workers=2, dtype=dtype)
    rows = [4, 4, 1, 9, 9]
    dealt = [stage.deal(row) for row in rows]
    stage.start([[len(one[device]) for one in dealt] for device in stage.devices])
    for row, pairs in zip(rows, dealt, strict=True):
        assert equal(stage.step(row, pairs))
    assert not any(remote.lost for remote in stage.remotes)
    for worker in stage.workers.values():
        worker.join(BIG)
        assert worker.exitcode == 0


def test_a_step_may_leave_a_worker_out_and_a_message_may_be_empty_or_large(make_stage):
    stage = make_stage(workers=2, group=8, head_dim=128, kv_heads=8, layers=2)
    nobody = np.zeros((0, 2), np.int32)
    dealt = [{"b": stage.deal(5)["b"]}, {"b": nobody, "c": stage.deal(5)["c"]}, stage.deal(400)]  # the last: 1067 pairs a worker, 5.5 MB a message
    stage.start([[len(one[device]) for one in dealt if device in one] for device in stage.devices])
    for row, pairs in zip((5, 5, 400), dealt, strict=True):
        assert equal(stage.step(row, pairs))


def test_a_stage_of_one_layer(make_stage):
    stage = make_stage(layers=1)
    stage.start([[4] * 20])
    for _ in range(20):
        assert equal(stage.step(4, stage.deal(4) | {"b": stage.deal(4)["b"][:4]}))


@pytest.mark.parametrize("dies_at", [0, 2, 7], ids=["at once", "in a step", "in the next step"])
def test_a_worker_that_dies_costs_only_its_own_heads(make_stage, dies_at):
    stage = make_stage(workers=3)
    pairs = stage.deal(6)
    stage.start([[len(pairs[device])] * 4 for device in stage.devices], {"c": dies_at})
    began_s = time.monotonic()
    results = [result for _ in range(4) for result in stage.step(6, pairs)]
    assert time.monotonic() - began_s < BIG
    assert [remote.device for remote in stage.remotes if remote.lost] == ["c"]
    assert equal(results[:dies_at])
    for _, expected in results[dies_at:]:
        heads = expected.view(6, 3, stage.group, stage.head_dim)
        for row, head in pairs["c"].tolist():
            heads[row, head] = 0
    assert equal(results[dies_at:])
    with pytest.raises(PeerLost):
        stage.links["c"].isend(torch.zeros(1), TAG)


def test_a_silent_worker_is_lost_in_time(make_stage):
    stage = make_stage(workers=2)
    pairs = stage.deal(6)
    stage.start([[len(pairs[device])] * 2 for device in stage.devices], {"b": -2})
    results = stage.step(6, pairs, patience_s=0.3)
    assert 0.25 < stage.waited_s < BIG
    assert [remote.device for remote in stage.remotes if remote.lost] == ["b"]
    for got, expected in results:
        heads, wanted = (one.view(6, 3, stage.group, stage.head_dim) for one in (got, expected))
        assert all(not heads[row, head].any() for row, head in pairs["b"].tolist())
        assert all(torch.equal(heads[row, head], wanted[row, head]) for row, head in pairs["c"].tolist())
    stage.step(6, pairs, patience_s=0.3)
    assert stage.waited_s < 0.25, "a lost worker is not waited for again"


def test_a_worker_notices_that_its_primary_is_gone(native, tmp_path):
    worker = start_process(serve, str(tmp_path), "b", native, (2, 16), torch.float32, 5, [1])
    primary = start_process(leave_in_a_step, str(tmp_path), native)
    primary.join(WAIT_S)
    worker.join(BIG)
    assert (primary.exitcode, worker.exitcode) == (-signal.SIGKILL, LOST)


@built
def test_a_link_that_is_closed_is_closed_for_every_tag(make_stage, native):
    stage = make_stage()
    stage.start([[3]])
    stage.links["b"].close()
    other = posting.make_exchange(stage.links["b"], TAG + 1)
    buffers = [torch.zeros(3) for _ in range(3)]
    for use in (lambda: other.begin(*buffers, 2, 1.0), other.send, other.receive):
        with pytest.raises(PeerLost):
            use()
    assert other.lost


@built
def test_other_threads_run_while_an_answer_is_awaited(tmp_path):
    """Also a receive is posted, and given up, while Python is free to collect what it likes."""
    stage = Stage(tmp_path, True, 1, 2, 16, 3, torch.float32, 5)
    stage.start([[1]], {"b": -2})
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.wait(0.005):
            ticks.append(time.monotonic())

    other = threading.Thread(target=tick)
    other.start()
    try:
        stage.step(1, {"b": np.zeros((1, 2), np.int32)}, patience_s=0.4)
    finally:
        done.set()
        other.join()
        stage.close()
    assert stage.remotes[0].lost and len(ticks) > 10


# ------------------------------------------------------------------------------------------------------------- checks


@pytest.fixture
def exchange():
    """Of a group of one, which nothing is sent to."""
    group = gloo._Gloo(torch.distributed.HashStore(), 0, 1, gloo.timedelta(seconds=1))
    return gloo._net.Exchange(gloo._net.Pair(group, 0), TAG)


def tensors(**changed):
    """Of a part of two pairs, head groups of 2 heads of 8."""
    return {
        "pairs": torch.tensor([[0, 0], [1, 2]], dtype=torch.int32),
        **{name: torch.zeros(2, 16) for name in ("q", "first", "second")},
        **{name: torch.zeros(2, 8) for name in ("k", "v")},
        **changed,
    }


@built
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"pairs": torch.zeros(2, 2)}, "int32"),
        ({"pairs": torch.zeros(2, 3, dtype=torch.int32)}, "pairs"),
        ({"pairs": torch.tensor([[0, -1], [0, 0]], dtype=torch.int32)}, "pairs"),
        ({"q": torch.zeros(3, 16)}, "q: expected contiguous"),
        ({"q": torch.zeros(2, 32)[:, ::2]}, "q: expected contiguous"),
        ({"v": torch.zeros(2, 16)}, "v: expected contiguous"),
        ({"second": torch.zeros(2, 8)}, "answers: expected contiguous"),
        ({"k": torch.zeros(2, 8, dtype=torch.float64)}, "k: expected float32 or bfloat16"),
        ({"k": torch.zeros(2)}, "k: expected contiguous"),
    ],
)
def test_what_does_not_fit_a_part_is_refused(exchange, changed, why):
    gloo._net.Part(exchange, **tensors())
    with pytest.raises(ValueError, match=why):
        gloo._net.Part(exchange, **tensors(**changed))


@built
@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(1, 48),
        torch.zeros(4, 32),
        torch.zeros(4, 50),
        torch.zeros(4, 96)[:, ::2],
        torch.zeros(4, 48).bfloat16(),
        torch.zeros(1, 48).expand(4, 48),
    ],
    ids=["rows", "head groups", "columns", "strides", "dtype", "overlap"],
)
def test_rows_that_do_not_fit_the_pairs_are_refused(exchange, out):
    dispatch = gloo._net.Dispatch([gloo._net.Part(exchange, **tensors())])
    with pytest.raises(ValueError, match="q: "):
        dispatch.send(out, torch.zeros(4, 24), torch.zeros(4, 24))


@built
def test_a_step_out_of_turn_is_refused(exchange):
    with pytest.raises(ValueError, match="every message of this step was received"):
        exchange.receive()
    with pytest.raises(ValueError, match="count"):
        exchange.begin(*[torch.zeros(1)] * 3, 0, 1.0)
    with pytest.raises(ValueError, match="contiguous"):
        exchange.begin(*[torch.zeros(4)[::2]] * 3, 1, 1.0)
    assert not exchange.lost


# ------------------------------------------------------------------------------------------------------------- import


IMPORTS = """
import os, torch

def refusal():
    try:
        import hetserve._net
    except ImportError as error:
        return str(error)

os.environ["HETSERVE_NET"] = "off"
print(refusal())
from hetserve.engine.transport import gloo
print(gloo._net)
os.environ["HETSERVE_NET"] = "of"
print(refusal())
del os.environ["HETSERVE_NET"]
torch.__version__, here = "2.1.0+cpu", torch.__version__
print(refusal())
torch.__version__ = here
print(refusal())
"""


@built
def test_it_refuses_where_it_is_not_wanted_and_beside_another_torch():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=120)
    off, absent, typo, torch_fault, none = done.stdout.splitlines()
    assert (off, absent, none) == ("HETSERVE_NET is off", "None", "None")
    assert typo == "HETSERVE_NET: expected off or nothing, got 'of'"
    assert torch_fault.startswith("built with torch ") and "this is torch 2.1.0+cpu" in torch_fault
