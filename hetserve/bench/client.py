"""The load generator: sends a request list to a URL at its arrival times and notes when what came back. It does not know whom it measures.

    python -m hetserve.bench.client JOB RUN

runs in a process of its own. Open loop: an arrival never waits for an answer, unless a maximum concurrency makes it wait, which is then counted.
While the run lasts, bytes are stored with their times and nothing is parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import resource
import sys
import time
from pathlib import Path

import aiohttp

from hetserve.bench import job as jobs
from hetserve.bench import sse
from hetserve.bench.job import Job, Run
from hetserve.bench.router import Router
from hetserve.metrics import RequestRecord
from hetserve.trace.requests import Request

CONNECT_S = 60.0
PROGRESS_S = 0.5
ERROR_BYTES = 400  # how much of an error's body is worth keeping


class LoadGenerator:
    """One run. Holds what has arrived so far for each request."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._bodies = [_body(job, request) for request in job.requests]
        self._endpoints, speeds = zip(*(job.replicas or ((job.url, 1.0),)), strict=True)
        self._router = Router(speeds)
        self._turnstile = asyncio.Semaphore(job.max_concurrency or sys.maxsize)
        self._parts: list[list[sse.Timed]] = [[] for _ in job.requests]
        self._errors = [""] * len(job.requests)
        self._sent_s = [0.0] * len(job.requests)  # after the start
        self._origin_s = 0.0
        self.done = 0
        self.failed = 0

    async def run(self) -> Run:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._job.silence_s)
        headers = {"Content-Type": "application/json"} | self._job.headers
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers) as session:
            gc.collect()
            gc.freeze()
            began_cpu_s = _cpu_s()
            self._origin_s = time.perf_counter()
            tasks = [asyncio.create_task(self._one(session, index)) for index in range(len(self._bodies))]
            teller = asyncio.create_task(self._tell())
            await asyncio.gather(*tasks)
            duration_s = time.perf_counter() - self._origin_s
            cpu_s = _cpu_s() - began_cpu_s
            teller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await teller
        return Run(self._records(), duration_s, cpu_s, self._late_s())

    async def _one(self, session: aiohttp.ClientSession, index: int) -> None:
        wait_s = self._origin_s + self._job.requests[index].arrival_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        async with self._turnstile:
            began_s = time.perf_counter()
            self._sent_s[index] = began_s - self._origin_s
            tokens = _tokens(self._job.requests[index])
            replica = self._router.take(tokens)
            try:
                await self._stream(session, self._endpoints[replica], index, began_s)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._errors[index] = f"{type(error).__name__}: {error}".rstrip(": ")
            finally:
                self._router.done(replica, tokens)
        self.done += 1
        self.failed += bool(self._errors[index])

    async def _stream(self, session: aiohttp.ClientSession, endpoint: str, index: int, began_s: float) -> None:
        parts = self._parts[index]
        async with session.post(endpoint, data=self._bodies[index]) as response:
            if response.status != 200:
                said = (await response.content.read(ERROR_BYTES)).decode(errors="replace")
                self._errors[index] = f"HTTP {response.status} {response.reason}: {said}"
                return
            async for part in response.content.iter_any():
                parts.append((time.perf_counter() - began_s, part))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            say(self.done, self.failed)

    def _queue_s(self, index: int) -> float:
        return max(0.0, self._sent_s[index] - self._job.requests[index].arrival_s)

    def _late_s(self) -> float:
        return 0.0 if self._job.max_concurrency else max(self._queue_s(index) for index in range(len(self._bodies)))

    def _records(self) -> tuple[RequestRecord, ...]:
        return tuple(
            sse.record(parts, len(request.prompt), sent_s, self._queue_s(index), error)
            for index, (parts, request, sent_s, error) in enumerate(zip(self._parts, self._job.requests, self._sent_s, self._errors, strict=True))
        )


def _tokens(request: Request) -> int:
    return len(request.prompt) + request.output_tokens


def _body(job: Job, request: Request) -> bytes:
    fixed = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({**job.body, "prompt": request.prompt, "max_tokens": request.output_tokens, **fixed}).encode()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def say(done: int, failed: int) -> None:
    """One line of progress for whoever started this process."""
    sys.stdout.write(f"{done} {failed}\n")
    sys.stdout.flush()


async def generate(job: Job) -> Run:
    """One run, in the running event loop."""
    generator = LoadGenerator(job)
    run = await generator.run()
    say(generator.done, generator.failed)
    return run


def main() -> None:
    """Entry point of the process."""
    job_path, run_path = sys.argv[1:]
    jobs.write(Path(run_path), asyncio.run(generate(jobs.read_job(Path(job_path)))))


if __name__ == "__main__":
    main()
