"""A streamed completion as it came off the wire, turned into a request's record. Done after the run: no JSON is parsed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hetserve.metrics import RequestRecord

Timed = tuple[float, bytes]  # seconds after the request was sent, and what arrived


@dataclass
class _Answer:
    """A stream's content so far."""

    chunk_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    finished: bool = False


def events(parts: Sequence[Timed]) -> Iterator[tuple[float, str]]:
    """(when its last byte arrived, data) of each server-sent event; comments are skipped, `data:` lines joined."""
    rest = b""
    for at_s, part in parts:
        rest = (rest + part).replace(b"\r\n", b"\n")
        *whole, rest = rest.split(b"\n\n")
        for event in whole:
            yield from _data(at_s, event)
    if parts and rest.strip():
        yield from _data(parts[-1][0], rest)


def record(parts: Sequence[Timed], prompt_tokens: int, start_s: float, queue_s: float, error: str = "") -> RequestRecord:
    """The record of one request whose stream was read to its end, or broke with `error`.

    A stream counts as ok when it brought output, ended with a finish reason or [DONE], and no error event came.
    """
    answer = _Answer(error=error)
    for at_s, data in events(parts):
        _take(answer, at_s, data)
    if not answer.error and not answer.chunk_s:
        answer.error = "the stream brought no output"
    if not answer.error and not answer.finished:
        answer.error = "the stream ended before the answer did"
    output_tokens = answer.usage.get("completion_tokens") or len(answer.token_ids) or len(answer.chunk_s)
    return RequestRecord(
        ok=not answer.error,
        prompt_tokens=answer.usage.get("prompt_tokens") or prompt_tokens,
        output_tokens=output_tokens,
        start_s=start_s,
        queue_s=queue_s,
        chunk_s=tuple(answer.chunk_s),
        chunk_tokens=tuple(answer.chunk_tokens),
        token_ids=tuple(answer.token_ids),
        text="".join(answer.texts),
        error=answer.error,
    )


def _data(at_s: float, event: bytes) -> Iterator[tuple[float, str]]:
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    if lines:
        yield at_s, b"\n".join(lines).decode(errors="replace")


def _take(answer: _Answer, at_s: float, data: str) -> None:
    if data == "[DONE]":
        answer.finished = True
        return
    try:
        said = json.loads(data)
    except ValueError:
        answer.error = answer.error or f"the stream has an event that is not JSON: {data[:100]}"
        return
    if "error" in said:
        answer.error = answer.error or f"the stream reports an error: {said['error']}"
        return
    answer.usage = said.get("usage") or answer.usage
    if not said.get("choices"):
        return
    choice = said["choices"][0]
    tokens = choice.get("token_ids") or []
    answer.chunk_s.append(at_s)
    answer.chunk_tokens.append(len(tokens) or 1)
    answer.token_ids.extend(tokens)
    answer.texts.append(choice.get("text") or "")
    answer.finished = answer.finished or choice.get("finish_reason") is not None
