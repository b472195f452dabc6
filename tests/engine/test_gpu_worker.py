"""Workers on GPUs, here on one whose kernels run on the CPU: the same tokens as a CPU's, captured or not, alone or with others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from devices_stand_in import LateMark
from heads_script import LAYOUTS, NEW_TOKENS, PROMPTS, WAIT_S, Script, Workers, answers_alone, make_plan

from hetserve import _C
from hetserve.control.messages import NO_INTS, NO_PAGES, RunStep, Sampling, Start
from hetserve.engine import accelerator
from hetserve.engine.accelerator import Accelerator, CpuAccelerator, EmulatedGpu, Mark, Run, make_accelerator
from hetserve.engine.attention import ITEM_FIELDS, KvMemory
from hetserve.engine.channel import Lost
from hetserve.engine.device_attention import DeviceAttention
from hetserve.engine.graphs import Captured, DecodeGraphs, buckets
from hetserve.engine.heads import DispatchedAttention
from hetserve.engine.last_tokens import UNKNOWN, LastTokens
from hetserve.engine.model import decoder
from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.decoder import Model, Stream
from hetserve.engine.model.make import make_checkpoint
from hetserve.errors import ResourceError, UnsupportedError
from hetserve.spec.cluster import CUDA, EMULATED
from hetserve.spec.load import load_model

PAGE = 16
CONTEXTS = (37, 16, 1, 50, 5)  # tokens stored of each sequence


@pytest.fixture
def at() -> Iterator[Accelerator]:
    before = _C.info()["isa"]
    yield make_accelerator(EMULATED)
    _C.use_isa(before)


@pytest.fixture(scope="module", params=["tiny", "tiny-mha"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    return answers_alone(folder, tmp_path_factory.mktemp("private"))


@pytest.mark.parametrize(
    ("layout", "gpus", "moves"),
    [("one worker", one, True) for one in ("ab", "a", "b")] + [("two stages", "a", False), ("two stages", "b", False)],
    ids=["a primary and an attention worker", "a primary", "an attention worker", "the first stage", "the last stage"],
)
def test_the_same_tokens(folder: Path, alone: list[list[int]], tmp_path: Path, layout: str, gpus: str, moves: bool) -> None:
    spec = load_model(folder)
    plan = make_plan(spec, [LAYOUTS[layout](spec.layers)], kinds=[(name, EMULATED) for name in gpus], max_seqs=5)
    workers = Workers(plan, folder, tmp_path, False)
    try:
        assert {name for name, ready in workers.ready.items() if ready.isa == EMULATED} == set(gpus)
        script = Script(workers, PROMPTS, NEW_TOKENS, 3)
        assert script.run(moves) == alone
        assert bool(script.dispatched) == moves
    finally:
        workers.close()


class Behind(EmulatedGpu):
    """Its marks, but those that are waited for at once, are passed when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = list[LateMark]()

    def mark(self, soon: bool = False) -> Mark:
        if soon:
            return super().mark(soon)
        self.marks.append(LateMark())
        return self.marks[-1]


def decoding(number: int, prompt: list[int], heads: int) -> RunStep:
    """The steps of one sequence: its prompt and first token in the first, with pages for 32, and one more token in each of the others."""
    nothing = dict.fromkeys(("ends", "grant_slots", "grant_index", "leaves", "joins", "chunk_slots", "chunk_tokens", "chunk_samples"), NO_INTS)
    changes: dict[str, Any] = {**nothing, "starts": (), "replaces": (), "grant_pages": NO_PAGES, "predicted_s": 0.01}
    one = np.ones(1, np.int32)
    if number == 1:
        pages = np.arange(2 * heads, dtype=np.int32).reshape(2, heads)
        changes |= {"grant_slots": np.full(2, 1, np.int32), "grant_index": np.arange(2, dtype=np.int32), "grant_pages": pages}
        changes |= {"starts": (Start(1, 0, 0, np.array(prompt, np.int32), len(prompt), 0, Sampling()),)}
        changes |= {"chunk_slots": one, "chunk_tokens": one * len(prompt), "chunk_samples": one}
    elif number == 2:
        changes |= {"joins": one}
    return RunStep(number, 0, **changes)


def test_steps_are_put_on_the_device_before_the_host_knows_the_tokens_of_the_last(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here five in a row, of a prompt and of captured steps, and their tokens are those of one step after the other, on a CPU."""
    before, spec = _C.info()["isa"], load_model(folder)
    answers = []
    for late in (False, True):
        at = Behind() if late else CpuAccelerator()
        monkeypatch.setattr(accelerator, "make_accelerator", lambda kind, index, at=at: at)
        (tmp_path / str(late)).mkdir()
        kinds = [("a", EMULATED)] if late else []
        workers = Workers(make_plan(spec, [[(spec.layers, "a")]], kinds=kinds, max_seqs=2), folder, tmp_path / str(late), True)
        try:
            results = []
            for number in range(1, 6):
                workers.send(decoding(number, PROMPTS[1], spec.kv_heads), "a")
                if not late:
                    results.append(workers.inbox.get(timeout=WAIT_S))
            until_s, marks = time.monotonic() + WAIT_S, 5 + spec.layers  # of each step, and of each layer that stores a prompt
            while isinstance(at, Behind) and len(at.marks) < marks and time.monotonic() < until_s:
                time.sleep(0.01)
            assert workers.inbox.empty(), "the device has done none of them yet"
            for mark in at.marks if isinstance(at, Behind) else ():
                mark.passed.set()
            results += [workers.inbox.get(timeout=WAIT_S) for _ in range(5 - len(results))]
        finally:
            workers.close()
        answers.append([(one.step, one.tokens.tolist()) for one in results])
    _C.use_isa(before)
    assert answers[0] == answers[1] and len({tokens[0] for _, tokens in answers[0]}) > 1


class Faulty(EmulatedGpu):
    """Whatever is put there, it comes to nothing: but only who waits for it learns so, and never one that needs it at once."""

    def mark(self, soon: bool = False) -> Mark:
        if soon:
            return super().mark(soon)
        raised = RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging consider something")
        return SimpleNamespace(wait=Mock(side_effect=raised))


def test_a_fault_in_the_midst_of_a_step_is_told_though_no_message_follows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, spec = _C.info()["isa"], load_model(folder)
    monkeypatch.setattr(accelerator, "make_accelerator", lambda kind, index: Faulty())
    workers = Workers(make_plan(spec, [[(spec.layers, "a")]], kinds=[("a", EMULATED)], max_seqs=2), folder, tmp_path, True)
    try:
        workers.send(decoding(1, PROMPTS[1], spec.kv_heads), "a")
        assert workers.inbox.get(timeout=WAIT_S) == Lost("a", "RuntimeError: CUDA error: an illegal memory access was encountered")
    finally:
        workers.close()
        _C.use_isa(before)


class Replaying(EmulatedGpu):
    """Captures as a real GPU does: a replay runs no Python, reads what was there when it was captured, writes where it wrote then, and whoever held
    something before holds the same after it."""

    def warm_up(self, run: Run) -> None:
        run()

    def capture(self, run: Run) -> Run:
        owner = getattr(run, "__self__", None) or next(
            cell.cell_contents for cell in run.__closure__ or () if isinstance(cell.cell_contents, Captured)
        )
        reads = held(owner)
        run()
        writes = held(owner)

        def replay() -> None:
            now = held(owner)
            restore(owner, reads)
            run()
            for name, tensors in held(owner).items():
                for old, new in zip(writes[name], tensors, strict=True):
                    if old is not new:
                        old.copy_(new)
            restore(owner, now)

        return replay


def held(owner: Captured) -> dict[str, list[torch.Tensor]]:
    """The tensors that an object's pieces leave for each other and for what runs between them."""
    return {"qkv": list(getattr(owner, "_qkv", [])), "stream": [owner._stream.x, owner._stream.residual], "out": [owner._out]}


def restore(owner: Captured, tensors: dict[str, list[torch.Tensor]]) -> None:
    if tensors["qkv"]:
        q, k, v = tensors["qkv"]
        owner._qkv = (q, k, v)
    owner._stream = Stream(*tensors["stream"])
    (owner._out,) = tensors["out"]


class Dealt:
    """Sends heads nowhere, but makes a step one with heads elsewhere."""

    def __init__(self, attend: DispatchedAttention) -> None:
        self.into = attend.into
        self.dispatched = True


@pytest.mark.parametrize(("weights", "kv"), [("float32", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
@pytest.mark.parametrize("device", [EmulatedGpu, Replaying])
def test_captured_steps_are_eager_steps(folder: Path, at: Accelerator, weights: str, kv: str, whole: bool, device: type[EmulatedGpu]) -> None:
    """For fewer rows than the graph has, also once other steps have left their traces in its memory. Products of other numbers of rows are summed in
    another order, so the last bits differ."""
    spec, at = load_model(folder), device()
    model = Model(spec, folder, weights, max_positions=128)
    pages = -(-64 // PAGE)
    memories = [KvMemory((0, spec.layers), len(CONTEXTS) * spec.kv_heads * pages, PAGE, spec.head_dim, kv, at) for _ in range(2)]
    fill = torch.randn(memories[0].storage.numel() // memories[0].dtype.itemsize).to(memories[0].dtype).view(torch.uint8)
    for memory in memories:
        memory.storage.copy_(fill)
    last = LastTokens(8, at.device)
    graphs = DecodeGraphs(model, spec, memories[0], 8, pages, last)
    graphs.capture_all(not whole)
    eager = DeviceAttention(memories[1], spec, spec.kv_heads)
    rng = np.random.default_rng(1)
    table = rng.permutation(len(CONTEXTS) * spec.kv_heads * pages).astype(np.int32)
    for count in (5, 2, 3):
        lengths = np.array(CONTEXTS[:count], np.int32) + 1
        items, slots = decode_items(lengths, spec.kv_heads, pages, table)
        tokens, positions = rng.integers(5, 200, count).astype(np.int32), lengths - 1
        known = np.where(np.arange(count) % 2, tokens, UNKNOWN).astype(np.int32)  # the others were sampled by the step before
        last.put(torch.arange(count, dtype=torch.int32), torch.from_numpy(tokens))
        seqs = SimpleNamespace(page_table=torch.from_numpy(table), tokens=np.repeat(known[:, None], 64, 1))
        rows = SimpleNamespace(row_slots=np.arange(count, dtype=np.int32), positions=positions)
        attend = DispatchedAttention(graphs.begin(items, seqs, slots, rows), [], memories[0].dtype)
        found = graphs.run(count, None, attend if whole else Dealt(attend)).clone()
        batch = StepBatch(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(positions), None)
        wanted = model.forward(batch, DispatchedAttention(eager.begin(items, table, slots), [], memories[1].dtype))
        tolerance = 1e-4 if kv == "float32" else 0.1
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
        stored = [memory.storage.view(memory.dtype).float() for memory in memories]
        torch.testing.assert_close(*stored, rtol=1e-2, atol=tolerance)
        assert (stored[0] != fill.view(memories[0].dtype).float()).any()


def decode_items(lengths: np.ndarray, kv_heads: int, pages: int, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items and store slots of sequences that decode a token each, all of whose heads are here."""
    items = np.zeros((len(lengths), kv_heads, ITEM_FIELDS), np.int32)
    rows, heads = np.meshgrid(np.arange(len(lengths)), np.arange(kv_heads), indexing="ij")
    items[:, :, 0], items[:, :, 1], items[:, :, 2] = rows, 1, heads
    items[:, :, 3] = (rows * kv_heads + heads) * pages
    items[:, :, 4] = lengths[:, None]
    position = (lengths - 1)[:, None]
    slots = table[items[:, :, 3] + position // PAGE] * PAGE + position % PAGE
    return items.reshape(-1, ITEM_FIELDS), slots.astype(np.int32)


def test_a_plan_grows_with_its_steps(folder: Path, at: Accelerator) -> None:
    spec = load_model(folder)
    memory = KvMemory((0, spec.layers), 400, PAGE, spec.head_dim, "float32", at)
    attention = DeviceAttention(memory, spec, spec.kv_heads)
    for rows in (3, 300):
        items = np.array([(row, 1, 0, 0, 17, 0) for row in range(rows)], np.int32)
        attention.begin(items, np.arange(2, dtype=np.int32), np.full((rows, spec.kv_heads), -1, np.int32))
        q, kv = torch.randn(rows, spec.q_dim), torch.randn(rows, spec.kv_dim)
        attention(0, q, kv, kv, out := torch.full_like(q, torch.nan))
        dims = spec.group * spec.head_dim
        assert out[:, :dims].isfinite().all() and out[:, dims:].isnan().all()


@pytest.mark.parametrize("most", [1, 2, 5, 16, 17, 100, 256])
def test_numbers_of_rows_with_graphs(most: int) -> None:
    found = buckets(most)
    assert found == sorted(set(found)) and found[-1] == most
    for rows in range(1, most + 1):
        assert next(one for one in found if one >= rows) <= max(rows + 1, 2 * rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises((ResourceError, UnsupportedError), match=r"no GPU 0 here|without CUDA kernels"):
        make_accelerator(CUDA)


def test_a_tied_output_matrix_is_the_embedding_itself_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on a device that holds no numbers; on a CPU it is packed."""
    spec, weights = load_model(folder), []
    monkeypatch.setattr(decoder, "Linear", lambda weight: weights.append(weight))
    for device, shared in (("meta", spec.tie_embeddings), ("cpu", False)):
        model = Model(spec, folder, "bfloat16", device=torch.device(device))
        assert (weights[-1] is model._embedding) is shared
