"""The whole engine on a tiny model: whatever the batching, chunking, page pressure or depth, every request gets the tokens it gets alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from hetserve.control.codec import MESSAGES
from hetserve.control.config import config_from_plan
from hetserve.control.controller import Controller
from hetserve.control.journal import read_head
from hetserve.control.messages import Sampling
from hetserve.engine.api import Output
from hetserve.engine.channel import make_channels
from hetserve.engine.engine import Engine
from hetserve.engine.model.make import make_checkpoint
from hetserve.errors import ModelError, UsageError
from hetserve.planner.options import Options
from hetserve.planner.uniform import plan_uniform
from hetserve.spec.load import load_cluster, load_model
from hetserve.systems import system

PROMPTS = [[(7 * i + 3 * j) % 250 + 5 for j in range(length)] for i, length in enumerate((1, 5, 16, 17, 40, 75))]
NEW_TOKENS = 24
GREEDY = Sampling()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint("tiny", path)
    return path


class Collect:
    """A sink that gathers one request's outputs and knows when all its choices have ended."""

    def __init__(self, choices: int = 1) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        self.outputs: list[Output] = []
        self.why = ""
        self.done = asyncio.Event()
        self._choices = choices

    def __call__(self, output: Output) -> None:
        self.outputs.append(output)
        self.tokens.setdefault(output.choice, []).extend(output.tokens)
        if output.finish is not None:
            self.ends[output.choice] = output.finish
            self.why = output.why
        if -1 in self.ends or len(self.ends) == self._choices:
            self.done.set()


def build(folder, pages: int = 0, in_process: bool = True, journal=None, **changes) -> Engine:
    """An engine for the tiny model, in float32, on one core; `pages` makes the pool that small."""
    options = Options(**{"dtype": "float32", "max_model_len": 256, "kv_memory_bytes": 8 << 20, "max_seqs": 16, **changes})
    plan = plan_uniform(load_cluster("cpu-1"), load_model(folder), None, options)
    if pages:
        (group,) = plan.groups
        (stage,) = group.stages
        pools = tuple(replace(pool, pages=pages) for pool in stage.pools)
        plan = replace(plan, groups=(replace(group, stages=(replace(stage, pools=pools),)),))
    return Engine(plan, folder, journal, in_process)


def submit(engine: Engine, prompt: list[int], n: int = 1, max_tokens: int = NEW_TOKENS, sampling: Sampling = GREEDY, stop_ids=()):
    sink = Collect(n)
    return engine.submit(prompt, max_tokens, n, tuple(stop_ids), 0, sampling, sink), sink


async def serve_all(folder, prompts, **changes) -> list[list[int]]:
    engine = build(folder, **changes)
    await engine.start()
    try:
        sinks = [submit(engine, prompt)[1] for prompt in prompts]
        await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 120)
        return [sink.tokens[0] for sink in sinks]
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def alone(folder) -> list[list[int]]:
    """Every prompt served by itself, one step in flight: the answer to compare with."""

    async def one_by_one() -> list[list[int]]:
        engine = build(folder, steps_in_flight=1)
        await engine.start()
        try:
            answers = []
            for prompt in PROMPTS:
                sink = submit(engine, prompt)[1]
                await asyncio.wait_for(sink.done.wait(), 60)
                answers.append(sink.tokens[0])
            return answers
        finally:
            await engine.close()

    return asyncio.run(one_by_one())


def test_alone_equals_transformers(folder, alone):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, tokens in zip(PROMPTS, alone, strict=True):
        ids = torch.tensor([prompt + tokens])
        with torch.inference_mode():
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        top = logits.topk(2).values
        assert float((top[:, 0] - top[:, 1]).min()) > 1e-3  # else the comparison would prove nothing
        assert logits.argmax(-1).tolist() == tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_in_flight": 2},
        {"steps_in_flight": 2, "max_step_tokens": 16},
        {"steps_in_flight": 1, "max_step_tokens": 17},
        {"steps_in_flight": 2, "max_seqs": 2},
        {"steps_in_flight": 2, "in_process": False},
    ],
    ids=str,
)
def test_same_tokens_whatever_the_batching(folder, alone, changes):
    assert asyncio.run(serve_all(folder, PROMPTS, **changes)) == alone


@pytest.mark.parametrize("depth", [1, 2])
def test_preempted_requests_get_the_same_tokens(folder, alone, depth):
    async def run():
        engine = build(folder, steps_in_flight=depth, pages=2 * 20)  # tiny has 2 KV heads: 20 pages of 16 tokens for 6 requests
        await engine.start()
        try:
            sinks = [submit(engine, prompt)[1] for prompt in PROMPTS]
            await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 120)
            return [sink.tokens[0] for sink in sinks], engine.stats()
        finally:
            await engine.close()

    tokens, stats = asyncio.run(run())
    assert stats["steps_total"] > 0 and 0 < stats["controller_s"] < stats["step_s"]
    assert stats["preemptions_total"] > 0
    assert tokens == alone
    assert stats["pages_free"] == stats["pages"]


def test_choices_share_a_prompt_and_differ_by_their_seed(folder):
    async def run():
        engine = build(folder)
        await engine.start()
        try:
            sampling = Sampling(temperature=1.0, seed=11)
            together, again = submit(engine, PROMPTS[4], 3, sampling=sampling)[1], submit(engine, PROMPTS[4], 3, sampling=sampling)[1]
            greedy = submit(engine, PROMPTS[4], 2)[1]
            for sink in (together, again, greedy):
                await asyncio.wait_for(sink.done.wait(), 60)
            return together.tokens, again.tokens, greedy.tokens
        finally:
            await engine.close()

    together, again, greedy = asyncio.run(run())
    assert together == again
    assert len({tuple(tokens) for tokens in together.values()}) == 3
    assert greedy[0] == greedy[1]


def test_stop_token_ends_an_answer_and_is_its_last_token(folder, alone):
    stop = alone[2][5]
    first = alone[2].index(stop)

    async def run():
        engine = build(folder)
        await engine.start()
        try:
            sink = submit(engine, PROMPTS[2], stop_ids=[stop])[1]
            await asyncio.wait_for(sink.done.wait(), 60)
            return sink
        finally:
            await engine.close()

    sink = asyncio.run(run())
    assert sink.ends == {0: "stop"}
    assert sink.tokens[0] == alone[2][: first + 1]


def test_cancelled_request_frees_its_pages_and_disturbs_nobody(folder, alone):
    async def run():
        engine = build(folder)
        await engine.start()
        try:
            gone, _ = submit(engine, PROMPTS[5], max_tokens=150)
            stays = submit(engine, PROMPTS[4])[1]
            await asyncio.sleep(0.05)
            engine.cancel(gone)
            await asyncio.wait_for(stays.done.wait(), 60)
            deadline_s = time.monotonic() + 5
            while engine.stats()["pages_free"] != engine.stats()["pages"] and time.monotonic() < deadline_s:
                await asyncio.sleep(0.01)
            return stays.tokens[0], engine.stats()
        finally:
            await engine.close()

    tokens, stats = asyncio.run(run())
    assert tokens == alone[4]
    assert stats["pages_free"] == stats["pages"]


def test_logprobs_are_those_of_the_sampled_tokens(folder):
    async def run():
        engine = build(folder)
        await engine.start()
        try:
            sink = submit(engine, PROMPTS[3], sampling=Sampling(logprobs=2))[1]
            await asyncio.wait_for(sink.done.wait(), 60)
            return sink
        finally:
            await engine.close()

    sink = asyncio.run(run())
    entries = [entry for output in sink.outputs if output.logprobs for entry in output.logprobs]
    assert [entry.token for entry in entries] == sink.tokens[0]
    for entry in entries:
        assert entry.top[0] == (entry.token, pytest.approx(entry.logprob, abs=1e-6))  # greedy: the sampled token is the most likely
        assert len(entry.top) == 2 and entry.top[0][1] >= entry.top[1][1]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_lost_worker_ends_requests_with_an_error_and_health_says_so(folder, sign):
    async def run():
        engine = build(folder, in_process=False, max_model_len=256)
        await engine.start()
        try:
            sink = submit(engine, PROMPTS[1], max_tokens=250)[1]
            while not sink.tokens:
                await asyncio.sleep(0.001)
            os.kill(engine.worker_pids()[0], sign)
            await asyncio.wait_for(sink.done.wait(), 20)
            late = submit(engine, PROMPTS[0])[1]
            await asyncio.wait_for(late.done.wait(), 5)
            return sink, late, engine.health()
        finally:
            await asyncio.wait_for(engine.close(), 20)

    sink, late, (ok, why) = asyncio.run(run())
    assert sink.ends[0] == "error" and "cpu" in sink.why
    assert late.ends == {-1: "error"}
    assert not ok and why


def test_worker_failure_at_start_is_the_error_it_was(tmp_path, folder):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])

    async def run():
        await build(broken, in_process=False).start()

    with pytest.raises(ModelError):
        asyncio.run(run())


def test_prompt_longer_than_the_model_is_refused_with_numbers(folder):
    async def run():
        engine = build(folder)
        await engine.start()
        try:
            sink = submit(engine, [5] * 300)[1]
            await asyncio.wait_for(sink.done.wait(), 5)
            return sink
        finally:
            await engine.close()

    sink = asyncio.run(run())
    assert sink.ends == {-1: "error"} and "300" in sink.why and "256" in sink.why
    assert np.size(sink.tokens.get(0, [])) == 0


def test_journal_of_a_real_run_replays_exactly(folder, tmp_path):
    async def run():
        engine = build(folder, journal=tmp_path / "run.journal", max_step_tokens=16)
        await engine.start()
        try:
            sinks = [submit(engine, prompt)[1] for prompt in PROMPTS]
            await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 60)
        finally:
            await engine.close()

    asyncio.run(run())
    with (tmp_path / "run.journal").open("rb") as file:
        head, entries = read_head(file.read)
        controller = Controller(head.config, system(head.config.system).policies)
        replayed = 0
        for entry in entries:
            commands = controller.handle(entry.event)
            assert list(map(MESSAGES.encode, commands)) == list(map(MESSAGES.encode, entry.commands))
            controller.check()
            replayed += 1
    assert replayed > len(PROMPTS) + NEW_TOKENS


@pytest.mark.parametrize("what", ["journal", "timeline"])
def test_a_file_that_cannot_be_written_is_said_before_anything_starts(folder, tmp_path, what):
    plan = plan_uniform(load_cluster("cpu-1"), load_model(folder), None, Options(max_model_len=64, kv_memory_bytes=2**20))
    engine = Engine(plan, folder, **{what: tmp_path / "nowhere" / "x"})
    with pytest.raises(UsageError, match=f"the {what} cannot be written"):
        asyncio.run(engine.start())
    assert engine.worker_pids() == []


def test_a_worker_waits_for_a_peer_longer_than_its_steps_in_flight(folder, tmp_path):
    plan = plan_uniform(load_cluster("cpu-1"), load_model(folder), None, Options(max_model_len=64, kv_memory_bytes=2**20))
    for longest_s, waits_s in ((0.0, 20.0), (11.0, 330.0)):  # at most 10 times a step, for two in flight and the one that is asked for
        (channel,) = make_channels(plan, folder, tmp_path, True, longest_step_s=longest_s).values()
        assert channel._config.peer_s == waits_s
    decided = config_from_plan(plan)
    (stage,) = decided.groups[0].stages
    assert decided.longest_step_s > stage.cost.step_s(decided.max_step_tokens, 1, 0, 0.0)
