"""One benchmark from start to end: servers up, runs, servers down, then (when nothing is timed any more) the outputs against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetserve.bench.agreement import MOST_CHECKED, Agreement, Answers, HfReference, agree
from hetserve.bench.comparison import (
    FIRST_OUTPUT_TOKENS,
    LATER_OUTPUT_TOKENS,
    LATER_PROMPT_TOKENS,
    LATER_REQUESTS,
    Load,
    Measured,
    Remote,
    Stage,
    System,
    compare,
    measure,
    warm_up,
)
from hetserve.bench.pairs import PAIRS, turns
from hetserve.bench.process import Launch, Server, get
from hetserve.bench.replicas import ReplicaLaunch, Replicas
from hetserve.bench.watch import See
from hetserve.errors import BaselineError, BenchError
from hetserve.trace.datasets import Workload

READY_S = 600.0
Target = Launch | ReplicaLaunch | Remote  # a system to be started, or one that runs already


@dataclass(frozen=True)
class Experiment:
    """What is run, everything resolved.

    Attributes:
        body: each request's fields beside model, prompt and max_tokens.
        client_cores: where the load generator runs.
        ready_s: how long a server may take to come up.
        fresh_prompts: draw other prompt tokens for each pair, because a server that was not started here may remember them.
        most_checked: see agreement.agree.
        cores: how many threads the reference may use.
        see: shown the metrics pages of whatever is being measured.
    """

    workload: Workload
    body: dict[str, Any]
    client_cores: tuple[int, ...]
    cores: tuple[int, ...]
    endpoint: str = "/v1/completions"
    headers: dict[str, str] = field(default_factory=dict)
    max_concurrency: int | None = None
    percentiles: Sequence[float] = (99.0,)
    goodput_ms: dict[str, float] = field(default_factory=dict)
    open_loop: bool = False
    pairs: int = PAIRS
    warmups: bool = True
    fresh_prompts: bool = False
    ready_s: float = READY_S
    most_checked: int = MOST_CHECKED
    see: See | None = None

    def load(self, models: Mapping[str, str]) -> Load:
        """The load for systems that know the model by these names."""
        return Load(
            requests=self.workload.requests,
            body=self.body,
            models=dict(models),
            client_cores=self.client_cores,
            endpoint=self.endpoint,
            headers=self.headers,
            max_concurrency=self.max_concurrency,
            percentiles=self.percentiles,
            goodput_ms=self.goodput_ms,
            open_loop=self.open_loop,
            fresh_prompts=self.fresh_prompts,
            see=self.see,
        )


def protocol(experiment: Experiment, compared: bool) -> dict[str, Any]:
    """How the runs were made, in words, for the result."""
    first = f"the whole list with at most {FIRST_OUTPUT_TOKENS} output tokens"
    later = f"{LATER_REQUESTS} requests of at most {LATER_PROMPT_TOKENS} + {LATER_OUTPUT_TOKENS} tokens"
    if not compared:
        return {"runs": 1, "warm_up": first if experiment.warmups else None, "request": experiment.body}
    return {
        "pairs": experiment.pairs,
        "order": "".join("AB"[turn.system] for turn in turns(experiment.pairs)),
        "warm_up": f"after each switch of systems; a system's first: {first}; later: {later}",
        "prompts": "drawn anew for each pair" if experiment.fresh_prompts else "the same in every pair; prefix caching is off",
        "other_system": "stopped (SIGSTOP, its whole process tree) once idle",
        "interval": "between order statistics of the pairs' ratios (sign test), at least 95 %",
        "request": experiment.body,
    }


def run_one(experiment: Experiment, target: Target, model: str, stage: Stage) -> list[Measured]:
    """One measured run of one system, started here or running already.

    Raises:
        BenchError: no request completed, or (from the launch) the server did not come up.
    """
    load = experiment.load({target.name: model})
    with ExitStack() as stack:
        system = _up(target, experiment.ready_s, stack, stage)
        if experiment.warmups:
            warm_up(system, load, stage, first=True)
        return [measure(system, load, 0, stage, f"measuring {system.name}")]


def run_both(experiment: Experiment, ours: Target, theirs: Target, models: Mapping[str, str], stage: Stage) -> list[Measured]:
    """All pairs of both systems: started one after the other, the first frozen while the second starts.

    Raises:
        BaselineError, BenchError: a server did not come up or died, or no request of a run completed.
    """
    with ExitStack() as stack:
        first = _up(ours, experiment.ready_s, stack, stage)
        first.freeze()
        second = _up(theirs, experiment.ready_s, stack, stage)
        return compare((first, second), experiment.load(models), experiment.pairs, stage)


def compare_outputs(experiment: Experiment, measured: Sequence[Measured], model: Path, stage: Stage) -> tuple[Agreement, str]:
    """How the outputs of both systems' runs agree, and how that was found out ("token ids", or "text" from a server that gives no ids).

    Texts can show that answers are identical; where they differ, nothing more is known, and they count as unchecked.
    """
    by_pair: dict[int, list[Measured]] = {}
    for one in measured:
        by_pair.setdefault(one.pair, []).append(one)
    rows = []
    for pair in by_pair.values():
        ours, theirs = sorted(pair, key=lambda one: one.system != measured[0].system)
        rows += list(zip(ours.job.requests, ours.run.records, theirs.run.records, strict=True))
    if any(record.ok and not record.token_ids for _, *records in rows for record in records):
        both = [(mine.text, other.text) for _, mine, other in rows if mine.ok and other.ok]
        same = sum(mine == other for mine, other in both)
        return Agreement(len(both), same, 0, 0, len(both) - same, ()), "text"
    answers = [Answers(request.prompt, *(record.token_ids if record.ok else None for record in (mine, other))) for request, mine, other in rows]
    with stage("checking where outputs part against transformers", experiment.most_checked or None) as advance:
        found = agree(answers, lambda: HfReference(model, len(experiment.cores)), experiment.most_checked, lambda done, total: advance(1))
    return found, "token ids"


def _up(target: Target, ready_s: float, stack: ExitStack, stage: Stage) -> System:
    if isinstance(target, Remote):
        if get(target.url, "/v1/models")[0] == 0:
            kind = BaselineError if target.name == "vllm" else BenchError
            raise kind(f"Nobody answers at {target.url}.", hint="start that server first; the URL has no path: http://127.0.0.1:8000")
        return target
    launches = target.launches if isinstance(target, ReplicaLaunch) else (target,)
    servers = [stack.enter_context(Server(launch)) for launch in launches]
    with stage(f"starting {target.name}", None) as advance:
        for server in servers:
            server.wait_ready(ready_s, advance)
    return Replicas(target.name, servers) if isinstance(target, ReplicaLaunch) else servers[0]
