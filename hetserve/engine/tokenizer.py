"""A model folder's tokenizer: text to token ids and back, whole or in pieces, and its chat template.

Loaded by transformers from local files only, never running code of the folder. Safe to use from several threads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from hetserve.engine.chat import ChatTemplate
from hetserve.engine.detokenizer import ByteStream, WindowStream
from hetserve.errors import ModelError, UnsupportedError, UsageError

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class Tokenizer:
    """See `load_tokenizer`.

    Args:
        backend: the tokenizer itself; its padding and truncation are switched off.
        tokens: the special tokens' texts by role (bos_token, eos_token, ...).
        template: the chat template, None if the model has none.
        chat_limit_s: how long rendering one conversation may take.
    """

    def __init__(self, backend: Backend, tokens: Mapping[str, str], template: str | None, chat_limit_s: float = 2.0) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._chat = ChatTemplate(template, tokens, chat_limit_s) if template is not None else None
        special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self._token_bytes = {skip: cache(partial(_bytes_of, backend, special if skip else frozenset(), _byte_values())) for skip in (False, True)}

    @property
    def vocab(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with the special tokens the model's own tokenizer puts around a prompt. Half surrogates become U+FFFD."""
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not text.isascii() else text
        ids: list[int] = self._backend.encode(clean, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids past the vocabulary are nothing."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def stream(self, prompt: Sequence[int], skip_special_tokens: bool = True) -> ByteStream | WindowStream:
        """The text of an answer to `prompt`, as it grows."""
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return ByteStream(self._token_bytes[skip_special_tokens])
        return WindowStream(lambda tokens: self.decode(tokens, skip_special_tokens), prompt)

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt for the next assistant message, special tokens written out: encode it with add_special_tokens=False.

        Raises:
            UsageError: the model has no chat template, or it refuses these messages.
            ModelError: the template is faulty or took too long.
        """
        if self._chat is None:
            raise UsageError("This model has no chat template.", "Use /v1/completions, or add a chat_template to its tokenizer_config.json.")
        return self._chat.render(messages)

    def close(self) -> None:
        if self._chat is not None:
            self._chat.close()


def load_tokenizer(folder: str | Path, chat_limit_s: float = 2.0) -> Tokenizer | None:
    """The tokenizer of a model folder; None if it has none (prompts are then token ids only).

    Raises:
        ModelError: its files are damaged.
        UnsupportedError: it needs code of its own, or has no fast (Rust) version.
    """
    if not any(os.path.isfile(os.path.join(folder, name)) for name in FILES):
        return None
    from transformers import AutoTokenizer  # late: a second of imports

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True, use_fast=True)
    except Exception as error:  # whatever transformers and the Rust library raise on damaged files; there is no common class
        first_line = str(error).strip().split("\n")[0][:300]
        if "trust_remote_code" in str(error):
            raise UnsupportedError(f"The tokenizer in {folder} needs code from the folder to be run, which is never done.") from None
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {first_line}", "Is a file damaged, or missing?") from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise UnsupportedError(f"The tokenizer in {folder} ({type(loaded).__name__}) has no fast version.", "Save the model with a tokenizer.json.")
    tokens = {role: str(token) for role, token in loaded.special_tokens_map.items() if isinstance(token, str)}
    return Tokenizer(backend, tokens, _template(loaded.chat_template), chat_limit_s)


def _template(found: Any) -> str | None:
    """Some folders hold several templates by name; the one called default counts."""
    return found.get("default") if isinstance(found, dict) else found


def _byte_values() -> dict[str, int]:
    """The byte each character of a byte-level token stands for: printable Latin-1 for itself, the others from U+0100 on (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_of(backend: Backend, skipped: frozenset[int] | set[int], values: Mapping[str, int], token: int) -> bytes:
    text = None if token in skipped else backend.id_to_token(token)
    if text is None:
        return b""
    return bytes(values[char] for char in text) if all(char in values for char in text) else text.encode()
