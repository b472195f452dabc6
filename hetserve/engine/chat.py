"""Turns a conversation into a prompt by the model's own chat template, in a child process that is killed when its time is up."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hetserve.errors import ModelError, UsageError

START_S = 20.0  # Python and jinja starting on a busy machine; not the template's time
MOST_OUTPUT_BYTES = 64 << 20


class ChatTemplate:
    """One chat template. Safe to use from several threads; conversations are rendered one after another.

    Args:
        source: jinja source, untrusted.
        tokens: what the template may name: bos_token, eos_token, ...
        limit_s: how long one rendering may take.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], limit_s: float = 2.0) -> None:
        self._source, self._tokens, self._limit_s = source, dict(tokens), limit_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that asks for the next assistant message.

        Raises:
            UsageError: the template refuses this conversation.
            ModelError: the template is faulty, or took too long or too much memory.
        """
        context = {**self._tokens, "messages": list(messages), "add_generation_prompt": True, "tools": None, "documents": None}
        with self._lock:
            try:
                answer = self._ask(json.dumps(context).encode() + b"\n")
            except (OSError, EOFError, ValueError):
                self._kill()
                raise ModelError("The model's chat template ended its process.", "Use /v1/completions with a prompt of your own.") from None
        if "text" in answer:
            return str(answer["text"])
        if answer["refused"]:
            raise UsageError(f"The model's chat template refuses these messages: {answer['error']}.")
        raise ModelError(f"The model's chat template failed: {answer['error']}.", "Use /v1/completions with a prompt of your own.")

    def close(self) -> None:
        with self._lock:
            self._kill()

    def _ask(self, line: bytes) -> dict[str, Any]:
        child = self._running()
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(line)
        child.stdin.flush()
        reply: dict[str, Any] = json.loads(self._read_line(child.stdout.fileno(), self._limit_s))
        return reply

    def _running(self) -> subprocess.Popen[bytes]:
        """The child, started and ready."""
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-m", "hetserve.engine.chat_child", str(self._limit_s)]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._child = child
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps({"template": self._source}).encode() + b"\n")
            child.stdin.flush()
            self._read_line(child.stdout.fileno(), START_S)
        return self._child

    def _read_line(self, fd: int, limit_s: float) -> bytes:
        """One line of the child's, or the child killed and ModelError."""
        end_s = time.monotonic() + limit_s
        pieces: list[bytes] = []
        while not pieces or not pieces[-1].endswith(b"\n"):
            left_s = end_s - time.monotonic()
            ready = left_s > 0 and select.select([fd], [], [], left_s)[0]
            if not ready or sum(map(len, pieces)) > MOST_OUTPUT_BYTES:
                self._kill()
                raise ModelError(f"The model's chat template took more than {limit_s:g} s or {MOST_OUTPUT_BYTES >> 20} MiB and was stopped.")
            pieces.append(os.read(fd, 1 << 20))
            if not pieces[-1]:
                raise EOFError
        return b"".join(pieces)

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None
