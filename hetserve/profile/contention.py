"""How much slower a device's work becomes while another device works: one of two processes, which rests or works as it is told, line by line.

Attention is decode attention of one layer after the other, decode and prompt a layer's products for a decoding batch and for a part of a prompt,
each beyond what the caches hold: what a running engine does. Times are of the clock that all times of a device are taken with (`Site.timed`): on a
CPU waiting for a memory path or for an execution unit that another core has counts as CPU time, other processes on the same core do not; of a GPU it
is the time it takes, whatever it waits for.
"""

from __future__ import annotations

import itertools
import select
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import BinaryIO

import numpy as np

from hetserve.engine.attention import KvMemory
from hetserve.engine.stretch import stretched
from hetserve.profile.attention import Step, passes
from hetserve.profile.dense import layer_points
from hetserve.profile.rounds import LEAST_ROUNDS, Measure
from hetserve.profile.site import Site
from hetserve.profile.tasks import ATTENTION, DECODE, PROMPT, REST, ContentionTask
from hetserve.spec.cluster import Stretch
from hetserve.spec.model import DTYPE_BYTES
from hetserve.spec.plan import PAGE_TOKENS

Say = Callable[[Sequence[float]], None]


def serve(task: ContentionTask, site: Site, orders: BinaryIO, say: Say) -> None:
    """Says an empty answer when it is ready, then carries out orders until there are no more; what is said of each: `keep_at`."""
    works = points(task, site)
    say(())
    for order in iter(lambda: orders.readline().decode().strip(), ""):
        keep_at(works[order], task.effort.window_s, lambda: bool(select.select([orders], [], [], 0)[0]), say)


def keep_at(work: Sequence[Measure], window_s: float, told: Callable[[], bool], say: Say) -> None:
    """Goes through the points in turn until told something else, and says the median seconds of each as soon as they have had their time. No points:
    rests, and says so at once."""
    taken: list[list[float]] = [[] for _ in work]
    until_s, said = time.perf_counter() + window_s, False
    while not said or (work and not told()):
        for measure, times_s in zip(work, taken, strict=True):
            times_s.append(measure())
        if not said and (not work or (len(taken[0]) >= LEAST_ROUNDS and time.perf_counter() >= until_s)):
            said = True
            say([median(times_s) for times_s in taken])


def points(task: ContentionTask, site: Site) -> Mapping[str, Sequence[Measure]]:
    """What there is to do for each order. A stretched device sleeps after each point, as its worker does."""
    stretch = task.device.stretch or Stretch()
    rows = (task.effort.mixed_decode, task.effort.mixed_prompt)
    decode, prompt = layer_points(replace(task, effort=replace(task.effort, tokens=rows)), task.weights, site)
    return {
        REST: (),
        ATTENTION: [_slower(_attention(task, site), stretch.attention)],
        DECODE: [_slower(decode, stretch.dense)],
        PROMPT: [_slower(prompt, stretch.dense)],
    }


def _attention(task: ContentionTask, site: Site) -> Measure:
    model, effort = task.model, task.effort
    token_bytes = 2 * model.kv_dim * DTYPE_BYTES[task.dtype]
    most_tokens = task.device.memory_bytes // model.layers // token_bytes // effort.mixed_requests
    pages_each = max(1, min(effort.mixed_length, most_tokens) // PAGE_TOKENS)
    lengths = np.full(effort.mixed_requests, pages_each * PAGE_TOKENS, np.int32)
    layers = min(model.layers, 1 + site.flush_bytes // (int(lengths.sum()) * token_bytes))
    memory = KvMemory((0, layers), len(lengths) * model.kv_heads * pages_each, PAGE_TOKENS, model.head_dim, task.dtype, site.at)
    (step,) = passes(site, memory, model, [Step(model, lengths, np.ones(len(lengths), np.int32))], True)
    turn = itertools.cycle([step.captured(layer) for layer in range(layers)])
    return lambda: site.timed(next(turn))


def _slower(measure: Measure, factor: float) -> Measure:
    def run() -> float:
        with stretched(factor):
            return measure()

    return run if factor > 1 else measure
