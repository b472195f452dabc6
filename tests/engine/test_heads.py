"""Head groups anywhere, moved at any time: float32 greedy tokens are those of one device, on workers that are threads."""

from __future__ import annotations

import numpy as np
import pytest
from heads_script import LAYOUTS, NEW_TOKENS, PROMPTS, Script, Workers, answers_alone, make_plan, run_script

from hetserve.control.messages import Place, Sampling, Start
from hetserve.engine.model.make import make_checkpoint
from hetserve.spec.load import load_model

MODELS = ("tiny", "tiny-mha", "tiny-mistral")  # 2 KV heads for 4, 4 for 4, 1 with a sliding window of 48


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param
    make_checkpoint(request.param, path)
    return path


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """Every prompt by itself on one device."""
    return answers_alone(folder, tmp_path_factory.mktemp("private"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_placement_and_moves_give_the_tokens_of_one_device(folder, alone, tmp_path, layout):
    tokens, script = run_script(folder, tmp_path, layout, 1, in_process=True)
    assert tokens == alone
    if layout != "two stages":
        assert script.moved > 5 and script.shipped > 0 and script.dispatched > 10
        assert script.workers.compared > 20


def test_a_prompt_computed_in_one_group_is_decoded_in_another(folder, alone, tmp_path):
    spec = load_model(folder)
    plan = make_plan(spec, [[(1, "a"), (spec.layers, "b")], [(1, "c"), (spec.layers, "a")]], roles=("prefill", "decode"))
    workers = Workers(plan, folder, tmp_path, True)
    try:
        prompt = PROMPTS[-1]
        script = Script(workers, [prompt], 1, 0)
        (first,) = script.run()
        (seq,) = script.seqs
        heads = np.arange(spec.kv_heads, dtype=np.int32)
        here = np.array(seq.pages, np.int32)
        rows = here.shape[1] + 4  # pages for the answer too
        there = np.arange(len(here) * rows, dtype=np.int32).reshape(-1, rows)
        for stage, layers in enumerate(((0, 1), (1, spec.layers))):
            lanes = stage * spec.kv_heads + heads
            assert workers.move(layers, heads, here[lanes], there[lanes, : here.shape[1]].copy(), Place(0, stage), Place(1, stage))
        start = Start(0, 0, 0, np.array(prompt + first, np.int32), len(prompt), len(prompt), Sampling())
        grants = {"grant_slots": np.zeros(rows, np.int32), "grant_index": np.arange(rows, dtype=np.int32), "grant_pages": there.T.copy()}
        tokens = first + workers.step(1, starts=(start,), joins=np.zeros(1, np.int32), **grants).tokens.tolist()
        while len(tokens) < NEW_TOKENS:
            tokens += workers.step(1).tokens.tolist()
        assert tokens == alone[-1]
    finally:
        workers.close()


def test_float32_weights_with_bfloat16_kv(folder, tmp_path):
    """What a device without fast bfloat16 products does: the same KV and messages, other weights."""
    expected = answers_alone(folder, tmp_path, dtype="bfloat16", weights="float32")
    tokens, _ = run_script(folder, tmp_path, "two workers", 1, in_process=True, dtype="bfloat16", weights="float32")
    same = sum(one == other for mine, theirs in zip(tokens, expected, strict=True) for one, other in zip(mine, theirs, strict=True))
    assert same > 0.8 * NEW_TOKENS * len(PROMPTS)  # sums in another order are rounded to bfloat16 differently
