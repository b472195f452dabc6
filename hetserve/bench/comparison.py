"""The protocol: two running systems, the same requests, adjacent pairs in alternating order, one system frozen while the other runs.

After each switch comes one unmeasured warm-up. What a pair's two runs share, they share exactly: request list, client, cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hetserve.bench.job import Job, Run
from hetserve.bench.pairs import turns
from hetserve.bench.runner import require_usable, run_client, summary
from hetserve.bench.watch import See, Watch
from hetserve.trace.requests import Request

# What a warm-up sends. The first one of a system is the whole list with short answers, so that whatever is compiled or allocated on
# first use is; a later one only has to bring caches, clocks and a thawed process back.
FIRST_OUTPUT_TOKENS = 32
LATER_REQUESTS = 4
LATER_PROMPT_TOKENS = 256
LATER_OUTPUT_TOKENS = 16
SPEED_REQUESTS = 8  # whole requests, spread over the list, by which a replica's speed is measured
DYING_S = 2.0  # after failed requests: how long a crashing server may take to be gone


class System(Protocol):
    """What is measured. `frozen` systems take no part; one that cannot be frozen (a URL) says so with shared_cores.

    `replicas` are (URL, tokens per second) of the servers requests are dealt over; empty for a system of one server.
    """

    name: str
    url: str
    frozen: bool
    replicas: tuple[tuple[str, float], ...]

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
    replicas: tuple[tuple[str, float], ...] = ()

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
        see: shown the metrics pages of whatever is being measured.
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
    see: See | None = None

    def job(self, system: System, requests: tuple[Request, ...]) -> Job:
        body = {"model": self.models[system.name], **self.body}
        replicas = tuple((self.address(url), speed) for url, speed in system.replicas)
        return Job(self.address(system.url), body, requests, self.headers, self.max_concurrency, replicas)

    def address(self, url: str) -> str:
        return url.rstrip("/") + self.endpoint


@dataclass(frozen=True)
class Measured:
    """One measured run of one system, beside `against` where it was compared."""

    system: str
    pair: int
    job: Job
    run: Run
    summary: dict[str, Any]  # vLLM's keys, saturated, CPU seconds of client and server, and what the server's metrics said (see watch)
    against: str = ""


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
        one = measure(mine, load, turn.pair, stage, f"pair {turn.pair + 1} of {pairs}: {mine.name}")
        measured.append(replace(one, against=other.name))
    return measured


def warm_up(system: System, load: Load, stage: Stage, first: bool) -> None:
    """An unmeasured run, all at once, with prompts of its own: on the first time the whole list, later a few short requests spread over it."""
    requests = load.requests(0)
    if first and system.replicas:
        system.replicas = tuple((url, _speed(system, url, load, stage)) for url, _ in system.replicas)
    if first:
        sent = tuple(Request(one.prompt, min(one.output_tokens, FIRST_OUTPUT_TOKENS)) for one in requests)
    else:
        few = requests[:: -(-len(requests) // LATER_REQUESTS)]
        sent = tuple(Request(one.prompt[:LATER_PROMPT_TOKENS], min(one.output_tokens, LATER_OUTPUT_TOKENS)) for one in few)
    run = _send(load.job(system, sent), load, stage, f"warming up {system.name}")
    _require_sound(system, run)


def _speed(system: System, url: str, load: Load, stage: Stage) -> float:
    """Tokens per second, prompts and answers together, of one replica alone: a few whole requests of the list, after a run that warms it up."""
    requests = load.requests(0)
    few = requests[:: -(-len(requests) // SPEED_REQUESTS)]
    alone = replace(load.job(system, few), replicas=((load.address(url), 1.0),))
    for label in ("warming up", "measuring the speed of"):
        run = _send(alone, load, stage, f"{label} {system.name} at {url}")
        _require_sound(system, run)
    return sum(one.prompt_tokens + one.output_tokens for one in run.records if one.ok) / run.duration_s


def measure(system: System, load: Load, pair: int, stage: Stage, label: str) -> Measured:
    """One measured run."""
    job = load.job(system, load.requests(pair + 1 if load.fresh_prompts else 1))
    watch = Watch(system.name, [url for url, _ in system.replicas] or [system.url], load.see)
    before_s = system.cpu_s()
    run = _send(job, load, stage, label, watch)
    after_s = system.cpu_s()
    _require_sound(system, run)
    used_s = None if before_s is None or after_s is None else after_s - before_s
    found = summary(job, run, load.percentiles, load.goodput_ms, load.open_loop)
    return Measured(system.name, pair, job, run, found | {"server_cpu_s": used_s, **watch.summary()})


def _require_sound(system: System, run: Run) -> None:
    """Raises if the server died, or completed nothing."""
    system.require_alive(0.0 if all(record.ok for record in run.records) else DYING_S)
    require_usable(system.name, run)


def _send(job: Job, load: Load, stage: Stage, label: str, watch: Watch | None = None) -> Run:
    with stage(label, len(job.requests)) as advance:
        shown = 0

        def progress(done: int, failed: int) -> None:
            nonlocal shown
            advance(done - shown, f"({failed} failed)" if failed else "")
            shown = done
            if watch is not None:
                watch.sample()

        return run_client(job, load.client_cores, progress)
