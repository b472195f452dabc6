"""What the load generator is told and what it reports: two files, so that it can run in a process of its own on cores of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hetserve.metrics import RequestRecord
from hetserve.trace.requests import Request


@dataclass(frozen=True)
class Job:
    """One run of the load generator.

    Attributes:
        url: the completions endpoint, whole.
        body: what every request's JSON has beside its prompt and max_tokens (model, sampling, ignore_eos, ...).
        max_concurrency: requests under way at once; None for no limit. What waits for it is counted as queue time.
        replicas: (endpoint, tokens per second) of each server to deal requests over; empty: all go to `url`.
        silence_s: a request whose server says nothing for this long has failed.
    """

    url: str
    body: dict[str, Any]
    requests: tuple[Request, ...]
    headers: dict[str, str] = field(default_factory=dict)
    max_concurrency: int | None = None
    replicas: tuple[tuple[str, float], ...] = ()
    silence_s: float = 900.0


@dataclass(frozen=True)
class Run:
    """What one run measured.

    Attributes:
        records: one for each request, in the job's order.
        duration_s: from the start until the last request ended.
        client_cpu_s: CPU time the load generator used meanwhile.
        late_s: the most a request left after its time although it did not have to wait: how far the client itself lagged.
    """

    records: tuple[RequestRecord, ...]
    duration_s: float
    client_cpu_s: float
    late_s: float


def write(path: Path, value: Job | Run) -> None:
    """Writes a job or a run as MessagePack."""
    path.write_bytes(msgspec.msgpack.encode(value))


def read_job(path: Path) -> Job:
    return msgspec.msgpack.decode(path.read_bytes(), type=Job)


def read_run(path: Path) -> Run:
    return msgspec.msgpack.decode(path.read_bytes(), type=Run)
