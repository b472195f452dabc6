"""Text of a growing answer, piece by piece: what is given out never changes, and the pieces joined are the whole answer's text.

A character whose bytes are not all there is kept back.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

PROMPT_TAIL = 6  # tokens of the prompt that decide how the first token is written (a leading space, say)
MOST_HELD = 16  # tokens kept back at most: longer than any character, in bytes
REPLACEMENT = "\ufffd"


class ByteStream:
    """For byte-level tokenizers: each token is some bytes, so only UTF-8 stands between tokens and text.

    Args:
        token_bytes: the bytes of a token id; b"" for those to be left out.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, tokens: Sequence[int]) -> str:
        """The text these tokens add, as far as it is certain."""
        return self._decoder.decode(b"".join(map(self._token_bytes, tokens)))

    def finish(self) -> str:
        """What was kept back."""
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """For any other tokenizer: decodes the last few tokens with and without the new ones, and gives out the difference.

    Args:
        decode: text of token ids.
        prompt: the prompt's token ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-PROMPT_TAIL:])
        self._given = len(self._tokens)  # tokens whose text has been given out; those before them are context
        self._context_text = decode(self._tokens)

    def add(self, tokens: Sequence[int]) -> str:
        """The text these tokens add, as far as it is certain."""
        return "".join(map(self._add_one, tokens))

    def finish(self) -> str:
        """What was kept back."""
        return self._decode(self._tokens)[len(self._context_text) :]

    def _add_one(self, token: int) -> str:
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._given < MOST_HELD:
            return ""
        piece = text[len(self._context_text) :]
        if piece:
            self._tokens = self._tokens[self._given :]
            self._given = len(self._tokens)
            self._context_text = self._decode(self._tokens)
        return piece
