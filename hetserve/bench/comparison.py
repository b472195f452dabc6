"""The protocol: two running systems, the same requests, adjacent pairs in alternating order, one system frozen while the other runs.

After each switch comes one unmeasured warm-up. What a pair's two runs share, they share exactly: request list, client, cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from hetserve.bench.job import Job, Run
from hetserve.bench.pairs import turns
from hetserve.bench.runner import require_usable, run_client, summary
from hetserve.trace.requests import Request

# What a warm-up sends. The first one of a system is the whole list with short answers, so that whatever is compiled or allocated on
# first use is; a later one only has to bring caches, clocks and a thawed process back.
FIRST_OUTPUT_TOKENS = 32
LATER_REQUESTS = 4
LATER_PROMPT_TOKENS = 256
LATER_OUTPUT_TOKENS = 16
DYING_S = 2.0  # after failed requests: how long a crashing server may take to be gone


class System(Protocol):
    """What is measured. `frozen` systems take no part; one that cannot be frozen (a URL) says so with shared_cores."""

    name: str
    url: str
    frozen: bool

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def require_alive(self, grace_s: float = 0.0) -> None: ...
    def cpu_s(self) -> float | None: ...


@dataclass
class Remote:
    """A system known by its URL only: it cannot be frozen, and its CPU time cannot be read."""

    name: str
    url: str
    frozen: bool = False

    def freeze(self) -> None:
        """Nothing: its processes are not ours."""

    def thaw(self) -> None:
        """Nothing, likewise."""

    def require_alive(self, grace_s: float = 0.0) -> None:
        """Nothing: a dead server shows in its requests."""

    def cpu_s(self) -> float | None:
        return None


@dataclass(frozen=True)
class Load:
    """What is sent in each run.

    Attributes:
        requests: the request list of a draw, the same for both systems: draw 0 for warm-ups, 1 for every pair,
            or, with fresh_prompts, pair number + 1.
        body: each request's further fields, without the model's name.
        models: the model's name at each system, by system name.
        client_cores: where the load generator runs.
        open_loop: the arrival rate is finite.
    """

    requests: Callable[[int], tuple[Request, ...]]
    body: dict[str, Any]
    models: dict[str, str]
    client_cores: tuple[int, ...]
    endpoint: str = "/v1/completions"
    headers: dict[str, str] = field(default_factory=dict)
    max_concurrency: int | None = None
    percentiles: Sequence[float] = (99.0,)
    goodput_ms: dict[str, float] = field(default_factory=dict)
    open_loop: bool = False
    fresh_prompts: bool = False

    def job(self, system: System, requests: tuple[Request, ...]) -> Job:
        body = {"model": self.models[system.name], **self.body}
        return Job(system.url.rstrip("/") + self.endpoint, body, requests, self.headers, self.max_concurrency)


@dataclass(frozen=True)
class Measured:
    """One measured run of one system."""

    system: str
    pair: int
    job: Job
    run: Run
    summary: dict[str, Any]  # vLLM's keys, saturated, and CPU seconds of client and server


Stage = Callable[[str, float | None], AbstractContextManager[Callable[..., None]]]  # (label, total) -> `advance(done)`: how progress is shown


def compare(systems: tuple[System, System], load: Load, pairs: int, stage: Stage) -> list[Measured]:
    """Runs `pairs` pairs; both systems are up, frozen or not.

    Raises:
        BenchError: no request of a run completed.
        the server's own error: it died.
    """
    measured: list[Measured] = []
    for turn in turns(pairs):
        mine, other = systems[turn.system], systems[1 - turn.system]
        if turn.switched:
            if not other.frozen:
                other.freeze()
            if mine.frozen:
                mine.thaw()
            warm_up(mine, load, stage, first=all(one.system != mine.name for one in measured))
        measured.append(measure(mine, load, turn.pair, stage, f"pair {turn.pair + 1} of {pairs}: {mine.name}"))
    return measured


def warm_up(system: System, load: Load, stage: Stage, first: bool) -> None:
    """An unmeasured run, all at once, with prompts of its own: on the first time the whole list, later a few short requests spread over it."""
    requests = load.requests(0)
    if first:
        sent = tuple(Request(one.prompt, min(one.output_tokens, FIRST_OUTPUT_TOKENS)) for one in requests)
    else:
        few = requests[:: -(-len(requests) // LATER_REQUESTS)]
        sent = tuple(Request(one.prompt[:LATER_PROMPT_TOKENS], min(one.output_tokens, LATER_OUTPUT_TOKENS)) for one in few)
    run = _send(load.job(system, sent), load, stage, f"warming up {system.name}")
    _require_sound(system, run)


def measure(system: System, load: Load, pair: int, stage: Stage, label: str) -> Measured:
    """One measured run."""
    job = load.job(system, load.requests(pair + 1 if load.fresh_prompts else 1))
    before_s = system.cpu_s()
    run = _send(job, load, stage, label)
    after_s = system.cpu_s()
    _require_sound(system, run)
    used_s = None if before_s is None or after_s is None else after_s - before_s
    found = summary(job, run, load.percentiles, load.goodput_ms, load.open_loop)
    return Measured(system.name, pair, job, run, found | {"server_cpu_s": used_s})


def _require_sound(system: System, run: Run) -> None:
    """Raises if the server died, or completed nothing."""
    system.require_alive(0.0 if all(record.ok for record in run.records) else DYING_S)
    require_usable(system.name, run)


def _send(job: Job, load: Load, stage: Stage, label: str) -> Run:
    with stage(label, len(job.requests)) as advance:
        shown = 0

        def progress(done: int, failed: int) -> None:
            nonlocal shown
            advance(done - shown, f"({failed} failed)" if failed else "")
            shown = done

        return run_client(job, load.client_cores, progress)
