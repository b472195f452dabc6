"""One HTTP request and its choices in the engine: submits, turns outputs into pieces, ends by itself, by failure or because the client left.

All methods run in the event loop's thread. A fault of ours ends the request it happened in, never another's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hetserve.engine.api import EngineApi, Output
from hetserve.engine.server.answers import DONE, Answer, Whole, usage_of
from hetserve.engine.server.choice import Choice, Piece
from hetserve.engine.server.errors import SERVER, ApiError, bad, engine_failed, overloaded, unavailable
from hetserve.engine.server.limits import Limits
from hetserve.engine.server.metrics import Metrics
from hetserve.engine.server.protocol import Pipe
from hetserve.engine.server.requests import Job
from hetserve.engine.server.text import Text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What all requests share."""

    engine: EngineApi
    text: Text
    limits: Limits
    metrics: Metrics
    exchanges: set[Exchange]  # those under way


class Exchange:
    """Subclasses say what becomes of a piece (`deliver`), of the end (`ended`) and of a failure (`failed`).

    Args:
        around: what all requests share.
        job: what the client asked for.
        prompts: token ids, each with room for an answer; choice c of prompt p has index p * n + c.
        answer: the form of the answer.
        pipe: the client's connection.
    """

    def __init__(self, around: Surroundings, job: Job, prompts: Sequence[list[int]], answer: Answer, pipe: Pipe) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()  # there is something to answer with: a piece, or `error`
        self.done: asyncio.Future[None] = loop.create_future()  # the last piece is delivered, or `error` set, or the client gone
        self.error: ApiError | None = None
        self.over = False
        self._around, self._job, self._prompts, self._answer, self._pipe = around, job, prompts, answer, pipe
        eos, skip = around.engine.spec.eos_token_ids, job.skip_special_tokens
        self._choices = [Choice(job, around.text.stream(prompt, skip), eos) for prompt in prompts for _ in range(job.n)]
        self._clocks = [around.metrics.clock() for _ in self._choices]
        self._open = len(self._choices)
        self._requests: list[int] = []

    def submit(self) -> None:
        """Hands all prompts to the engine."""
        self._around.exchanges.add(self)
        self._pipe.on_lost = self.leave
        job, engine = self._job, self._around.engine
        for place, prompt in enumerate(self._prompts):
            max_tokens = engine.max_model_len - len(prompt) if job.max_tokens is None else job.max_tokens
            sink = partial(self._hear, place * job.n)
            request = engine.submit(prompt, max_tokens, job.n, job.stop_token_ids, job.min_tokens, job.sampling, sink)
            self._requests.append(request)
            self._around.metrics.submitted(len(prompt), job.n, max_tokens)

    def leave(self) -> None:
        """The client is gone, or nobody waits any more: frees everything. Harmless when it is over."""
        if not self.over:
            self._around.metrics.left(self._open)
            self._finish()

    def fail(self, error: ApiError) -> None:
        """Ends with an error, if it is not over."""
        if not self.over:
            self.error = error
            self._around.metrics.failed(self._open)
            self.failed(error)
            self._finish()

    def usage(self) -> dict[str, int]:
        return usage_of(sum(map(len, self._prompts)), sum(choice.count for choice in self._choices))

    def deliver(self, index: int, piece: Piece) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        """All choices are complete."""

    def failed(self, error: ApiError) -> None:
        """`error` has ended it."""

    def _hear(self, base: int, output: Output) -> None:
        """The engine's sink of the prompt whose first choice has index `base`."""
        if self.over:
            return
        try:
            self._take(base, output)
        except Exception:
            log.exception("fault while serving a request")
            self.fail(ApiError(500, "The server failed while it wrote this answer.", code="internal_error", kind=SERVER))

    def _take(self, base: int, output: Output) -> None:
        if output.choice < 0 or output.finish not in (None, "stop", "length"):
            self.fail(self._verdict(output))
            return
        index = base + output.choice
        choice = self._choices[index]
        if choice.done:
            return  # a stop string ended it, and the engine had gone on meanwhile
        piece = choice.feed(output)
        if choice.stopped_here:
            self._around.engine.stop(output.request, output.choice, choice.count)
        self._clocks[index].tokens(len(piece.tokens))
        self.deliver(index, piece)
        if choice.done and not self.over:
            self._clocks[index].finished(piece.finish or "", choice.count)
            self._open -= 1
            if not self._open:
                self.ended()
                self._finish()
        if not self.begun.done():
            self.begun.set_result(None)

    def _verdict(self, output: Output) -> ApiError:
        """What a rejection or failure of the engine means for the client."""
        serving, why = self._around.engine.health()
        if output.finish == "retry":
            return overloaded(output.why, self._around.limits.retry_after_s)
        if not serving:
            return unavailable(output.why or why)
        if output.choice < 0 and not self.begun.done():
            return bad(f"The engine cannot serve this request: {output.why}.", code="cannot_be_served")
        return engine_failed(output.why)

    def _finish(self) -> None:
        self.over = True
        self._pipe.on_lost = None
        self._around.exchanges.discard(self)
        if self._open:
            for request in self._requests:
                self._around.engine.cancel(request)
        for future in (self.begun, self.done):
            if not future.done():
                future.set_result(None)


class Gather(Exchange):
    """An answer sent whole."""

    def __init__(self, around: Surroundings, job: Job, prompts: Sequence[list[int]], answer: Answer, pipe: Pipe) -> None:
        super().__init__(around, job, prompts, answer, pipe)
        self._whole = [Whole(index, prompts[index // job.n]) for index in range(len(prompts) * job.n)]

    def deliver(self, index: int, piece: Piece) -> None:
        self._whole[index].add(piece)

    def body(self) -> bytes:
        """The answer, once `done`."""
        return self._answer.whole(self._whole, self.usage())


class Stream(Exchange):
    """An answer sent as server-sent events, one write per choice and step."""

    def __init__(self, around: Surroundings, job: Job, prompts: Sequence[list[int]], answer: Answer, pipe: Pipe) -> None:
        super().__init__(around, job, prompts, answer, pipe)
        self._early: list[bytes] | None = []  # until the response has been started
        self._started: set[int] = set()

    def open(self) -> None:
        """The response has been started: from here on chunks go straight to the connection."""
        early, self._early = self._early, None
        if early:
            self._write(b"".join(early))

    def deliver(self, index: int, piece: Piece) -> None:
        usage = self._running_usage(index) if self._job.continuous_usage else None
        if index in self._started:
            self._write(self._answer.chunk(index, piece, None, usage))
            return
        self._started.add(index)
        prompt = self._prompts[index // self._job.n]
        self._write(self._answer.first(index, prompt) + self._answer.chunk(index, piece, prompt, usage))

    def ended(self) -> None:
        self._write(self._answer.usage(self.usage()) + DONE if self._job.include_usage else DONE)

    def failed(self, error: ApiError) -> None:
        if self._early is None:  # before that, the error is the response
            self._write(b"data: " + error.body() + b"\n\n" + DONE)

    def _running_usage(self, index: int) -> dict[str, int]:
        return usage_of(len(self._prompts[index // self._job.n]), self._choices[index].count)

    def _write(self, data: bytes) -> None:
        if self._early is not None:
            self._early.append(data)
            return
        self._pipe.write(data)
        if self._pipe.unsent_bytes() > self._around.limits.stream_buffer_bytes:
            self._around.metrics.cut()
            self._pipe.cut()
            self.leave()


class StreamResponse:
    """The ASGI response of a stream that has begun."""

    def __init__(self, stream: Stream, pipe: Pipe, send_s: float) -> None:
        self._stream, self._pipe, self._send_s = stream, pipe, send_s

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # ASGI
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            self._stream.open()
            await self._stream.done
            async with asyncio.timeout(self._send_s):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            self._pipe.cut()
        finally:
            self._stream.leave()


def now_s() -> int:
    return int(time.time())
