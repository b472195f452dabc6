"""The HTTP endpoints. Each reads its body within the limits, checks it, asks the engine and answers; every error is an OpenAI error object.

Works only on connections of `protocol.connection_class` (see `run`), which lend each request a pipe.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from hetserve.engine.api import EngineApi
from hetserve.engine.server.answers import Answer, ChatAnswer, CompletionAnswer, Envelope
from hetserve.engine.server.errors import SERVER, ApiError, bad, too_large, unavailable
from hetserve.engine.server.exchange import Exchange, Gather, Stream, StreamResponse, Surroundings
from hetserve.engine.server.fields import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, decode
from hetserve.engine.server.limits import Limits
from hetserve.engine.server.metrics import Metrics
from hetserve.engine.server.protocol import PIPE, Pipe
from hetserve.engine.server.requests import Job, check_tokens, conversation_of, job_of, prompts_of
from hetserve.engine.server.text import Text, TokenizerApi

Endpoint = Callable[[Request], Awaitable[Any]]
CLIENT_GONE = 499  # nobody sees it


class Service:
    """The endpoints' state.

    Args:
        engine: started before the first request.
        tokenizer: None for a model without one.
        names: what the model is called in requests; answers carry the first.
        api_keys: who may use the endpoints that do work; empty: everybody.
    """

    def __init__(self, engine: EngineApi, tokenizer: TokenizerApi | None, limits: Limits, names: Sequence[str], api_keys: Sequence[str]) -> None:
        self.engine = engine
        self.text = Text(tokenizer)
        self.limits = limits
        self.names = tuple(names)
        self.metrics = Metrics(names[0], engine.stats, engine.pools)
        self.started_s = int(time.time())
        self._around = Surroundings(engine, self.text, limits, self.metrics, set())
        self._key_hashes = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    def fail_all(self, why: str) -> None:
        """Ends every request under way with an error."""
        for exchange in list(self._around.exchanges):
            exchange.fail(unavailable(why))

    def close(self) -> None:
        """Frees the threads. Not for use afterwards."""
        self.text.close()

    # ------------------------------------------------------------------------------------------------ generating

    async def completions(self, request: Request) -> Any:
        asked = decode(await self._body(request), CompletionRequest)
        self._require_model(asked.model)
        job = job_of(asked, self.engine.spec, self.limits)
        special = asked.add_special_tokens is not False
        prompts = [await self.text.encode(one, special) if isinstance(one, str) else one for one in prompts_of(asked, self.engine.spec, self.limits)]
        return await self._generate(request, job, prompts, CompletionAnswer(self._envelope("cmpl", job)), "prompt")

    async def chat(self, request: Request) -> Any:
        asked = decode(await self._body(request), ChatRequest)
        self._require_model(asked.model)
        job = job_of(asked, self.engine.spec, self.limits)
        prompt = await self.text.encode_chat(conversation_of(asked.messages), bool(asked.add_special_tokens))
        return await self._generate(request, job, [prompt], ChatAnswer(self._envelope("chatcmpl", job)), "messages")

    async def _generate(self, request: Request, job: Job, prompts: list[list[int]], answer: Answer, field: str) -> Any:
        for prompt in prompts:
            self._require_room(prompt, job, field)
        serving, why = self.engine.health()
        if not serving:
            raise unavailable(why)
        pipe: Pipe = request.scope[PIPE]
        if pipe.lost:
            raise ClientDisconnect
        if job.stream:
            return await self._stream(Stream(self._around, job, prompts, answer, pipe), pipe)
        return await self._gather(Gather(self._around, job, prompts, answer, pipe), pipe)

    async def _stream(self, stream: Stream, pipe: Pipe) -> StreamResponse:
        await _until(stream, stream.begun, pipe)
        return StreamResponse(stream, pipe, self.limits.send_s)

    async def _gather(self, gather: Gather, pipe: Pipe) -> Response:
        await _until(gather, gather.done, pipe)
        return _json(gather.body())

    def _require_room(self, prompt: list[int], job: Job, field: str) -> None:
        """Raises ApiError (400) unless prompt and answer fit the model and the limits."""
        most, length = self.engine.max_model_len, len(prompt)
        if not length:
            raise bad("The prompt is empty: it has no tokens.", field)
        if self.limits.prompt_tokens and length > self.limits.prompt_tokens:
            raise bad(f"The prompt has {length} tokens; this server takes at most {self.limits.prompt_tokens}.", field, "prompt_too_long")
        model = f"This model's maximum context length is {most} tokens"
        if length >= most:
            raise bad(f"{model}, prompt and answer together; the prompt has {length}.", field, "context_length_exceeded")
        if job.max_tokens is not None and length + job.max_tokens > most:
            both = f"{length + job.max_tokens} tokens were requested ({length} in the prompt, {job.max_tokens} for the answer)"
            raise bad(f"{model}; {both}.", "max_tokens", "context_length_exceeded")

    def _envelope(self, prefix: str, job: Job) -> Envelope:
        name = self.text.name if not job.tokens_as_ids else "token_id:{}".format
        return Envelope(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), self.names[0], name, job.return_token_ids)

    # ------------------------------------------------------------------------------------------------- about us

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model(name) for name in self.names]})

    async def model(self, request: Request) -> Response:
        self._require_model(request.path_params["name"])
        return _json(self._model(request.path_params["name"]))

    async def health(self, request: Request) -> Response:
        serving, why = self.engine.health()
        if not serving:
            raise unavailable(why)
        return _json({"status": "ok"})

    async def metrics_page(self, request: Request) -> Response:
        return Response(self.metrics.page(), headers={"content-type": self.metrics.content_type})

    async def version(self, request: Request) -> Response:
        return _json({"version": _version()})

    async def tokenize(self, request: Request) -> Response:
        asked = decode(await self._body(request), TokenizeRequest)
        self._require_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise bad("send either 'prompt' or 'messages'.", "prompt")
        if asked.prompt is not None:
            tokens = await self.text.encode(asked.prompt, asked.add_special_tokens is not False)
        else:
            tokens = await self.text.encode_chat(conversation_of(asked.messages), bool(asked.add_special_tokens))
        return _json({"count": len(tokens), "max_model_len": self.engine.max_model_len, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        asked = decode(await self._body(request), DetokenizeRequest)
        self._require_model(asked.model)
        check_tokens(asked.tokens, self.engine.spec.vocab, "tokens")
        return _json({"prompt": await self.text.decode(asked.tokens)})

    def _model(self, name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": self.started_s, "owned_by": "hetserve"}
        return about | {"root": name, "parent": None, "max_model_len": self.engine.max_model_len}

    # ------------------------------------------------------------------------------------------------- requests

    def _require_model(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            raise ApiError(404, f"The model '{name}' does not exist here; this server has '{self.names[0]}'.", "model", "model_not_found")

    async def _body(self, request: Request) -> bytes:
        """The body, read only if it is JSON and not too large.

        Raises:
            ApiError: 413 or 415.
            ClientDisconnect: it never came.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"The body must be sent with 'Content-Type: application/json'; it came as '{kind}'.", code="wrong_content_type")
        limit = self.limits.body_bytes
        if int(request.headers.get("content-length") or 0) > limit:
            raise too_large(limit)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise too_large(limit)
        return bytes(body)

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for holders of a key alone."""

        async def only_with_key(request: Request) -> Any:
            self._require_key(request.headers.get("authorization", ""))
            return await endpoint(request)

        return only_with_key

    def _require_key(self, authorization: str) -> None:
        if not self._key_hashes:
            return
        scheme, _, key = authorization.partition(" ")
        found = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        matches = [hmac.compare_digest(found, known) for known in self._key_hashes]
        if scheme.lower() != "bearer" or not any(matches):
            why = "The API key is missing or wrong: send 'Authorization: Bearer KEY'."
            raise ApiError(401, why, code="invalid_api_key", kind="authentication_error", headers={"WWW-Authenticate": "Bearer"})

    # --------------------------------------------------------------------------------------------------- errors

    async def on_api_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        self.metrics.errors[str(error.status)] += 1
        return Response(error.body(), error.status, error.headers, "application/json")

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """Starlette's own: no such path, wrong method."""
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path} is not served here" if error.status_code in (404, 405) else error.detail
        mine = ApiError(error.status_code, f"{what}.", code="not_found", headers=dict(error.headers or {}))
        return await self.on_api_error(request, mine)

    async def on_fault(self, request: Request, error: Exception) -> Response:
        """A fault of ours; uvicorn logs it."""
        return await self.on_api_error(request, ApiError(500, "The server failed while it handled this request.", code="internal_error", kind=SERVER))

    async def on_disconnect(self, request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)


def create_app(
    engine: EngineApi, tokenizer: TokenizerApi | None, limits: Limits, names: Sequence[str], api_keys: Sequence[str] = ()
) -> tuple[Starlette, Service]:
    """The ASGI application and its state.

    Args: see `Service`.
    """
    service = Service(engine, tokenizer, limits, names, api_keys)
    post, get = ["POST"], ["GET"]
    routes = [
        Route("/v1/completions", service.guarded(service.completions), methods=post),
        Route("/v1/chat/completions", service.guarded(service.chat), methods=post),
        Route("/v1/models", service.guarded(service.models), methods=get),
        Route("/v1/models/{name:path}", service.guarded(service.model), methods=get),
        Route("/tokenize", service.guarded(service.tokenize), methods=post),
        Route("/detokenize", service.guarded(service.detokenize), methods=post),
        Route("/health", service.health, methods=get),
        Route("/metrics", service.metrics_page, methods=get),
        Route("/version", service.version, methods=get),
    ]
    handlers: dict[Any, Any] = {
        ApiError: service.on_api_error,
        HTTPException: service.on_http_error,
        ClientDisconnect: service.on_disconnect,
        Exception: service.on_fault,
    }
    return Starlette(routes=routes, exception_handlers=handlers), service


async def _until(exchange: Exchange, moment: Awaitable[None], pipe: Pipe) -> None:
    """Submits and waits for `moment`.

    Raises:
        ApiError: the engine refused or failed.
        ClientDisconnect: nobody waits for the answer any more.
    """
    try:
        exchange.submit()
        await moment
    except BaseException:
        exchange.leave()
        raise
    if exchange.error is not None:
        raise exchange.error
    if pipe.lost:
        raise ClientDisconnect


def _json(value: Any) -> Response:
    return Response(value if isinstance(value, bytes) else msgspec.json.encode(value), media_type="application/json")


def _version() -> str:
    try:
        return version("hetserve")
    except PackageNotFoundError:
        return "unknown"
