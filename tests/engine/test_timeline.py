"""A run as a Chrome trace: spans from events and commands, from a worker's own notes, and a file that is read even when it was cut off."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hetserve.control.messages import NO_INTS, NO_PAGES, MoveDone, MoveKv, Place, RunStep, StepDone, WorkerLost
from hetserve.engine.timeline import NOTES_FOLDER, ChromeTrace, Recorder, Span, read_spans, spans_of
from hetserve.engine.traced import Notes, notes_of, traced
from hetserve.engine.transport.link import HEADS, STEPS, make_tag
from hetserve.engine.transport.local import LocalHub, LocalLinks
from hetserve.engine.wire import GroupLayout, PoolLayout, StageLayout
from hetserve.spec.cluster import CPU, CUDA, EMULATED

LAYOUT = (GroupLayout((StageLayout((0, 4), "bfloat16", (PoolLayout("fast", 8), PoolLayout("slow", 8)), 0),), False),)


def step(number: int, chunk: int = 0) -> RunStep:
    chunks = np.array([chunk], np.int32) if chunk else NO_INTS
    return RunStep(number, 0, NO_INTS, (), (), NO_INTS, NO_INTS, NO_PAGES, NO_INTS, NO_INTS, chunks, chunks, chunks, 0.01)


def done(number: int, at_s: float, step_s: float) -> StepDone:
    return StepDone(at_s, number, number, 0, np.zeros(3, np.int32), step_s)


MOVE = MoveKv(7, 3, 0, (0, 4), np.array([1], np.int32), np.zeros((1, 5), np.int32), np.zeros((1, 5), np.int32), Place(0, 0), Place(0, 1))
RUN = [
    (done(0, 1.0, 0.4), [step(1, 64), MOVE]),
    (done(1, 1.5, 0.9), [step(2)]),  # was sent ahead: it began when the one before had ended
    (MoveDone(1.7, 3, 7, True), []),
    (WorkerLost(1.8, 4, "slow", "it died"), []),
]


def test_steps_and_moves_are_spans_with_their_facts() -> None:
    spans = {(one.row, one.name): one for one in spans_of(RUN, LAYOUT) if one.row != "events"}
    second = spans["steps", "step 1"]
    assert (second.begin_s, second.end_s) == (1.0, 1.5) and second.facts["prompt tokens"] == 64 and second.facts["tokens sampled"] == 3
    assert "fast, slow" in second.track
    move = spans["fast to slow", "request 3"]
    assert (move.begin_s, move.end_s, move.overlap, move.facts["pages"]) == (1.0, 1.7, True, 5)
    assert spans["lost", "slow: it died"].begin_s == 1.8


def test_live_the_controllers_own_time_and_a_steps_parts_are_known() -> None:
    found: list[Span] = []
    sums = iter([{"prepare": 0.1, "model": 0.2, "sample": 0.1}, {"prepare": 0.2, "model": 0.5, "sample": 0.2}])
    clock = iter([1.01, 1.52])
    recorder = Recorder(LAYOUT, found.append, lambda: next(clock), lambda: next(sums))
    for event, commands in RUN[:2]:
        recorder(event, commands)
    assert [round(one.end_s - one.begin_s, 3) for one in found if one.track == "controller"] == [0.01, 0.02]
    parts = [one for one in found if one.name == "model"]
    assert [round(one.end_s - one.begin_s, 3) for one in parts] == [0.2, 0.3]
    steps = [one for one in found if one.name.startswith("step ")]
    assert all(step.begin_s <= part.begin_s and part.end_s <= step.end_s for step, part in zip(steps, parts, strict=True))


def test_the_file_is_chromes_array_and_rows_are_named_once() -> None:
    text: list[str] = []
    trace = ChromeTrace(text.append)
    for span in spans_of(RUN, LAYOUT):
        trace(span)
    cut = "".join(text).rstrip().rstrip(",") + "]"
    trace.close()
    whole = json.loads("".join(text))
    assert json.loads(cut) == whole[:-1]
    named = [(one["pid"], one["tid"]) for one in whole[:-1] if one["name"] == "thread_name"]
    assert len(set(named)) == len(named)
    for one in whole[:-1]:
        assert one["ph"] in "MXbe" and ("ts" in one) == (one["ph"] != "M") and one.get("dur", 0) >= 0
    begin, end = (one for one in whole[:-1] if one["ph"] in "be")
    assert begin["id"] == end["id"] and round(end["ts"] - begin["ts"]) == 700_000


def test_a_worker_notes_its_sends_and_waits_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    notes = Notes("fast", tmp_path / "a.jsonl")
    hub = LocalHub()
    theirs = LocalLinks(hub, "slow").connect("fast", STEPS)
    link = traced(LocalLinks(hub, "fast").connect, notes)("slow", STEPS)
    tag, into = make_tag(HEADS), torch.zeros(4)
    receiving = link.post_recv(into, tag)
    threading.Timer(0.05, lambda: theirs.isend(torch.ones(4), tag).wait(1)).start()
    with notes.step(step(5)):
        receiving.wait(5)
        link.isend(torch.ones(4), tag)
    notes.close()
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"track": "dev')
    spans = {one.name: one for one in read_spans(tmp_path / "a.jsonl")}
    assert into.tolist() == [1.0] * 4
    waited = spans["await heads from slow"]
    assert waited.end_s - waited.begin_s > 0.02 and waited.facts == {"bytes": 16} and waited.track == "device fast"
    assert spans["step 5"].begin_s <= waited.begin_s and waited.end_s <= spans["step 5"].end_s
    assert "send heads to slow" in spans and abs(time.monotonic() - waited.end_s) < 5
    assert read_spans(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(("kind", "name"), [(CPU, "step 5"), (EMULATED, "launch 5"), (CUDA, "launch 5")])
def test_a_gpus_part_in_a_step_is_called_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    """Its work goes on when the worker has done its own."""
    (tmp_path / NOTES_FOLDER).mkdir()
    notes = notes_of(SimpleNamespace(meeting=str(tmp_path), device="a", kind=kind))  # type: ignore[arg-type]
    assert notes is not None
    with notes.step(step(5)):
        pass
    notes.close()
    (path,) = (tmp_path / NOTES_FOLDER).iterdir()
    assert [one.name for one in read_spans(path)] == [name]


def test_an_engine_writes_its_run_with_every_workers_notes(tmp_path: Path) -> None:
    from hetserve.control.messages import Sampling
    from hetserve.engine.engine import Engine
    from hetserve.engine.model.make import make_checkpoint
    from hetserve.planner.options import Options
    from hetserve.planner.uniform import plan_uniform
    from hetserve.spec.load import load_cluster, load_model

    folder = make_checkpoint("tiny", tmp_path / "tiny")
    plan = plan_uniform(load_cluster("cpu-1"), load_model(folder), None, Options(kv_memory_bytes=2**24, max_model_len=128))

    async def run() -> None:
        engine = Engine(plan, folder, timeline=tmp_path / "t.json")
        await engine.start()
        ended = asyncio.Event()
        engine.submit([5, 6, 7], 6, 1, (), 6, Sampling(), lambda output: ended.set() if output.finish else None)
        await asyncio.wait_for(ended.wait(), 60)
        (pool,) = engine.pools()
        assert (pool.device, pool.primary, pool.layers) == ("cpu", True, (0, 4)) and pool.pages_free <= pool.pages and pool.cpu_s
        await engine.close()

    asyncio.run(run())
    events = json.loads((tmp_path / "t.json").read_text())[:-1]
    names = {one["pid"]: one["args"]["name"] for one in events if one["name"] == "process_name"}
    steps = {track: [one for one in events if one["name"].startswith("step ") and names[one["pid"]] == track] for track in names.values()}
    reported, noted = steps["group 0 (cpu)"], steps["device cpu"]
    assert [one["name"] for one in reported] == [one["name"] for one in noted] and len(noted) >= 6
    for said, own in zip(reported, noted, strict=True):
        assert own["ts"] - 1 <= said["ts"] + said["dur"] and abs(said["dur"] - own["dur"]) < 0.2e6
