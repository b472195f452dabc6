"""Runs the load generator as a process of its own on the control cores, and sums a run up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hetserve import metrics
from hetserve.bench import job as jobs
from hetserve.bench.job import Job, Run
from hetserve.errors import BenchError

Progress = Callable[[int, int], None]  # requests that ended, and how many of them failed

GROWTH = 1.5  # saturated: the second half of the arrivals wait this many times as long for their first token as the first half,
RANK = 0.5  # and the later a request arrived the longer it waited (Spearman's rank correlation at least this)
LEAST_FOR_TREND = 10  # requests


def run_client(job: Job, cores: Sequence[int], progress: Progress) -> Run:
    """One run of the load generator, pinned to `cores`.

    Raises:
        BenchError: the load generator itself failed (failed requests are no such failure: they are in the result).
    """
    with tempfile.TemporaryDirectory(prefix="hetserve-bench-") as scratch:
        job_path, run_path, complaints = (Path(scratch, name) for name in ("job", "run", "stderr"))
        jobs.write(job_path, job)
        command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "hetserve.bench.client", str(job_path), str(run_path)]
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            _follow(process, progress)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        if not run_path.exists():
            said = complaints.read_text(errors="replace").strip().splitlines()[-5:]
            raise BenchError("The load generator ended without a result:\n" + "\n".join(said))
        return jobs.read_run(run_path)


def _follow(process: subprocess.Popen[str], progress: Progress) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        done, _, failed = line.partition(" ")
        progress(int(done), int(failed))
    process.wait()


def summary(job: Job, run: Run, percentiles: Sequence[float], goodput_ms: dict[str, float], open_loop: bool) -> dict[str, Any]:
    """A run under vLLM's keys, and beside them: `saturated` and the client's CPU seconds and lateness."""
    found = metrics.summarise(run.records, run.duration_s, percentiles, goodput_ms, job.max_concurrency is not None, open_loop)
    late = {"client_cpu_s": run.client_cpu_s, "client_late_ms": run.late_s * 1000}
    return found | {"saturated": saturated(job, run) if open_loop else None} | late


def saturated(job: Job, run: Run) -> bool | None:
    """Whether the server fell behind the arrivals, client queue included; see `fell_behind`."""
    pairs = zip(job.requests, run.records, strict=True)
    return fell_behind([(request.arrival_s, record.queue_s + record.ttft_s) for request, record in pairs if record.ok])


def fell_behind(waits: Sequence[tuple[float, float]]) -> bool | None:
    """Whether later requests wait ever longer for their first token, given when each arrived and how long it waited, seconds.

    None when there are too few requests to see a trend.
    """
    if len(waits) < LEAST_FOR_TREND:
        return None
    waits_s = np.array([wait_s for _, wait_s in sorted(waits)])
    ranks = np.argsort(np.argsort(waits_s))
    trend = float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])
    half = len(waits_s) // 2
    return bool(trend >= RANK and waits_s[half:].mean() >= GROWTH * waits_s[:half].mean())


def require_usable(name: str, run: Run) -> None:
    """Raises BenchError when no request of a run completed; the message says what the first one met."""
    if not any(record.ok for record in run.records):
        first = next((record.error for record in run.records if record.error), "no request was sent")
        raise BenchError(f"No request to {name} completed. The first one: {first}")
