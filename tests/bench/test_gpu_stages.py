"""gpu-check's stages with an engine, each tried whole on a GPU whose kernels run on the CPU, with next to nothing to do."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hetserve import _C
from hetserve.bench.gpu import engines, profiled, serving, steps, tokens
from hetserve.bench.gpu.engines import Answer, Ask
from hetserve.bench.gpu.report import report
from hetserve.engine import graphs
from hetserve.engine.accelerator import CudaGpu
from hetserve.engine.engine import Engine
from hetserve.engine.heads import DispatchedAttention
from hetserve.engine.model.drawn import write_drawn
from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import BenchError, WorkerError
from hetserve.profile.tasks import QUICK, Effort
from hetserve.spec.cluster import CPU, EMULATED, Cluster
from hetserve.spec.load import load_model, load_profile
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Limits
from hetserve.spec.profile import AttentionLine, DeviceProfile, Profile

SMALL = RECIPES["tiny"].config | {"num_hidden_layers": 2, "vocab_size": 512}


@pytest.fixture(autouse=True)
def isa() -> Iterator[None]:
    before = _C.info()["isa"]
    yield
    _C.use_isa(before)  # an emulated GPU's is the whole process's


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def judge(folder: Path) -> tokens.Judge:
    return tokens.Judge(folder)


@pytest.mark.parametrize("layout", tokens.LAYOUTS[:5], ids=lambda layout: layout.name)
def test_tokens(layout: tokens.Layout, folder: Path, judge: tokens.Judge) -> None:
    row = tokens.outcome(folder, layout, EMULATED, [[9], list(range(20, 38))], 4, judge, "float32")
    assert row["right"] and row["identical"] == 2 and row["differs"] == []
    assert (row["moves"] > 0) == (layout.online == tokens.DEALT)


def test_tokens_in_bfloat16(folder: Path, judge: tokens.Judge) -> None:
    assert tokens.outcome(folder, tokens.LAYOUTS[0], EMULATED, [[9]], 2, judge, "bfloat16")["right"]


def test_a_layout_with_a_worker_on_the_cpu_is_served() -> None:
    """On CPUs throughout: an emulated GPU has all of its process."""
    row, rounded = tokens.rows(CPU, ("tiny",), tokens.LAYOUTS[5:], (1, 18), 4)
    assert row["right"] and row["moves"] > 0 and rounded["right"]
    assert (row["dtype"], rounded["dtype"]) == ("float32", "bfloat16")


def test_the_judge_says_where_a_text_leaves_transformers_and_by_how_much(folder: Path, judge: tokens.Judge) -> None:
    prompt = [5, 9, 13, 40]
    plan = engines.make_plan(load_model(folder), [engines.device("gpu", CPU)], [(4, "gpu")], 128, Limits(64, 1, 64, 2, 1), "float32")
    (served,), _ = engines.serve(plan, folder, [[Ask(prompt, 6)]])
    right = served.answers[0].tokens
    assert judge(prompt, right) == []
    for dtype in ("float32", "bfloat16"):
        said = judge(prompt, [*right[:3], right[3] + 1, *right[4:]], dtype)
        assert said[0]["after"] == 3 and said[0]["gap"] > said[0]["bound"] > 0


def test_a_near_tie_of_bfloat16_is_no_fault(monkeypatch: pytest.MonkeyPatch, judge: tokens.Judge) -> None:
    """Two tokens that rounding may exchange, and a third one that it may not."""
    exact = torch.tensor([[1.0, 1.02, 0.0], [1.0, 1.02, 0.5]])
    monkeypatch.setattr(judge, "_logits", lambda prompt, tokens, dtype: exact if dtype == "float32" else exact - torch.tensor([0.0, 0.03, 0.0]))
    assert judge([5], [0, 0], "bfloat16") == []  # as bfloat16 itself would have it
    (first, second) = judge([5], [1, 2], "bfloat16")
    assert first["gap"] <= first["bound"] == pytest.approx(0.06) and second["gap"] == 0.5 > second["bound"]
    assert [one["after"] for one in judge([5], [0, 1])] == [0]


def test_an_engine_that_fails_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    def failing(*_: object) -> None:
        raise BenchError("nobody answered")

    monkeypatch.setattr(tokens, "serve", failing)
    monkeypatch.setattr(steps, "serve", failing)
    monkeypatch.setattr(profiled, "measure", failing)
    assert profiled.profile(tmp_path / "profile.toml", load_model(folder), CPU) == BenchError.exit_code
    rows = [*tokens.rows(CPU, ("tiny",), tokens.LAYOUTS[:1], (1,), 2), *steps.rows(CPU, SMALL, (1,), 4, 3, 1e9)]
    assert len(rows) == 5
    assert all(row["fault"] == "nobody answered" for row in rows)
    assert report("engine", rows, tmp_path / "out.json") == 1


def test_steps() -> None:
    found = list(steps.rows(EMULATED, SMALL, (2, 1), 8, 3, 1e9))
    whole = found[0]
    assert [(row["launched"], row["batch"]) for row in found] == [(how, batch) for how in ("graphs", "pieces", "eager") for batch in (2, 1)]
    assert all(row["floor_flops_s"] > 0 for row in found)
    weights = (512 * 256 + 2 * (256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 512 + 2 * 256) + 256) * 2  # with the output matrix, without the table
    assert whole["weight_bytes"] == weights
    assert whole["floor_bytes_s"] == pytest.approx((weights + whole["kv_bytes"]) / 1e9)
    assert whole["times_the_floor"] == pytest.approx(whole["step_s"] / whole["floor_bytes_s"])
    assert 0 < whole["worker_model_s"] < whole["worker_step_s"] < 10 * whole["step_s"]


def test_eager_steps_launch_every_kernel() -> None:
    launched: list[str] = []
    with engines.launching(engines.EAGER):
        CudaGpu.capture(object.__new__(CudaGpu), lambda: launched.append("launched"))()
    assert launched == ["launched"]
    with engines.launching(engines.GRAPHS):
        assert CudaGpu.capture is CudaGpu.__dict__["capture"]


def test_steps_in_pieces_replay_a_graph_for_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if something were dispatched: two layers are three pieces. All are captured before the first step, when no other thread is at work."""
    pieces: list[int] = []
    real, make = graphs.Captured.run, graphs.Captured.__init__

    def run(captured: graphs.Captured, attend: DispatchedAttention) -> torch.Tensor:
        pieces.append(len(captured._runs))
        return real(captured, attend)

    def captures(captured: graphs.Captured, *rest: object) -> None:
        assert not pieces, "steps have begun"
        make(captured, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs.Captured, "__init__", captures)
    monkeypatch.setattr(graphs.Captured, "run", run)
    drawn = write_drawn(tmp_path, SMALL)
    for how, count in ((engines.GRAPHS, 1), (engines.PIECES, 3)):
        pieces.clear()
        with engines.launching(how):
            steps.measured(load_model(drawn), drawn, EMULATED, (1,), 4, 3)
        assert set(pieces) == {count}


@pytest.mark.parametrize(("made", "said"), [(BenchError, ("nobody answered", "ask")), (RuntimeError, ("lost",))])
def test_a_failed_engine_leaves_no_memory_taken(monkeypatch: pytest.MonkeyPatch, folder: Path, made: type[Exception], said: tuple[str, ...]) -> None:
    """Not even while its error is still being handled."""
    held: list[weakref.ref[Engine]] = []

    async def failing(engine: Engine, asks: object) -> None:
        held.append(weakref.ref(engine))
        raise made(*said)  # made here: one that is kept would itself hold the engine

    def broken() -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(engines, "_round", failing)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)  # a GPU with a fault takes none back, and that is not what went wrong
    plan = engines.make_plan(load_model(folder), [engines.device("gpu", CPU)], [(4, "gpu")], 128, Limits(64, 1, 64, 2, 1), "float32")
    with pytest.raises(BenchError, match=said[0]) as caught:
        engines.serve(plan, folder, [[Ask([5], 1)]])
    assert held.pop()() is None and caught.value.__context__ is None


def test_a_step_is_timed_while_all_decode() -> None:
    first = Answer([0] * 10, [1.0, 2.0, 3.0, 10.0, 10.0, 11.0, 11.0, 12.0, 12.0, 20.0])  # two steps are told together
    last = Answer([0] * 4, [9.0, 10.0, 11.0, 12.0])
    assert engines.step_s([first, last]) == 0.4
    with pytest.raises(BenchError, match="ask for more tokens"):
        engines.step_s([first, Answer([0], [30.0])])


def test_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "requests", lambda folder, count, longest: [Ask([5 + i, 6, 7, 8 + i][: 2 + i], 2 + i) for i in range(count)])
    rows = [row for system in (serving.ours, serving.theirs) for row in serving.rows(system, EMULATED, SMALL, 1, 2, 3, 32, 1e9)]
    assert [(row["system"], row["asked"], row["requests"]) for row in rows] == [
        ("hetserve", "one at a time", 1),
        ("hetserve", "all at once", 2),
        ("hetserve", "all at once", 3),
        ("transformers", "one at a time", 1),
        ("transformers", "one padded batch", 2),
    ]
    assert all(row["right"] and row["output_throughput"] > 0 and row["mean_ttft_ms"] > 0 for row in rows)
    assert [row["total_output_tokens"] for row in rows] == [2, 5, 9, 2, 5]
    assert all(row["floor_bytes_s"] > row["floor_flops_s"] > 0 for row in rows)


@pytest.mark.parametrize(("after", "asked"), [(0, "one at a time"), (2, "one padded batch")])
def test_transformers_that_fail_are_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, folder: Path, after: int, asked: str) -> None:
    real, calls = serving.generate, itertools.count()

    def failing(model: object, asks: list[Ask]) -> list[Answer]:
        if next(calls) >= after:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand so on")
        return real(model, asks)

    monkeypatch.setattr(serving, "generate", failing)
    *rows, (of, last) = serving.theirs(folder, CPU, [Ask([5, 6], 2), Ask([7], 3)], 1, 2)
    assert [row["asked"] for _, row in rows] == ["one at a time"] * (after > 0) and of == ()
    said = {"right": False, "fault": "RuntimeError: CUDA error: an illegal memory access was encountered"}
    assert last == {"system": "transformers", "asked": asked} | said


def test_a_gpu_and_the_cpu_beside_it_serve_by_hetis() -> None:
    """On CPUs throughout: an emulated GPU has all of its process. The pools hold so little that one alone cannot have all requests."""
    asks = [Ask([5 + i] * 20, 12) for i in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "requests", lambda folder, count, longest: asks)
        alone, both = serving.mixed(CPU, SMALL, together=4, longest=64, bandwidth=1e9)
    assert (alone["system"], both["system"]) == ("hetserve, half the KV on the GPU", "hetserve by Hetis, gpu-plus-cpu")
    assert alone["right"] and both["right"] and both["total_output_tokens"] == 48
    assert both["remote_s"] > 0 and "remote_s" not in alone, "head groups did lie on the CPU"


def test_the_floors_of_a_serving_run() -> None:
    """Weights once a step, each token's KV whenever a later one is decoded, two operations a weight and token."""
    spec = ModelSpec.from_hf(SMALL, name="small")
    weights, token = steps.read_bytes(spec), spec.kv_bytes_per_token("bfloat16")
    under = serving.under(spec, [Ask([1] * 10, 3), Ask([1] * 20, 5)], 1e9)
    assert under["bytes"] == 5 * weights + token * (11 + 12 + 21 + 22 + 23 + 24)
    assert under["flops"] == pytest.approx((10 + 20 + 3 + 5) * weights, rel=0.1)
    assert serving.under(spec, [Ask([1] * 10, 3), Ask([1] * 20, 5)], 1e9, alone=True)["bytes"] - under["bytes"] == 3 * weights


LINE = AttentionLine(1e-9, 2e-9, 3e-6, 0.1)
MEASURED = Profile("tiny", "", "bfloat16", "", 0.0, "", "", (DeviceProfile("gpu", EMULATED, "", 1, 1e9, LINE, 1e-9, ()),), ())


def test_profile(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured of the GPU alone, and the link between it and the CPU both ways. (The whole way: tests/cli/test_gpu_clusters.py.)"""
    asked: list[tuple[Cluster, str, Effort]] = []
    monkeypatch.setattr(profiled, "measure", lambda cluster, model, dtype, effort, tick: asked.append((cluster, dtype, effort)) or MEASURED)
    links = profiled.measure_links
    monkeypatch.setattr(profiled, "measure_links", lambda *given: ticks.append(1000.0) or links(*given))
    path, ticks = tmp_path / "profile.toml", [100.0, 120.0]
    monkeypatch.setattr(profiled, "time", SimpleNamespace(monotonic=lambda: ticks.pop(0)))
    assert profiled.profile(path, load_model(folder), EMULATED, QUICK) == 0
    ((cluster, dtype, effort),) = asked
    assert [(one.name, one.kind) for one in cluster.devices] == [("gpu", EMULATED)] and (cluster.name, dtype, effort) == ("gpu", "bfloat16", QUICK)
    found = load_profile(path)
    assert found.devices == MEASURED.devices and found.took_s == 20.0, "without the links"
    assert {(link.source, link.target) for link in found.links} == {("gpu", "cpu"), ("cpu", "gpu")}
    assert all(link.bytes_per_s > 0 and link.beta_s > 0 for link in found.links)
    assert "reads 1 GB/s" in capsys.readouterr().out


def test_a_link_that_cannot_be_measured_leaves_the_profile_of_the_gpu(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise WorkerError("nobody came")

    monkeypatch.setattr(profiled, "measure", lambda *_: MEASURED)
    monkeypatch.setattr(profiled, "measure_links", failing)
    assert profiled.profile(tmp_path / "profile.toml", load_model(folder), CPU) == WorkerError.exit_code
    assert replace(load_profile(tmp_path / "profile.toml"), took_s=None) == MEASURED


def test_transformers_get_padded_batches_right(folder: Path) -> None:
    """What a request is given in a batch is what it is given alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asks = [Ask([5, 9, 13, 40], 6), Ask([7, 11], 3)]
    batch = serving.generate(model, asks)
    assert [len(one.tokens) for one in batch] == [len(one.at_s) for one in batch] == [6, 3]
    assert [one.tokens for one in batch] == [serving.generate(model, [ask])[0].tokens for ask in asks]


def test_requests_have_the_traces_lengths(folder: Path) -> None:
    asks = serving.requests(folder, 200, 2048)
    assert len(asks) == 200 and all(len(ask.prompt) + ask.output_tokens <= 2048 for ask in asks)
    mean = sum(len(ask.prompt) for ask in asks) / 200
    assert 400 < mean < 1600 and asks == serving.requests(folder, 200, 2048)
