"""Times `handle` of a StepDone. Not a test: run `python tests/control/time_handle.py`.

The budget (DESIGN section 2) is 100 us at 64 requests x 40 head groups.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from control_harness import config

from hetserve.control.codec import MESSAGES
from hetserve.control.controller import Controller
from hetserve.control.messages import Arrived, Request, RunStep, StepDone
from hetserve.systems import UNIFORM

STEPS = 1500


def time_steps(requests: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of `handle` for each StepDone of a steady decode, and of encoding the step it orders."""
    shape = config(pages=heads * requests * 130, heads=heads)
    shape = replace(shape, page_tokens=16, max_model_len=4096, max_seqs=256, max_step_tokens=1024, max_waiting=1000)
    controller = Controller(shape, UNIFORM)
    pending = []
    for number in range(requests):
        request = Request(number, np.arange(100 + number, dtype=np.int32), 2000, stop_token_ids=(2,))
        pending += controller.handle(Arrived(0.0, number, request))
    handle_s, encode_s = [], []
    standing: set[int] = set()
    while len(handle_s) < STEPS:
        step = pending.pop(0)
        standing = (standing - set(step.ends.tolist()) - set(step.leaves.tolist())) | set(step.joins.tolist())
        event = StepDone(0.0, 0, step.step, 0, np.full(len(standing) + int(step.chunk_samples.sum()), 7, np.int32), 0.01)
        began_s = time.perf_counter()
        commands = controller.handle(event)
        handle_s.append(time.perf_counter() - began_s)
        steps = [command for command in commands if isinstance(command, RunStep)]
        began_s = time.perf_counter()
        for one in steps:
            MESSAGES.encode(one)
        encode_s.append(time.perf_counter() - began_s)
        pending += steps
    return np.array(handle_s[200:]), np.array(encode_s[200:])


if __name__ == "__main__":
    for requests, heads in ((1, 8), (64, 8), (64, 40), (200, 40)):
        handle_s, encode_s = time_steps(requests, heads)
        figures = [f"{name} {value * 1e6:.0f}" for name, value in (("median", np.median(handle_s)), ("mean", handle_s.mean()))]
        print(f"{requests} requests x {heads} heads: handle {', '.join(figures)}, p99 {np.quantile(handle_s, 0.99) * 1e6:.0f} us;", end=" ")
        print(f"encode median {np.median(encode_s) * 1e6:.0f} us")
