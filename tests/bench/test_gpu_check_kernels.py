"""gpu-check's stages of kernels, each tried whole on a GPU whose kernels run on the CPU, with next to nothing to do."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from hetserve import _C
from hetserve.bench.gpu import attention, kernels, moves, rivals, small, timing
from hetserve.bench.gpu.attention import Case
from hetserve.engine.accelerator import Accelerator, make_accelerator
from hetserve.spec.cluster import EMULATED

COPY = 1 << 16
TINY = (Case(2, 20, 4, 2), Case(1, 17, 2, 1))


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    monkeypatch.setattr(timing, "ROUNDS", 1)
    before = _C.info()["isa"]
    yield make_accelerator(EMULATED)
    _C.use_isa(before)  # an emulated GPU's is the whole process's


def test_decode(at: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "READY", tmp_path)
    rows = list(attention.decode(at, TINY, COPY))
    assert [(row["batch"], row["pages"]) for row in rows] == [
        *((2, pages) for pages in ("in order", "scattered", "every second head")),
        *((1, pages) for pages in ("in order", "scattered")),
    ]
    for row in rows:
        assert row["right"] and 0 < row["error"] <= attention.TOLERANCE
        assert row["bytes"] == row["kv_bytes"] == 4 * row["batch"] * row["length"] * row["kv_heads"] * 128
        assert row["share_of_copy"] == pytest.approx(row["floor_bytes_s"] / row["ours_s"]) and row["floor_flops_s"] > 0
        assert ("torch_s" in row) == (row["pages"] == "in order") and ("times_the_whole" in row) == (row["pages"] == "every second head")


def test_every_case_of_the_issue_is_there_and_what_is_judged_comes_first() -> None:
    assert {(case.batch, case.length) for case in attention.CASES} == {(b, n) for b in (1, 8, 64, 256) for n in (512, 4096, 32768)}
    ordered = attention.by_worth(attention.CASES)
    judged = [case.kv_bytes > 256 << 20 for case in ordered]
    assert len(ordered) == 36 and judged == sorted(judged, reverse=True)
    assert {(case.q_heads, case.kv_heads) for case in ordered[:3]} == {(32, 32), (64, 8), (8, 1)}


@pytest.mark.parametrize("what", ["every second head", "a wrong value"])
def test_what_attention_gets_wrong_is_not_timed(at: Accelerator, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A head too many, or one wrong number among the right ones."""
    case, real = Case(2, 20, 4, 2), _C.attention

    def wrong(plan: object, layer: int, q: torch.Tensor, out: torch.Tensor, scale: float) -> None:
        real(plan, layer, q, out, scale)
        out[0, 0 if what == "a wrong value" else -1] = 3.0

    monkeypatch.setattr(_C, "attention", wrong)
    run = attention.decode_row if what == "a wrong value" else attention.subset_row
    row = run(at, case, *((True,) if run is attention.decode_row else ()), lambda: None, 1)
    assert row["right"] is False and "ours_s" not in row


def test_a_case_without_room_costs_itself_alone(at: Accelerator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that cannot fit is not tried; one that turns out not to fit is given up."""
    monkeypatch.setattr(rivals, "READY", tmp_path)
    large, small_ = Case(64, 32768, 32, 32), Case(1, 16, 1, 1)
    monkeypatch.setattr(attention, "free_bytes", lambda at: 40 << 30)
    real = attention.Cache

    def cache(at: Accelerator, case: Case, *rest: object) -> attention.Cache:
        if case == large:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot\nmore of this")
        return real(at, case, *rest)

    monkeypatch.setattr(attention, "Cache", cache)
    first, second, third, *others = attention.decode(at, (large, small_), COPY)
    assert first["skipped"] == second["skipped"] == "out of memory: CUDA out of memory. Tried to allocate a lot"
    assert third["skipped"] == "110 GiB of KV, 40 GiB are free"
    assert len(others) == 2 and all(row["right"] for row in others)


def test_prefill(at: Accelerator) -> None:
    whole, later = attention.prefill(at, (Case(1, 20, 2, 2), Case(1, 40, 2, 1)), 20, COPY)
    assert whole["right"] and later["right"] and "torch_tflops" in whole and "torch_tflops" not in later
    assert whole["flops"] == 4 * 2 * 128 * 210 and later["flops"] == 4 * 2 * 128 * (20 * 20 + 210)
    assert whole["ours_tflops"] == pytest.approx(whole["flops"] / whole["ours_s"] * 1e-12) and whole["floor_bytes_s"] > 0


def test_pages(at: Accelerator) -> None:
    first, *rows = moves.pages(at, 2, 12, 5, COPY)
    assert first["what"] == "copy" and first["bytes"] == 2 * COPY
    assert all(row["right"] and row["gbs"] > 0 for row in rows)
    sent = 5 * 2 * 2 * 16 * 128 * 2
    assert {row["what"]: row["bytes"] for row in rows} == {
        **dict.fromkeys(("page_copy", "page_gather", "page_scatter"), 2 * sent),
        **dict.fromkeys((moves.TO_HOST, moves.FROM_HOST, "page_gather into pinned memory", "page_scatter from pinned memory"), sent),
    }
    assert [row["what"] for row in rows if "share_of_transfer" in row] == ["page_gather into pinned memory", "page_scatter from pinned memory"]


def test_pages_that_arrive_elsewhere_are_not_timed(at: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _C.page_scatter
    monkeypatch.setattr(_C, "page_scatter", lambda pool, pages, *rest: real(pool, pages.flip(0), *rest))
    rows = {row["what"]: row for row in moves.pages(at, 2, 12, 5, COPY)}
    assert [name for name, row in rows.items() if not row.get("right", True)] == ["page_scatter", "page_scatter from pinned memory"]
    assert "gbs" not in rows["page_scatter"] and rows["page_copy"]["right"]


def test_whoever_waits_for_a_transfer_does_not_sleep(at: Accelerator) -> None:
    """As a link does not: to wake up takes longer than a small transfer."""
    marks = Mock(return_value=SimpleNamespace(wait=Mock()))
    assert moves.waited(SimpleNamespace(mark=marks), torch.zeros(4), torch.ones(4)) > 0  # type: ignore[arg-type]
    marks.assert_called_once_with(soon=True)
    marks.return_value.wait.assert_called_once_with()


def test_a_fault_that_lasts_is_a_row_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is broken does not even take memory back."""

    def broken(*_: object) -> dict[str, object]:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    said = {"right": False, "fault": "RuntimeError: an illegal memory access"}
    assert timing.tried({"batch": 1}, broken) == {"batch": 1, **said}
    found = kernels.rows(SimpleNamespace(), ["one", "two"], {"one": broken, "two": broken})  # type: ignore[arg-type,dict-item]
    assert list(found) == [{"what": name, **said} for name in ("one", "two")]


def test_transfers(at: Accelerator) -> None:
    rows = list(moves.transfers(at, (4096, 1 << 20), COPY))
    assert [(row["what"], row["bytes"]) for row in rows] == [
        (f"{name} {way}, waited for", size) for name, size in (("4 KiB", 4096), ("1 MiB", 1 << 20)) for way in (moves.TO_HOST, moves.FROM_HOST)
    ]
    assert all(row["seconds"] > 0 and row["gbs"] == pytest.approx(row["bytes"] / row["seconds"] * 1e-9) for row in rows)


def test_small_ops(at: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """argmax is for GPUs; an emulated one's lies in the process of its worker."""
    monkeypatch.setattr(_C, "argmax", lambda logits, tokens: tokens.copy_(logits.float().argmax(-1)))
    rows = list(small.rows(at, (3,), COPY, 500))
    assert [row["what"] for row in rows] == ["add_rms_norm", "silu_mul", "rope", "argmax"]
    assert all(row["right"] and row["seconds"] > 0 and row["floor_bytes_s"] > row["floor_flops_s"] > 0 for row in rows)
    monkeypatch.setattr(_C, "silu_mul", lambda gate_up, out: out.zero_())
    assert [row["right"] for row in small.rows(at, (3,), COPY, 500)] == [True, False, True, True]


def test_a_kind_that_fails_costs_no_other(at: Accelerator) -> None:
    def failing(at: Accelerator) -> Iterator[dict[str, object]]:
        yield {"what": "first"}
        raise RuntimeError("an illegal memory access")

    found = list(kernels.rows(at, ("broken", "whole"), {"broken": failing, "whole": lambda at: iter([{"what": "second"}])}))
    assert found == [{"what": "first"}, {"what": "broken", "right": False, "fault": "RuntimeError: an illegal memory access"}, {"what": "second"}]


def test_rivals_that_fail_leave_ours(at: Accelerator) -> None:
    calls: list[str] = []

    def fails() -> None:
        raise RuntimeError("no kernel image")

    assert attention.ready(at, fails) is None
    made = attention.ready(at, lambda: calls.append("ran"))
    assert made is not None and calls


def test_flashinfer_counts_for_what_it_has_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each of its ways by itself, and neither where its own KV finds no room."""
    monkeypatch.setattr(rivals, "READY", tmp_path)
    q = torch.zeros(2, 8, 128)
    made: list[bool] = []

    def decode(q: torch.Tensor, kv: torch.Tensor, tensor_cores: bool) -> rivals.Run:
        assert kv.shape == (4, 2, 16, 4, 128)
        made.append(tensor_cores)
        return lambda: None

    monkeypatch.setattr(rivals, "decode", decode)
    assert rivals.flashinfer(q, 32, 4, 16, 1 << 40) == {}
    (tmp_path / "tensor").touch()
    assert list(rivals.flashinfer(q, 32, 4, 16, 1 << 40)) == ["flashinfer on tensor cores"] and made == [True]
    (tmp_path / "cores").touch()
    assert list(rivals.flashinfer(q, 32, 4, 16, 1 << 40)) == ["flashinfer", "flashinfer on tensor cores"]
    assert rivals.flashinfer(q, 33, 4, 16, 1 << 40) == rivals.flashinfer(q, 32, 4, 16, 1 << 20) == {}


def test_flashinfers_wrapper_is_asked_what_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the arguments of the real one's `plan` and `run`."""
    said: dict[str, object] = {}

    class Wrapper:
        def __init__(self, space: torch.Tensor, layout: str, *, use_tensor_cores: bool) -> None:
            said.update(layout=layout, tensor_cores=use_tensor_cores)

        def plan(self, indptr, indices, last_page_len, q_heads, kv_heads, head_dim, page_size, *, q_data_type, kv_data_type) -> None:
            said.update(ends=indptr.tolist(), ids=indices.tolist(), last=last_page_len.tolist(), heads=(q_heads, kv_heads, head_dim, page_size))

        def run(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
            return q

    monkeypatch.setitem(__import__("sys").modules, "flashinfer", SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper))
    q = torch.zeros(3, 8, 128)
    assert rivals.decode(q, rivals.paged(q, 32, 2, 16), True)() is q
    assert said == {"layout": "NHD", "tensor_cores": True, "ends": [0, 2, 4, 6], "ids": list(range(6)), "last": [16] * 3, "heads": (8, 2, 128, 16)}


def test_what_a_graph_reads_stays() -> None:
    class Gpu:
        def capture(self, run: timing.Run) -> timing.Run:
            return lambda: None  # a graph refers to memory, not to tensors

        def synchronize(self) -> None:
            return

    kv = torch.zeros(4)
    seen = weakref.ref(kv)
    quick = timing.graphed(Gpu(), lambda kv=kv: kv.sum())  # type: ignore[arg-type,misc]
    del kv
    gc.collect()
    assert quick() is None and seen() is not None
    del quick
    assert seen() is None


def test_a_slow_contestant_is_called_less_often(at: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 7)
    counts = {"quick": 0, "slow": 0}

    class Clock:
        def elapsed_s(self, run) -> float:
            before = dict(counts)
            run()
            return 1e-6 * (counts["quick"] - before["quick"]) + 0.2 * (counts["slow"] - before["slow"])

    def count(name: str) -> timing.Run:
        return lambda: counts.update({name: counts[name] + 1})

    found = timing.timed(Clock(), {name: count(name) for name in counts})  # type: ignore[arg-type]
    assert found == pytest.approx({"quick": 1e-6, "slow": 0.2})
    assert counts == {"quick": 1 + 8 * timing.REPEATS, "slow": 1 + timing.REPEATS + 7}
