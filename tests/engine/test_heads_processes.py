"""Workers as processes of their own: the same tokens, and what happens when one of them dies or freezes."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from heads_script import NEW_TOKENS, PROMPTS, Script, Workers, answers_alone, make_plan, run_script

from hetserve.control.messages import Place
from hetserve.engine.model.make import make_checkpoint
from hetserve.spec.load import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint("tiny", path)
    return path


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    return answers_alone(folder, tmp_path_factory.mktemp("private"))


@pytest.mark.parametrize(
    ("layout", "net"),
    [("two workers", ""), ("two workers", "off"), ("two stages that hold each other's heads", "")],
    ids=["two workers", "two workers, posted from Python", "two stages that hold each other's heads"],
)
def test_the_same_with_processes(folder, alone, tmp_path, monkeypatch, layout, net):
    monkeypatch.setenv("HETSERVE_NET", net)
    tokens, script = run_script(folder, tmp_path, layout, 3, in_process=False, isa=(("b", "avx2"),))
    assert script.workers.ready["b"].isa == "avx2"
    assert tokens == alone
    assert script.moved > 5 and script.shipped > 2


@pytest.mark.parametrize(
    ("sign", "net"),
    [(signal.SIGKILL, ""), (signal.SIGKILL, "off"), (signal.SIGSTOP, "")],
    ids=["killed", "killed, posted from Python", "frozen"],
)
def test_a_lost_attention_worker_costs_only_its_own_heads(folder, alone, tmp_path, monkeypatch, sign, net):
    monkeypatch.setenv("HETSERVE_NET", net)
    spec = load_model(folder)
    workers = Workers(make_plan(spec, [[(spec.layers, "a", "b")]]), folder, tmp_path, False)
    try:
        script = Script(workers, PROMPTS, NEW_TOKENS, 5)
        while not all(seq.decodes for seq in script.seqs):
            script.step()
        away = script.seqs[0]
        script.move_lanes(away, (0, spec.layers), np.zeros(1, np.int32), 0, 1)
        while not script.step() or away.slot not in script.standing:
            continue
        workers.killed.add("b")
        os.kill(workers.channels["b"].process.pid, sign)
        result = script.step()
        while result is None or away.slot not in script.standing:
            result = script.step()
        assert result.lost == ("b",)
        away.goal = 0
        began_s = time.monotonic()
        tokens = [seq.tokens for seq in script.seqs if seq is not away] if script.run(moves=False) else []
        assert tokens == [one for slot, one in enumerate(alone) if slot != away.slot]
        assert time.monotonic() - began_s < 10
    finally:
        workers.channels["b"].kill()
        workers.close()


@pytest.mark.parametrize("when", ["before", "behind a step"])
def test_a_move_whose_target_dies_fails(folder, tmp_path, when):
    """The primary's steps go on: also the one that the move follows."""
    spec = load_model(folder)
    workers = Workers(make_plan(spec, [[(spec.layers, "a", "b")]]), folder, tmp_path, False)
    try:
        pages = np.arange(40, dtype=np.int32)[None]
        what = (0, spec.layers), np.zeros(1, np.int32), pages, pages, Place(0, 0), Place(0, 1)
        if when == "behind a step":
            script = Script(workers, [PROMPTS[-1]], 3, 0)
            orders = [workers.order(*what, step=1), workers.order(*what, step=1)]
            time.sleep(0.2)  # both wait for the step
        workers.killed.add("b")
        workers.channels["b"].kill()
        if when == "before":
            assert not workers.move(*what)
        else:
            workers.channels["b"].process.wait()
            time.sleep(0.2)  # what is sent to a worker while it dies is lost without a word; then there is its loss to go by
            script.run(moves=False)
            assert not any([workers.await_move(number) for number in orders])
            assert workers.steps > 2
    finally:
        workers.close()


def test_a_move_whose_source_dies_before_its_step_fails(folder, tmp_path):
    spec = load_model(folder)
    workers = Workers(make_plan(spec, [[(spec.layers, "a", "b")]]), folder, tmp_path, False)
    try:
        pages = np.arange(40, dtype=np.int32)[None]
        number = workers.order((0, spec.layers), np.zeros(1, np.int32), pages, pages, Place(0, 0), Place(0, 1), step=1)
        workers.killed.add("a")
        workers.channels["a"].kill()
        assert not workers.await_move(number)
    finally:
        workers.close()
