"""What the server needs of a tokenizer, and the threads that use it: rendering and encoding long prompts must not hold up the streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from hetserve.engine.server.errors import SERVER, ApiError, bad, unsupported
from hetserve.errors import HetserveError, UsageError

INLINE_CHARS = 1000  # shorter texts are encoded at once (a fraction of a millisecond): a hand-over to a thread costs as much
ENCODERS = 2

T = TypeVar("T")


class TextStream(Protocol):
    """The text of one growing answer."""

    def add(self, tokens: Sequence[int]) -> str:
        """The text these tokens add, as far as it is certain: bytes of a character that is not complete are kept back."""
        ...

    def finish(self) -> str:
        """What was kept back when the answer ends."""
        ...


class TokenizerApi(Protocol):
    """`hetserve.engine.tokenizer`, as far as the server uses it. Safe to use from several threads."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def stream(self, prompt: Sequence[int], skip_special_tokens: bool = True) -> TextStream: ...

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str: ...


class NoText:
    """The stream of a model without a tokenizer: token ids only."""

    def add(self, tokens: Sequence[int]) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Text:
    """The tokenizer, if the model has one, with a pool of threads beside the event loop.

    Args:
        tokenizer: None for a model without one: token ids in, token ids out.
    """

    def __init__(self, tokenizer: TokenizerApi | None) -> None:
        self._tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        self._names: dict[int, str] = {}

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text.

        Raises:
            ApiError: 400, when the model has no tokenizer.
        """
        tokenizer = self._require()
        if len(text) <= INLINE_CHARS:
            return tokenizer.encode(text, add_special_tokens)
        return await self._in_thread(lambda: tokenizer.encode(text, add_special_tokens))

    async def encode_chat(self, messages: Sequence[Mapping[str, Any]], add_special_tokens: bool = False) -> list[int]:
        """The token ids of a conversation, rendered by the model's chat template (which writes its own special tokens).

        Raises:
            ApiError: 400, when the model has no tokenizer or template, or the template refuses the conversation.
        """
        tokenizer = self._require()
        return await self._in_thread(lambda: tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens))

    async def decode(self, tokens: Sequence[int]) -> str:
        tokenizer = self._require()
        return await self._in_thread(lambda: tokenizer.decode(tokens, False))

    def stream(self, prompt: Sequence[int], skip_special_tokens: bool) -> TextStream:
        return self._tokenizer.stream(prompt, skip_special_tokens) if self._tokenizer else NoText()

    def name(self, token: int) -> str:
        """One token as a word, for log-probabilities; `token_id:N` where there is no tokenizer."""
        if token not in self._names:
            self._names[token] = self._tokenizer.decode([token], False) if self._tokenizer else f"token_id:{token}"
        return self._names[token]

    @property
    def present(self) -> bool:
        return self._tokenizer is not None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _require(self) -> TokenizerApi:
        if self._tokenizer is None:
            raise unsupported("prompt", "this model came without a tokenizer: send token ids as 'prompt', and 'return_token_ids': true.")
        return self._tokenizer

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except UsageError as error:  # the model has no chat template, or it refuses this conversation
            raise bad(" ".join(filter(None, (error.message, error.hint))), "messages") from None
        except HetserveError as error:
            raise ApiError(500, " ".join(filter(None, (error.message, error.hint))), "messages", "chat_template_failed", SERVER) from None
