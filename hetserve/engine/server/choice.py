"""One choice of one prompt: engine outputs in, pieces of text out, until a stop token, a stop string or the length ends it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.engine.api import Output, TokenLogprobs
from hetserve.engine.server.requests import Job
from hetserve.engine.server.stops import StopFinder
from hetserve.engine.server.text import TextStream


@dataclass(slots=True)
class Piece:
    """What one engine output means for the client."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None  # one per token
    finish: str | None = None  # "stop", "length"
    stop_reason: str | int | None = None  # the stop string or token id that ended it; None for the model's own end of text


class Choice:
    """Follows one choice.

    Args:
        job: what was asked for.
        text: turns its tokens into text.
        eos: token ids that end text without being worth a `stop_reason`.
    """

    def __init__(self, job: Job, text: TextStream, eos: tuple[int, ...]) -> None:
        self.count = 0  # tokens generated, as reported to the client
        self.done = False
        self.stopped_here = False  # a stop string ended it, which the engine does not know yet
        self._text = text
        self._eos = eos
        self._min_tokens = job.min_tokens
        self._include_stop = job.include_stop
        self._finder = StopFinder(job.stops, job.include_stop) if job.stops else None

    def feed(self, output: Output) -> Piece:
        """Takes tokens, an end, or both. Not to be called once `done`; `output.finish` is None, "stop" or "length"."""
        if self._finder is None:
            self.count += len(output.tokens)
            text = self._text.add(self._visible(output))
        else:
            text, found, used = self._search(output, self._finder)
            if found is not None:
                self.done = True
                self.stopped_here = output.finish is None or used < len(output.tokens)
                return Piece(text, output.tokens[:used], _first(output.logprobs, used), "stop", found)
        if output.finish is None:
            return Piece(text, output.tokens, output.logprobs)
        return self._end(output, text)

    def _visible(self, output: Output) -> tuple[int, ...]:
        """The tokens whose text is shown: a stop token's is not."""
        if output.finish == "stop" and not self._include_stop:
            return output.tokens[:-1]
        return output.tokens

    def _search(self, output: Output, finder: StopFinder) -> tuple[str, str | None, int]:
        """(text to show, the stop string found, tokens used up to there). Strings count only after `min_tokens` tokens."""
        shown = ""
        for used, token in enumerate(self._visible(output), 1):
            self.count += 1
            text = self._text.add((token,))
            if self.count <= self._min_tokens:
                shown += finder.skip(text)
                continue
            now, found = finder.push(text)
            shown += now
            if found is not None:
                return shown, found, used
        self.count += len(output.tokens) - len(self._visible(output))
        return shown, None, len(output.tokens)

    def _end(self, output: Output, text: str) -> Piece:
        self.done = True
        rest = self._text.finish()
        found = None
        if self._finder is not None:
            now, found = self._finder.push(rest)
            rest = now if found is not None else now + self._finder.flush()
        if found is not None:
            return Piece(text + rest, output.tokens, output.logprobs, "stop", found)
        last = output.tokens[-1] if output.finish == "stop" and output.tokens else None
        reason = None if last is None or last in self._eos else last
        return Piece(text + rest, output.tokens, output.logprobs, output.finish, reason)


def _first(logprobs: tuple[TokenLogprobs, ...] | None, n: int) -> tuple[TokenLogprobs, ...] | None:
    return None if logprobs is None else logprobs[:n]
