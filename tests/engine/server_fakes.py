"""What the server tests share: an engine that answers from a script, a tokenizer one can read, and a server on a socket of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvloop

from hetserve.control.messages import Sampling
from hetserve.engine.api import Output, PoolState, Sink, TokenLogprobs
from hetserve.engine.server.app import Service, create_app
from hetserve.engine.server.limits import Limits
from hetserve.engine.server.run import HttpServer, bind, url_of
from hetserve.errors import UsageError
from hetserve.spec.model import ModelSpec

EOS = 300
VOCAB = 320
SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 4096}
SPEC = ModelSpec.from_hf(
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "eos_token_id": EOS, **SHAPE}
)
# Tokens 0 to 255 are bytes; these are longer, so that stop strings meet token borders everywhere.
SMILE = "😀".encode()
WORDS = {256: b"ab", 257: b"abc", 258: b" the", 259: b"\n\n", 260: "é€".encode(), 261: SMILE[:2], 262: SMILE[2:], 263: b"</s", EOS: b""}


class FakeStream:
    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = b""

    def add(self, tokens: Sequence[int]) -> str:
        self._bytes += b"".join(map(self._tokenizer.bytes_of, tokens))
        for kept in range(min(4, len(self._bytes)) + 1):
            whole = self._bytes[: len(self._bytes) - kept]
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                continue
            self._bytes = self._bytes[len(whole) :]
            return text
        text = self._bytes.decode(errors="replace")
        self._bytes = b""
        return text

    def finish(self) -> str:
        text, self._bytes = self._bytes.decode(errors="replace"), b""
        return text


class FakeTokenizer:
    def bytes_of(self, token: int) -> bytes:
        return WORDS[token] if token in WORDS else bytes([token]) if token < 256 else b""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def stream(self, prompt: Sequence[int], skip_special_tokens: bool = True) -> FakeStream:
        return FakeStream(self)

    def render_chat(self, messages: Sequence[dict]) -> str:
        if messages[0]["role"] not in ("system", "user", "assistant"):
            raise UsageError("The model's chat template refuses these messages: no such role.")
        return "".join(f"<{one['role']}>{one['content']}\n" for one in messages) + "<assistant>"


@dataclass
class Sequence_:
    """One choice under way."""

    request: int
    choice: int
    tokens: Iterator[int]
    max_tokens: int
    stop_ids: tuple[int, ...]
    min_tokens: int
    sampling: Sampling
    sink: Sink
    count: int = 0


def letters(prompt: Sequence[int], choice: int) -> Iterator[int]:
    """The default script: the alphabet, from a letter that depends on the choice, for ever."""
    i = choice
    while True:
        yield 97 + i % 26
        i += 1


@dataclass
class FakeEngine:
    """Steps by itself, one token per running choice and step, as `script(prompt, choice)` says."""

    script: Callable[[Sequence[int], int], Iterator[int]] = letters
    step_s: float = 0.0
    max_model_len: int = 2048
    max_waiting: int = 10_000
    logprob: float = -0.5
    spec: ModelSpec = SPEC
    submitted: list[tuple[list[int], int, int, tuple[int, ...], int, Sampling]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    stopped: list[tuple[int, int, int]] = field(default_factory=list)
    running: list[Sequence_] = field(default_factory=list)
    unhealthy: str = ""
    paused: bool = False
    refuse: str = ""  # every request is refused for this reason
    _wake: asyncio.Event | None = None

    async def start(self) -> None:
        self._wake = asyncio.Event()
        self._task = asyncio.ensure_future(self._steps())

    async def close(self, drain: bool = True) -> None:
        self._task.cancel()

    def submit(self, prompt, max_tokens, n, stop_token_ids, min_tokens, sampling, sink) -> int:
        request = len(self.submitted)
        self.submitted.append((prompt, max_tokens, n, stop_token_ids, min_tokens, sampling))
        loop = asyncio.get_running_loop()
        if self.refuse:
            loop.call_soon(sink, Output(request, -1, (), None, "error", self.refuse))
        elif len(self.running) >= self.max_waiting:
            loop.call_soon(sink, Output(request, -1, (), None, "retry", f"{self.max_waiting} requests are waiting already"))
        else:
            new = [Sequence_(request, c, self.script(prompt, c), max_tokens, stop_token_ids, min_tokens, sampling, sink) for c in range(n)]
            self.running += new
            assert self._wake is not None
            self._wake.set()
        return request

    def cancel(self, request: int) -> None:
        self.cancelled.append(request)
        self.running = [one for one in self.running if one.request != request]

    def stop(self, request: int, choice: int, at_token: int) -> None:
        self.stopped.append((request, choice, at_token))
        ended = [one for one in self.running if (one.request, one.choice) == (request, choice)]
        self.running = [one for one in self.running if one not in ended]
        for one in ended:
            asyncio.get_running_loop().call_soon(one.sink, Output(request, choice, (), None, "stop"))

    def health(self) -> tuple[bool, str]:
        return not self.unhealthy, self.unhealthy

    def stats(self) -> dict[str, float]:
        return {"running": len(self.running), "waiting": 0, "kv_usage": 0.25, "preemptions_total": 3, "steps_total": 7, "model_s": 1.5}

    def pools(self) -> list[PoolState]:
        return [PoolState("fast", 0, "mixed", (0, 4), True, 100, 40, 1.25), PoolState("slow", 0, "mixed", (0, 4), False, 50, 50, None)]

    def fail(self, why: str) -> None:
        """The engine dies."""
        self.unhealthy = why
        failed, self.running = {one.request: one.sink for one in self.running}, []
        for request, sink in failed.items():
            sink(Output(request, -1, (), None, "error", why))

    async def _steps(self) -> None:
        assert self._wake is not None
        while True:
            if not self.running or self.paused:
                self._wake.clear()
                await self._wake.wait()
            for one in list(self.running):
                self._step(one)
            await asyncio.sleep(self.step_s)

    def resume(self) -> None:
        self.paused = False
        assert self._wake is not None
        self._wake.set()

    def _step(self, one: Sequence_) -> None:
        if one not in self.running:
            return
        token = next(one.tokens)
        one.count += 1
        finish = "stop" if token in one.stop_ids and one.count > one.min_tokens else "length" if one.count >= one.max_tokens else None
        if finish:
            self.running.remove(one)
        k = one.sampling.logprobs
        top = tuple(((token + i) % VOCAB, self.logprob - i) for i in range(k))
        logprobs = (TokenLogprobs(token, self.logprob, top),) if k >= 0 else None
        one.sink(Output(one.request, one.choice, (token,), logprobs, finish))


@dataclass
class Running:
    """A server that runs, and its parts."""

    url: str
    port: int
    engine: FakeEngine
    service: Service
    server: HttpServer
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    def call(self, function: Callable[[], object]) -> object:
        """Runs a function in the server's loop."""

        async def inside() -> object:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(10)


@contextmanager
def serving(
    engine: FakeEngine | None = None,
    limits: Limits | None = None,
    api_keys: Sequence[str] = (),
    tokenizer: FakeTokenizer | None = FakeTokenizer(),  # noqa: B008
) -> Iterator[Running]:
    """A server on a free port of 127.0.0.1, in a thread of its own; stopped at once on the way out."""
    engine = engine or FakeEngine()
    bound = bind("127.0.0.1", 0)
    app, service = create_app(engine, tokenizer, limits or Limits(), ["fake"], api_keys)
    up = threading.Event()
    server = HttpServer(app, service, up.set)
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await engine.start()
        await server.serve([bound])
        await engine.close()
        service.close()

    thread = threading.Thread(target=lambda: uvloop.run(main()), daemon=True)
    url, port = url_of(bound), bound.getsockname()[1]
    thread.start()
    assert up.wait(10)
    try:
        yield Running(url, port, engine, service, server, loops[0], thread)
    finally:
        for _ in range(2 if thread.is_alive() else 0):
            server.handle_exit(2, None)
        thread.join(10)
        assert not thread.is_alive()
