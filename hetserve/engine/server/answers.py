"""How answers look on the wire: OpenAI's JSON for completions and chats, whole and streamed. Pieces in, bytes out; one short concatenation a token.

Extras as vLLM has them: `stop_reason`, `token_ids` and `prompt_token_ids`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from hetserve.engine.api import TokenLogprobs
from hetserve.engine.server.choice import Piece

DONE = b"data: [DONE]\n\n"
LOWEST = -9999.0  # stands for minus infinity, which JSON cannot say; vLLM's value

encode = msgspec.json.Encoder().encode
Name = Callable[[int], str]


@dataclass(frozen=True)
class Envelope:
    """What every object of one answer repeats, and what was asked for."""

    id: str
    created: int  # Unix time, s
    model: str
    name: Name  # a token as a word, for log-probabilities
    return_token_ids: bool


@dataclass
class Whole:
    """One choice of an answer that is not streamed, collected."""

    index: int
    prompt: Sequence[int]
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish: str | None = None
    stop_reason: str | int | None = None

    def add(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.tokens += piece.tokens
        if piece.logprobs is not None:
            self.logprobs = (self.logprobs or []) + list(piece.logprobs)
        self.finish, self.stop_reason = piece.finish, piece.stop_reason


class Answer(Protocol):
    """One answer's form. Chunks are complete SSE events."""

    def first(self, index: int, prompt: Sequence[int]) -> bytes:
        """What precedes a choice's first chunk; empty where nothing does."""
        ...

    def chunk(self, index: int, piece: Piece, prompt: Sequence[int] | None, usage: dict[str, int] | None) -> bytes:
        """One piece. `prompt` only with a choice's first."""
        ...

    def usage(self, usage: dict[str, int]) -> bytes: ...

    def whole(self, choices: Sequence[Whole], usage: dict[str, int]) -> bytes: ...


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + completion_tokens, "completion_tokens": completion_tokens}


class _Form:
    """What completions and chats share: the head of every object, built once."""

    kind = ""
    chunk_kind = ""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._head = b"data: " + self._opening(self.chunk_kind) + b',"choices":['

    def usage(self, usage: dict[str, int]) -> bytes:
        return self._head + b'],"usage":' + encode(usage) + b"}\n\n"

    def _opening(self, kind: str) -> bytes:
        envelope = self._envelope
        return encode({"id": envelope.id, "object": kind, "created": envelope.created, "model": envelope.model})[:-1]

    def _tail(self, piece: Piece, usage: dict[str, int] | None) -> bytes:
        """The end of a chunk, from `finish_reason` on."""
        if piece.finish is None and usage is None and not self._envelope.return_token_ids:
            return b',"finish_reason":null,"stop_reason":null}]}\n\n'
        parts = [b',"finish_reason":', encode(piece.finish), b',"stop_reason":', encode(piece.stop_reason)]
        if self._envelope.return_token_ids:
            parts += [b',"token_ids":', encode(piece.tokens)]
        parts.append(b"}]" if usage is None else b'}],"usage":' + encode(usage))
        return b"".join(parts) + b"}\n\n"

    def _ids(self, prompt: Sequence[int] | None) -> bytes:
        if prompt is None or not self._envelope.return_token_ids:
            return b""
        return b',"prompt_token_ids":' + encode(prompt)


class CompletionAnswer(_Form):
    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._offsets: dict[int, int] = {}  # choice -> characters its log-probabilities have covered

    def first(self, index: int, prompt: Sequence[int]) -> bytes:
        return b""

    def chunk(self, index: int, piece: Piece, prompt: Sequence[int] | None, usage: dict[str, int] | None) -> bytes:
        logprobs = b"null" if piece.logprobs is None else encode(self._logprobs(index, piece.logprobs))
        start = self._head + b'{"index":%d,"text":' % index
        return start + encode(piece.text) + self._ids(prompt) + b',"logprobs":' + logprobs + self._tail(piece, usage)

    def whole(self, choices: Sequence[Whole], usage: dict[str, int]) -> bytes:
        return self._opening(self.kind) + b',"choices":' + encode([self._choice(one) for one in choices]) + b',"usage":' + encode(usage) + b"}"

    def _choice(self, one: Whole) -> dict[str, Any]:
        logprobs = None if one.logprobs is None else self._logprobs(one.index, one.logprobs)
        choice = {"index": one.index, "text": "".join(one.text), "logprobs": logprobs, "finish_reason": one.finish, "stop_reason": one.stop_reason}
        if self._envelope.return_token_ids:
            choice |= {"token_ids": one.tokens, "prompt_token_ids": one.prompt}
        return choice

    def _logprobs(self, index: int, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        name = self._envelope.name
        offset = self._offsets.get(index, 0)
        tokens, offsets = [], []
        for one in found:
            tokens.append(name(one.token))
            offsets.append(offset)
            offset += len(tokens[-1])
        self._offsets[index] = offset
        top = [{name(token): _finite(value) for token, value in (*one.top, (one.token, one.logprob))} for one in found]
        values = [_finite(one.logprob) for one in found]
        return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": top}


class ChatAnswer(_Form):
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def first(self, index: int, prompt: Sequence[int]) -> bytes:
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]' % index
        return self._head + role + self._ids(prompt) + b"}\n\n"

    def chunk(self, index: int, piece: Piece, prompt: Sequence[int] | None, usage: dict[str, int] | None) -> bytes:
        logprobs = b"null" if piece.logprobs is None else encode(self._logprobs(piece.logprobs))
        start = self._head + b'{"index":%d,"delta":{"content":' % index
        return start + encode(piece.text) + b'},"logprobs":' + logprobs + self._tail(piece, usage)

    def whole(self, choices: Sequence[Whole], usage: dict[str, int]) -> bytes:
        listed = encode([self._choice(one) for one in choices])
        return self._opening(self.kind) + b',"choices":' + listed + b',"usage":' + encode(usage) + self._ids(choices[0].prompt) + b"}"

    def _choice(self, one: Whole) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(one.text)}
        logprobs = None if one.logprobs is None else self._logprobs(one.logprobs)
        choice = {"index": one.index, "message": message, "logprobs": logprobs, "finish_reason": one.finish, "stop_reason": one.stop_reason}
        return choice | ({"token_ids": one.tokens} if self._envelope.return_token_ids else {})

    def _logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        listed = [self._entry(one.token, one.logprob) | {"top_logprobs": [self._entry(token, value) for token, value in one.top]} for one in found]
        return {"content": listed}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        word = self._envelope.name(token)
        return {"token": word, "logprob": _finite(logprob), "bytes": list(word.encode("utf-8", "replace"))}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST
