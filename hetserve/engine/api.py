"""What the HTTP server knows of an engine, and nothing else of it: the protocol both sides are written and tested against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from hetserve.control.messages import Sampling
from hetserve.engine.wire import TokenLogprobs
from hetserve.spec.model import ModelSpec

__all__ = ["EngineApi", "Output", "PoolState", "Sink", "TokenLogprobs"]


@dataclass(frozen=True)
class Output:
    """New tokens of one choice (at most one `Output` per choice and step), or its end, or both.

    `choice` is -1 when the request as a whole was rejected: `finish` is then "error" (it can never be served) or "retry" (not now), and no other
    output of this request follows.
    """

    request: int
    choice: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None  # one per token, if asked for
    finish: str | None  # None while it runs; "stop", "length", "abort", "error"; "retry" only with choice -1
    why: str = ""  # says more about "error" and "retry"


@dataclass(frozen=True)
class PoolState:
    """One device's part of one stage, as it is now."""

    device: str
    group: int
    role: str  # of the group: "mixed", "prefill" or "decode"
    layers: tuple[int, int]  # [first, last)
    primary: bool  # it holds the stage's weights; otherwise KV and attention only
    pages: int
    pages_free: int
    cpu_s: float | None  # CPU time of the device's worker so far; None where it cannot be seen
    lost: bool = False  # the worker is gone


Sink: TypeAlias = Callable[[Output], None]


class EngineApi(Protocol):
    """A running engine. Everything but `start` and `close` returns at once."""

    spec: ModelSpec
    max_model_len: int  # tokens, prompt and answer together

    async def start(self) -> None:
        """Starts workers and loads the model; from now on sinks are called in this event loop's thread."""
        ...

    async def close(self, drain: bool = True) -> None:
        """Stops the engine; with `drain`, requests that run are finished first. Open requests otherwise end with finish="error"."""
        ...

    def submit(
        self, prompt: list[int], max_tokens: int, n: int, stop_token_ids: tuple[int, ...], min_tokens: int, sampling: Sampling, sink: Sink
    ) -> int:
        """Hands in one request and returns its id. Never raises for what a client sent: a rejection arrives at `sink` as an output of choice -1."""
        ...

    def cancel(self, request: int) -> None:
        """The client is gone: frees what the request holds; its sink is not called again. Unknown or finished requests are ignored."""
        ...

    def stop(self, request: int, choice: int, at_token: int) -> None:
        """A stop string ended the choice after `at_token` generated tokens. Outputs already under way may still arrive."""
        ...

    def health(self) -> tuple[bool, str]:
        """(serving, why not)."""
        ...

    def stats(self) -> dict[str, float]:
        """Counts for /metrics: running, waiting, kv_usage (0 to 1), preemptions (total), and whatever else the engine counts."""
        ...

    def pools(self) -> list[PoolState]:
        """Every device's part of every stage: placement, cache and load."""
        ...
