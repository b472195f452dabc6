"""What workers on GPUs allocate, bounded without asking the kernels: held against what the kernels say."""

from __future__ import annotations

import random

import pytest
import torch

from hetserve import _C
from hetserve.cost.costs import Costs
from hetserve.cost.device_memory import GRAPH_BYTES, INPUTS, LIBRARY_BYTES, MOST_BLOCKS, captured_steps, plan_bytes
from hetserve.cost.roofline import token_pages
from hetserve.engine import graphs
from hetserve.engine.graphs import buckets
from hetserve.engine.model.recipes import RECIPES
from hetserve.spec.cluster import CUDA, EMULATED, Cluster, Device
from hetserve.spec.model import ModelSpec

PAGE_TOKENS = 16


def model(name: str) -> ModelSpec:
    return ModelSpec.from_hf(RECIPES[name].config, None, name)


def costs(spec: ModelSpec, kind: str) -> Costs:
    return Costs(spec, "bfloat16", Cluster("two", (0,), (Device("gpu", kind, (0,), "", 2**34), Device("cpu", "cpu", (0,), "", 2**34))))


@pytest.fixture
def emulated():
    before = _C.info()["isa"]
    _C.use_isa("cuda-emulated")
    yield
    _C.use_isa(before)


def pool(spec: ModelSpec) -> _C.KvPool:
    storage = torch.zeros(_C.KvPool.bytes(1, 4, PAGE_TOKENS, spec.head_dim, "bfloat16"), dtype=torch.uint8)
    return _C.KvPool(storage, 1, 4, PAGE_TOKENS, spec.head_dim, "bfloat16", "plain")


@pytest.mark.parametrize("name", ["tiny", "tiny-mha", "tiny-mistral", "llama-250m"])
def test_a_plan_takes_no_more_and_not_much_less(emulated, name) -> None:
    spec, rng = model(name), random.Random(name)
    for _ in range(200):
        items = rng.choice([1, 8, 256, 2048, 16_384])
        rows, pages = items * rng.choice([1, 1, 3, 100]), rng.choice([1, 100, 10**4, 10**7])
        words = rng.choice([1, 3 * items, 11 * items])
        device_bytes, _ = _C.DeviceAttentionPlan.bytes(pool(spec), spec.group, items, rows, pages, words)
        assert device_bytes <= plan_bytes(EMULATED, spec, items, rows, pages, words) <= device_bytes + 8 * 256


@pytest.mark.parametrize(("items", "rows"), [(1, 1), (2048, 2048), (512, 8192)])
def test_room_for_any_gpu(items, rows) -> None:
    """As many blocks at once as the largest has; the counts are `device_capacity`'s."""
    spec = model("llama-250m")
    tasks, merges, partials = _C.device_capacity(items, rows, spec.group, MOST_BLOCKS[CUDA])
    arrays = items * 8 + tasks * 36 + merges * 24 + 77 * 4 + 55 * 4 + partials * (spec.head_dim + 2) * 4
    assert arrays <= plan_bytes(CUDA, spec, items, rows, 77, 55) <= arrays + 10 * 256
    assert min(_C.device_capacity(items, rows, spec.group, blocks)[0] for blocks in (264, 2 * 188)) <= tasks


@pytest.mark.parametrize("kind", [CUDA, EMULATED])
def test_a_primary_on_a_gpu_needs_more_than_on_a_cpu(kind) -> None:
    spec = model("llama-250m")
    at, layers = costs(spec, kind), (0, spec.layers)
    on_gpu, on_cpu = (at.workspace_bytes(device, layers, "bfloat16", 1024, 256) for device in ("gpu", "cpu"))
    pages = 256 * 8 * token_pages(spec.max_positions)
    plans = plan_bytes(kind, spec, 256 * 8, 256 * 8, pages, 256 * (8 + 3))  # of fixed size, and one that grows to twice what it needs
    plans += 2 * plan_bytes(kind, spec, 2 * 256 * 8, 2 * 1024 * 8, 2 * pages, 2 * 1024 * 8)
    fixed = 2 * len(buckets(256)) * (spec.layers + 1) * GRAPH_BYTES[kind] + LIBRARY_BYTES[kind]
    logits = 2 * sum(buckets(256)) * spec.vocab * 2  # of every captured step, whole and in pieces
    assert plans + logits < on_gpu - on_cpu - fixed < 1.3 * (plans + logits) + 8 * 256 * 10 * spec.hidden * 2
    shorter = at.workspace_bytes("gpu", layers, "bfloat16", 1024, 256, 256)
    pages = 256 * 8 * (token_pages(spec.max_positions) - token_pages(256))
    assert on_gpu - shorter == 5 * 4 * pages
    assert at.workspace_bytes("gpu", (0, 4), "bfloat16", 1024, 256) < on_gpu - logits


def test_an_attention_worker_on_a_gpu() -> None:
    spec = model("llama-250m")
    at = costs(spec, CUDA)
    plan = at.attention_bytes("gpu", 64) - at.attention_bytes("cpu", 64)
    assert plan == 2 * plan_bytes(CUDA, spec, 2 * 64 * 8, 2 * 64 * 8, 2 * 64 * 8 * token_pages(spec.max_positions), 2 * 64 * 8)
    one = at.attention_bytes("gpu", 1, 16) - at.attention_bytes("cpu", 1, 16)
    assert one == 2 * plan_bytes(CUDA, spec, 256, 256, 256, 256), "it has room for some rows from the start"
    assert at.attention_bytes("gpu", 64, 160) < at.attention_bytes("gpu", 64)


def test_as_many_captured_steps_as_there_are() -> None:
    """With the inputs that they have."""
    assert graphs.INPUTS == INPUTS
    for seqs in range(1, 600):
        assert len(buckets(seqs)) <= captured_steps(seqs) <= len(buckets(seqs)) + 4
    assert captured_steps(256) == len(buckets(256))
