"""The whole engine over several workers, with its controller and policies: every request gets the tokens it gets alone, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from heads_script import NEW_TOKENS, PROMPTS, answers_alone, make_plan
from test_engine import submit

from hetserve.control.controller import Controller
from hetserve.control.journal import read_head
from hetserve.control.messages import MoveKv
from hetserve.drive import drive
from hetserve.engine.engine import Engine
from hetserve.engine.model.make import make_checkpoint
from hetserve.sim.replay import ReplayExecutor
from hetserve.spec.cluster import EMULATED, Link
from hetserve.spec.load import load_model
from hetserve.spec.plan import Online
from hetserve.systems import policies_for

LAYOUTS = {
    "attention workers": ([lambda layers: [(layers, "a", "b", "c")]], ()),
    "stages with an attention worker": ([lambda layers: [(1, "a", "c"), (layers, "b", "c")]], ()),
    "stages": ([lambda layers: [(1, "a"), (layers, "b")]], ()),
    "replicas": ([lambda layers: [(layers, "a")], lambda layers: [(layers, "b")]], ()),
    "prefill and decode": ([lambda layers: [(layers, "a")], lambda layers: [(layers, "b")]], ("prefill", "decode")),
}


@pytest.fixture(scope="module", params=["tiny", "tiny-mha"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param
    make_checkpoint(request.param, path)
    return path


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    return answers_alone(folder, tmp_path_factory.mktemp("private"))


def build(folder, layout: str, in_process: bool, journal=None, links=(), **changes) -> Engine:
    spec = load_model(folder)
    groups, roles = LAYOUTS[layout]
    plan = make_plan(spec, [group(spec.layers) for group in groups], roles=roles, **changes)
    spreading = replace(plan, online=Online("even", 0.01))  # every request over all devices, some of them moved again and again
    slowed = replace(spreading, cluster=replace(spreading.cluster, links=links))
    return Engine(slowed, folder, journal, in_process=in_process)


def moves_of(journal) -> list[MoveKv]:
    """What was moved in a recorded run, which must replay."""
    with journal.open("rb") as file:
        head, entries = read_head(file.read)
        recorded = list(entries)
    controller = Controller(head.config, policies_for(head.config.system, head.config.online))
    drive(controller, ReplayExecutor((one.event, one.commands) for one in recorded))
    return [command for entry in recorded for command in entry.commands if isinstance(command, MoveKv)]


async def serve(engine: Engine, prompts) -> list[list[int]]:
    sinks = [submit(engine, prompt, max_tokens=NEW_TOKENS)[1] for prompt in prompts]
    await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 60)
    return [sink.tokens[0] for sink in sinks]


@pytest.mark.parametrize(
    ("layout", "in_process"),
    [*((layout, True) for layout in LAYOUTS), ("attention workers", False), ("prefill and decode", False)],
    ids=lambda value: {True: "threads", False: "processes"}.get(value, value),
)
def test_same_tokens_on_any_devices(folder, alone, tmp_path, layout, in_process):
    async def run():
        engine = build(folder, layout, in_process, tmp_path / "journal", pages=120)
        await engine.start()
        try:
            return await serve(engine, PROMPTS * 2), engine.stats()
        finally:
            await engine.close()

    tokens, stats = asyncio.run(run())
    assert tokens == alone * 2
    assert stats["pages_free"] == stats["pages"]
    if layout not in ("replicas", "stages"):
        assert stats["moves_total"] > 0 and sum(move.step >= 0 for move in moves_of(tmp_path / "journal")) > 5


@pytest.mark.parametrize("folder", ["tiny"], indirect=True)
@pytest.mark.parametrize(("layout", "gpu"), [("attention workers", "a"), ("prefill and decode", "b")])
def test_same_tokens_where_one_device_is_a_gpu(folder, alone, tmp_path, layout, gpu):
    """An emulated one, whose pages lie otherwise: what follows a prompt's chunks from one to the other is what was stored."""

    async def run():
        engine = build(folder, layout, False, tmp_path / "journal", pages=120, kinds=[(gpu, EMULATED)])
        await engine.start()
        try:
            return await serve(engine, PROMPTS)
        finally:
            await engine.close()

    assert asyncio.run(run()) == alone
    assert any(move.step >= 0 for move in moves_of(tmp_path / "journal"))


@pytest.mark.parametrize("folder", ["tiny"], indirect=True)
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_an_attention_worker_lost_mid_run_costs_time_and_nothing_else(folder, alone, sign):
    async def run():
        engine = build(folder, "attention workers", False)
        await engine.start()
        try:
            sinks = [submit(engine, prompt, max_tokens=NEW_TOKENS)[1] for prompt in PROMPTS * 2]
            while not engine.stats()["moves_total"]:
                assert not sinks[-1].done.is_set()
                await asyncio.sleep(0.001)
            os.kill(engine.worker_pids()[1], sign)
            await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 60)
            return [sink.tokens.get(0) for sink in sinks], [sink.ends[0] for sink in sinks], await serve(engine, PROMPTS)
        finally:
            await engine.close()

    tokens, ends, later = asyncio.run(run())
    assert ends == ["length"] * len(tokens)
    assert tokens == alone * 2
    assert later == alone


@pytest.mark.parametrize("folder", ["tiny"], indirect=True)
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_an_attention_worker_lost_while_prompts_are_shipped_to_it(folder, alone, sign):
    """Their requests wait for pages that do not come; they, too, end as they would alone. If it is frozen, only the primary that sends notices."""

    async def run():
        engine = build(folder, "attention workers", False, links=(Link("a", "b", 0.3, 1e9, emulate=True),))
        await engine.start()
        try:
            sinks = [submit(engine, prompt, max_tokens=NEW_TOKENS)[1] for prompt in PROMPTS * 2]
            moves = engine._controller.groups[0].moves
            while not any(move.step >= 0 and move.target.pool == 1 for _, move in moves.commands.copy().values()):
                assert not all(sink.done.is_set() for sink in sinks)
                await asyncio.sleep(0.001)
            os.kill(engine.worker_pids()[1], sign)
            await asyncio.wait_for(asyncio.gather(*(sink.done.wait() for sink in sinks)), 60)
            return [sink.tokens.get(0) for sink in sinks], list(engine._executor.lost), engine.stats()
        finally:
            await engine.close()

    tokens, lost, stats = asyncio.run(run())
    assert tokens == alone * 2
    assert lost == ["b"] and stats["pages_free"] == stats["pages"]


@pytest.mark.parametrize("folder", ["tiny"], indirect=True)
@pytest.mark.parametrize("victim", [0, 1], ids=["first stage", "last stage"])
def test_a_frozen_stage_ends_its_requests_with_an_error(folder, victim):
    async def run():
        engine = build(folder, "stages", False)
        await engine.start()
        try:
            sink = submit(engine, PROMPTS[0], max_tokens=200)[1]
            while not sink.tokens:
                await asyncio.sleep(0.001)
            os.kill(engine.worker_pids()[victim], signal.SIGSTOP)
            await asyncio.wait_for(sink.done.wait(), 30)
            return sink
        finally:
            await asyncio.wait_for(engine.close(), 20)

    sink = asyncio.run(run())
    assert sink.ends[0] == "error" and f"device '{'ab'[victim]}'" in sink.why
