"""Steps that a GPU is still busy with: reported in order, when it is done with them, with the time that it had for them."""

from __future__ import annotations

import queue
import time

import pytest
import torch
from devices_stand_in import WAIT_S, LateGpu

from hetserve.control.messages import NO_INTS
from hetserve.engine.accelerator import Mark
from hetserve.engine.finisher import Finisher, Unfinished
from hetserve.engine.wire import StepResult


def step(number: int, mark: Mark, tokens: torch.Tensor) -> Unfinished:
    now_s = time.perf_counter()
    return Unfinished(mark, tokens, StepResult(number, 0, NO_INTS, (), 0.0, {"model": 0.5}), now_s, now_s)


def unexpected(error: Exception) -> None:
    raise AssertionError(error)


def test_steps_are_reported_when_the_device_is_done_with_them() -> None:
    at, reported = LateGpu(late=True), queue.Queue[StepResult]()
    finisher = Finisher("a", reported.put, unexpected, at)
    tokens = [torch.zeros(2, dtype=torch.int32) for _ in range(2)]
    steps = [step(number, at.mark(), given) for number, given in enumerate(tokens)]
    for one in steps:
        finisher.put(one)
    with pytest.raises(queue.Empty):
        reported.get(timeout=0.1)
    tokens[0].copy_(torch.tensor([5, 6]))  # as the device would, before it passes the mark
    at.marks[0].passed.set()
    first = reported.get(timeout=WAIT_S)
    time.sleep(0.05)
    at.go_on()
    second = reported.get(timeout=WAIT_S)
    finisher.close()
    assert [first.step, second.step] == [0, 1] and first.tokens.tolist() == [5, 6] and second.tokens.tolist() == [0, 0]
    assert first.step_s >= 0.1 and first.parts_s["model"] == 0.5
    assert 0.05 <= second.step_s < 0.1 <= second.parts_s["sample"], "while the first was under way the device did nothing for the second"
    tokens[0].zero_()
    assert first.tokens.tolist() == [5, 6], "memory on the host is used again"


def test_a_fault_of_the_device_is_told_at_once() -> None:
    """No message need come: whoever sends them may wait for this very step."""

    class Broken:
        def wait(self) -> None:
            raise RuntimeError("an illegal memory access")

    reported, faults = queue.Queue[StepResult](), queue.Queue[Exception]()
    finisher = Finisher("a", reported.put, faults.put, LateGpu())
    for number in (1, 2):
        finisher.put(step(number, Broken(), torch.zeros(0, dtype=torch.int32)))
    assert str(faults.get(timeout=WAIT_S)) == "an illegal memory access"
    finisher.close()
    assert faults.empty() and reported.empty()
