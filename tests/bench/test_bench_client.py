"""The load generator against a made-up server: what it sends, when, and what it makes of every way an answer can end."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from hetserve.bench import client, sse
from hetserve.bench import job as jobs
from hetserve.bench.job import Job, Run
from hetserve.bench.router import Router
from hetserve.bench.runner import run_client
from hetserve.errors import BenchError
from hetserve.trace.requests import Request

HERE = Path(__file__).parent


def load_fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_fake_server", HERE / "bench_fake_server.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FAKE = load_fake()


def run_against(fake: Any, requests: tuple[Request, ...], **job: Any) -> Run:
    async def whole() -> Run:
        runner = web.AppRunner(fake.app())
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/completions"
            return await client.generate(Job(url, {"model": "m", "temperature": 0.0}, requests, **job))
        finally:
            await runner.cleanup()

    return asyncio.run(whole())


def requests_of(count: int, gap_s: float = 0.0, output: int = 5) -> tuple[Request, ...]:
    return tuple(Request((1, 2, index), output + index % 3, index * gap_s) for index in range(count))


def test_every_answer_is_recorded_whole_in_the_lists_order() -> None:
    fake = FAKE.Fake()
    requests = requests_of(12)
    run = run_against(fake, requests, headers={"X-Mine": "yes"})
    for request, record in zip(requests, run.records, strict=True):
        assert record.ok, record.error
        expected = tuple(FAKE.token(list(request.prompt), index) for index in range(request.output_tokens))
        assert record.token_ids == expected
        assert record.text == "".join(f"t{token} " for token in expected)
        assert (record.prompt_tokens, record.output_tokens) == (3, request.output_tokens)
        assert sum(record.chunk_tokens) == record.output_tokens == len(record.chunk_s)
        assert record.chunk_s[0] > 0 and list(record.chunk_s) == sorted(record.chunk_s)
        assert record.start_s + record.chunk_s[-1] <= run.duration_s
    sent = fake.bodies[0]
    assert sent["model"] == "m" and sent["stream"] is True and sent["stream_options"] == {"include_usage": True} and sent["temperature"] == 0.0
    assert all(headers["X-Mine"] == "yes" for headers in fake.headers)
    assert run.client_cpu_s > 0


def test_arrivals_do_not_wait_for_answers() -> None:
    fake = FAKE.Fake()
    run = run_against(fake, requests_of(20, gap_s=0.01, output=40))
    assert fake.most_running >= 5  # an answer takes 80 ms, arrivals come every 10 ms: a closed loop would have one at a time
    for index, record in enumerate(run.records):
        assert record.start_s >= index * 0.01 - 0.001
    assert run.late_s == max(record.queue_s for record in run.records)


def test_a_maximum_concurrency_holds_and_its_queue_is_counted() -> None:
    fake = FAKE.Fake()
    run = run_against(fake, requests_of(12, output=15), max_concurrency=3)
    assert fake.most_running <= 3
    waits = sorted(record.queue_s for record in run.records)
    assert waits[3] > 0.025 and waits[-1] > 0.08  # three go at once; whoever comes next waits for an answer of 30 ms, the last for three
    assert run.late_s == 0.0  # waiting for its turn is no lateness of the client
    assert all(record.e2el_s < record.queue_s + record.e2el_s for record in run.records[3:])


@pytest.mark.parametrize(
    ("fault", "said"),
    [("status", "HTTP 503"), ("cut", ""), ("silent", "no output"), ("event", "worker lost")],
)
def test_a_failed_request_is_counted_and_says_why(fault: str, said: str) -> None:
    run = run_against(FAKE.Fake(fault), requests_of(3))
    assert not any(record.ok for record in run.records)
    assert all(record.error and said in record.error for record in run.records)


def test_nobody_listening_is_a_failure_of_each_request() -> None:
    run = asyncio.run(client.generate(Job("http://127.0.0.1:9/v1/completions", {}, requests_of(2))))
    assert [record.ok for record in run.records] == [False, False]
    assert all("Connect" in record.error for record in run.records)


def test_a_server_that_falls_silent_fails_the_request() -> None:
    class Mute(FAKE.Fake):  # type: ignore[name-defined, misc]
        async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            answer = web.StreamResponse()
            await answer.prepare(request)
            await asyncio.sleep(5)
            return answer

    run = run_against(Mute(), requests_of(1), silence_s=0.1)
    assert not run.records[0].ok and "imeout" in run.records[0].error


def test_without_token_ids_texts_and_usage_remain() -> None:
    run = run_against(FAKE.Fake("no-ids"), requests_of(2))
    assert all(record.ok and record.token_ids == () and record.text and record.output_tokens == len(record.chunk_s) for record in run.records)


def stream(events: list[bytes]) -> list[tuple[float, bytes]]:
    return [(float(index), event) for index, event in enumerate(events)]


def test_an_event_is_timed_by_its_last_byte_however_it_was_cut() -> None:
    whole = b'data: {"choices":[{"text":"\xc3\xa4","token_ids":[1,2]}]}\n\ndata: {"choices":[{"text":"b","finish_reason":"stop"}]}\n\n'
    for cut in range(1, len(whole)):
        record = sse.record([(1.0, whole[:cut]), (2.0, whole[cut:])], 1, 0.0, 0.0)
        ends = whole.index(b"\n\n") + 2
        assert record.ok and record.text == "äb" and record.chunk_tokens == (2, 1) and record.token_ids == (1, 2)
        assert record.chunk_s == (1.0 if cut >= ends else 2.0, 2.0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.booleans())
def test_any_fragmentation_gives_the_same_record(sizes: list[int], carriage: bool) -> None:
    whole = b"".join(b'data: {"choices":[{"text":"x%d","token_ids":[%d]}]}\n\n' % (index, index) for index in range(5)) + b"data: [DONE]\n\n"
    whole = whole.replace(b"\n", b"\r\n") if carriage else whole
    parts, start = [], 0
    for number, size in enumerate(sizes):
        parts.append((float(number), whole[start : start + size]))
        start += size
    parts.append((99.0, whole[start:]))
    record = sse.record(parts, 1, 0.0, 0.0)
    assert record.ok and record.token_ids == (0, 1, 2, 3, 4) and record.text == "x0x1x2x3x4"


def test_output_tokens_come_from_usage_then_ids_then_chunks() -> None:
    chunk = b'data: {"choices":[{"text":"a"%s,"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"completion_tokens":7,"prompt_tokens":5}}\n\n'
    assert sse.record(stream([chunk % b"", usage]), 3, 0, 0).output_tokens == 7
    assert sse.record(stream([chunk % b"", usage]), 3, 0, 0).prompt_tokens == 5
    assert sse.record(stream([chunk % b',"token_ids":[4,5]']), 3, 0, 0).output_tokens == 2
    assert sse.record(stream([chunk % b""]), 3, 0, 0).output_tokens == 1


@pytest.mark.parametrize("broken", [[b"data: {not json\n\n"], [b'data: {"choices":[{"text":"a"}]}\n\n'], [], [b"data: [DONE]\n\n"]])
def test_broken_streams_are_failures(broken: list[bytes]) -> None:
    assert not sse.record(stream(broken), 1, 0, 0).ok


def test_jobs_and_runs_survive_their_files(tmp_path: Path) -> None:
    run = run_against(FAKE.Fake(), requests_of(2))
    job = Job("http://x", {"a": [1, None, "ä"]}, requests_of(2, 0.5), {"h": "v"}, 4)
    jobs.write(tmp_path / "job", job)
    jobs.write(tmp_path / "run", run)
    assert jobs.read_job(tmp_path / "job") == job
    assert jobs.read_run(tmp_path / "run") == run


def test_the_client_runs_in_a_process_of_its_own_on_its_cores() -> None:
    told: list[tuple[int, int]] = []
    job = Job("http://127.0.0.1:9/v1/completions", {}, requests_of(3))
    run = run_client(job, [0], lambda done, failed: told.append((done, failed)))
    assert len(run.records) == 3 and told[-1] == (3, 3)


def test_a_client_that_cannot_work_is_an_error() -> None:
    with pytest.raises(BenchError, match="load generator"):
        run_client(Job("http://x", {}, ({"prompt": "no request"},)), [0], lambda done, failed: None)  # type: ignore[arg-type]


def test_requests_are_dealt_over_replicas_by_speed() -> None:
    async def whole() -> tuple[Run, list[int]]:
        fakes, sites = [FAKE.Fake(), FAKE.Fake()], []
        try:
            for fake in fakes:
                runner = web.AppRunner(fake.app())
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                sites.append(runner)
            urls = [f"http://127.0.0.1:{one.addresses[0][1]}/v1/completions" for one in sites]
            run = await client.generate(Job("", {"model": "m"}, requests_of(12), replicas=((urls[0], 300.0), (urls[1], 100.0))))
            return run, [len(fake.bodies) for fake in fakes]
        finally:
            for one in sites:
                await one.cleanup()

    run, sent = asyncio.run(whole())
    assert all(record.ok for record in run.records) and sent == [9, 3]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.lists(st.floats(1, 1000), min_size=1, max_size=4))
def test_the_router_never_leaves_a_request_where_it_would_end_later(sizes: list[int], speeds: list[float]) -> None:
    router, outstanding = Router(speeds), [0] * len(speeds)
    for size in sizes:
        chosen = router.take(size)
        ends_s = [(before + size) / speed for before, speed in zip(outstanding, speeds, strict=True)]
        assert ends_s[chosen] == min(ends_s)
        outstanding[chosen] += size
        if size % 3 == 0:
            router.done(chosen, size)
            outstanding[chosen] -= size
