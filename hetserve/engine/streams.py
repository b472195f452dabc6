"""Carries tokens and ends from the control thread to the sinks of their requests, in the event loop's thread, one hand-over per event."""

from __future__ import annotations

import asyncio

from hetserve.control.messages import Finish, Reject, Tokens
from hetserve.engine.api import Output, Sink
from hetserve.engine.wire import TokenLogprobs


class Streams:
    """The executor's listener. `open`, `forget` and `fail_all` belong to the event loop's thread, the rest to the control thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sinks: dict[int, Sink] = {}
        self._choices: dict[int, int] = {}  # request -> choices not yet finished
        self._pending: dict[tuple[int, int], Output] = {}

    @property
    def open_requests(self) -> int:
        return len(self._sinks)

    def open(self, request: int, choices: int, sink: Sink) -> None:
        """Before the request is posted: where its outputs go."""
        self._sinks[request] = sink
        self._choices[request] = choices

    def forget(self, request: int) -> None:
        """Its sink is not called again."""
        self._sinks.pop(request, None)
        self._choices.pop(request, None)

    def tokens(self, command: Tokens, logprobs: tuple[TokenLogprobs | None, ...]) -> None:
        for request, choice, token, row in zip(command.requests, command.choices, command.tokens, command.rows, strict=True):
            found = logprobs[row] if logprobs else None
            self._pending[request, choice] = Output(request, choice, (token,), None if found is None else (found,), None)

    def finish(self, command: Finish) -> None:
        key = (command.request, command.choice)
        last = self._pending.get(key)
        tokens, logprobs = (last.tokens, last.logprobs) if last else ((), None)
        self._pending[key] = Output(*key, tokens, logprobs, command.reason, command.why)

    def reject(self, command: Reject) -> None:
        reason = "retry" if command.retry else "error"
        self._pending[command.request, -1] = Output(command.request, -1, (), None, reason, command.why)

    def flush(self) -> None:
        """Sends what one event caused across to the event loop."""
        if self._pending:
            outputs, self._pending = list(self._pending.values()), {}
            self._loop.call_soon_threadsafe(self._deliver, outputs)

    def fail_all_soon(self, why: str) -> None:
        self._loop.call_soon_threadsafe(self.fail_all, why)

    def fail_all(self, why: str) -> None:
        """Ends every request still open with an error."""
        self._deliver([Output(request, -1, (), None, "error", why) for request in list(self._sinks)])

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            sink = self._sinks.get(output.request)
            if sink is None:
                continue
            if output.finish is not None:
                self._ended(output)
            sink(output)

    def _ended(self, output: Output) -> None:
        self._choices[output.request] -= 1
        if output.choice < 0 or self._choices[output.request] == 0:
            self.forget(output.request)
