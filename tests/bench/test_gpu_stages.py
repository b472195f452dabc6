"""gpu-check's stages with an engine, each tried whole on a GPU whose kernels run on the CPU, with next to nothing to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hetserve import _C
from hetserve.bench.gpu import engines, profiled, serving, steps, tokens
from hetserve.bench.gpu.engines import Answer, Ask
from hetserve.bench.gpu.report import report
from hetserve.engine.accelerator import CudaGpu
from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import BenchError
from hetserve.spec.cluster import CPU, EMULATED
from hetserve.spec.load import load_model, load_profile
from hetserve.spec.plan import Limits

SMALL = RECIPES["tiny"].config | {"num_hidden_layers": 2, "vocab_size": 512}


@pytest.fixture(autouse=True)
def isa() -> Iterator[None]:
    before = _C.info()["isa"]
    yield
    _C.use_isa(before)  # an emulated GPU's is the whole process's


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("layout", tokens.LAYOUTS[:4], ids=lambda layout: layout.name)
def test_tokens(layout: tokens.Layout) -> None:
    (row,) = tokens.rows(EMULATED, ("tiny",), (layout,), (1, 18), 4)
    assert row["right"] and row["identical"] == 2 and row["differs"] == []
    assert (row["moves"] > 0) == (layout.online == tokens.DEALT)


def test_a_layout_with_a_worker_on_the_cpu_is_served() -> None:
    """On CPUs throughout: an emulated GPU has all of its process."""
    (row,) = tokens.rows(CPU, ("tiny",), tokens.LAYOUTS[4:], (1, 18), 4)
    assert row["right"] and row["moves"] > 0


def test_the_judge_says_where_a_text_leaves_transformers_and_by_how_much(folder: Path) -> None:
    judge = tokens.Judge(folder)
    prompt = [5, 9, 13, 40]
    plan = engines.make_plan(load_model(folder), [engines.device("gpu", CPU)], [(4, "gpu")], 128, Limits(64, 1, 64, 2, 1), "float32")
    (served,), _ = engines.serve(plan, folder, [[Ask(prompt, 6)]])
    right = served.answers[0].tokens
    assert judge(prompt, right) is None
    said = judge(prompt, [*right[:3], right[3] + 1, *right[4:]])
    assert said is not None and said["after"] == 3 and said["gap"] > tokens.MARGIN


def test_an_engine_that_fails_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    def failing(*_: object) -> None:
        raise BenchError("nobody answered")

    monkeypatch.setattr(tokens, "serve", failing)
    monkeypatch.setattr(steps, "serve", failing)
    monkeypatch.setattr(profiled, "measure", failing)
    assert profiled.profile(tmp_path / "profile.toml", load_model(folder), CPU) == BenchError.exit_code
    rows = [*tokens.rows(CPU, ("tiny",), tokens.LAYOUTS[:1], (1,), 2), *steps.rows(CPU, SMALL, (1,), 4, 3, 1e9)]
    assert all(row["fault"] == "nobody answered" for row in rows)
    assert report("engine", rows, tmp_path / "out.json") == 1


def test_steps() -> None:
    graphs, eager = steps.rows(EMULATED, SMALL, (2,), 8, 3, 1e9)
    assert [graphs["launched"], eager["launched"]] == ["graphs", "eager"]
    weights = (512 * 256 + 2 * (256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 512 + 2 * 256) + 256) * 2  # with the output matrix, without the table
    assert graphs["weight_bytes"] == weights
    assert graphs["floor_bytes_s"] == pytest.approx((weights + graphs["kv_bytes"]) / 1e9)
    assert graphs["times_the_floor"] == pytest.approx(graphs["step_s"] / graphs["floor_bytes_s"])
    assert 0 < graphs["worker_model_s"] < graphs["worker_step_s"] < 10 * graphs["step_s"]


def test_eager_steps_launch_every_kernel() -> None:
    launched: list[str] = []
    with engines.eager(True):
        CudaGpu.capture(object.__new__(CudaGpu), lambda: launched.append("launched"))()
    assert launched == ["launched"]
    with engines.eager(False):
        assert CudaGpu.capture is CudaGpu.__dict__["capture"]


def test_a_step_is_timed_while_all_decode() -> None:
    first = Answer([0] * 9, [1.0, 2.0, 3.0, 10.0, 10.5, 11.0, 11.5, 12.0, 20.0])
    last = Answer([0] * 4, [9.0, 10.0, 11.0, 12.0])
    assert engines.step_s([first, last]) == 0.5
    with pytest.raises(BenchError, match="ask for more tokens"):
        engines.step_s([first, Answer([0], [30.0])])


def test_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "requests", lambda folder, count, longest: [Ask([5 + i, 6, 7, 8 + i][: 2 + i], 2 + i) for i in range(count)])
    rows = list(serving.rows(EMULATED, SMALL, alone=1, together=2, many=3, longest=32))
    assert [(row["system"], row["asked"], row["requests"]) for row in rows] == [
        ("hetserve", "one at a time", 1),
        ("hetserve", "all at once", 2),
        ("hetserve", "all at once", 3),
        ("transformers", "one at a time", 1),
        ("transformers", "one padded batch", 2),
    ]
    assert all(row["right"] and row["output_throughput"] > 0 and row["mean_ttft_ms"] > 0 for row in rows)
    assert [row["total_output_tokens"] for row in rows] == [2, 5, 9, 2, 5]


def test_profile(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profiled.profile(tmp_path / "profile.toml", load_model(folder), EMULATED) == 0
    (device,) = load_profile(tmp_path / "profile.toml").devices
    assert (device.name, device.kind) == ("gpu", EMULATED) and device.attention.b_s > 0
    assert "GB/s" in capsys.readouterr().out


def test_transformers_get_padded_batches_right(folder: Path) -> None:
    """What a request is given in a batch is what it is given alone."""
    import torch
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
