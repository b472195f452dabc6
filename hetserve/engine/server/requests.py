"""A valid request as the engine needs it: ranges checked, defaults filled in, prompts and messages sorted out. No I/O.

Raises ApiError (400) that names the field, what was allowed and what came.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hetserve.control.messages import Sampling
from hetserve.engine.server.errors import ApiError, bad, unsupported
from hetserve.engine.server.fields import ChatRequest, CompletionRequest, Message
from hetserve.engine.server.limits import Limits
from hetserve.spec.model import ModelSpec

GREEDY_BELOW = 1e-5  # temperatures below this are greedy ...
TEMPERATURE_MIN = 1e-2  # ... and others at least this, as in vLLM: smaller ones overflow the division
DEFAULT_MAX_TOKENS = 16  # of /v1/completions, as OpenAI's; chat answers may fill the model's length
INT64 = 2**63


@dataclass(frozen=True)
class Job:
    """One valid request, as the engine and the answer's writer need it."""

    n: int
    max_tokens: int | None  # None: whatever room the prompt leaves
    min_tokens: int
    sampling: Sampling
    stop_token_ids: tuple[int, ...]  # the model's end-of-text ids included, unless ignored
    stops: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    tokens_as_ids: bool  # log-probabilities name tokens `token_id:N`


def job_of(request: CompletionRequest | ChatRequest, spec: ModelSpec, limits: Limits) -> Job:
    """Ranges checked, defaults filled in.

    Raises:
        ApiError: 400, naming the field, what was allowed and what came.
    """
    n = _integer("n", request.n, 1, 1, limits.n)
    max_tokens = _max_tokens(request)
    min_tokens = _integer("min_tokens", request.min_tokens, 0, 0, INT64 - 1)
    if max_tokens is not None and min_tokens > max_tokens:
        raise bad(f"'min_tokens' must be at most 'max_tokens', {max_tokens}; it is {min_tokens}.", "min_tokens")
    options = request.stream_options
    if options is not None and not request.stream:
        raise bad("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    return Job(
        n=n,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        sampling=_sampling(request, spec, limits),
        stop_token_ids=_stop_token_ids(request, spec, limits),
        stops=_stops(request.stop, limits),
        include_stop=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.include_usage and options.continuous_usage_stats),
        return_token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
    )


def prompts_of(request: CompletionRequest, spec: ModelSpec, limits: Limits) -> list[str | list[int]]:
    """The prompts of a completion request: each text, or token ids.

    Raises:
        ApiError: 400, for none, an empty one, too many, kinds mixed, or a token id outside the vocabulary.
    """
    prompt = request.prompt
    if prompt is None:
        raise bad("'prompt' is missing: send a string, a list of token ids, or a list of either.", "prompt")
    prompts: Sequence[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    if not prompts:
        raise bad("'prompt' is empty: send at least one token.", "prompt")
    if len(prompts) > limits.prompts:
        raise bad(f"'prompt' may hold at most {limits.prompts} prompts; it holds {len(prompts)}.", "prompt")
    if len({type(one) for one in prompts}) > 1:
        raise bad("'prompt' must be a string, a list of strings, a list of token ids or a list of such lists, not a mixture.", "prompt")
    for one in prompts:
        _check_prompt(one, spec)
    return list(prompts)


def _check_prompt(prompt: str | list[Any], spec: ModelSpec) -> None:
    if not prompt:
        raise bad("'prompt' is empty: send at least one token.", "prompt")
    if isinstance(prompt, str):
        return
    if not all(type(token) is int for token in prompt):
        raise bad("'prompt' must be a string, a list of strings, a list of token ids or a list of such lists, not a mixture.", "prompt")
    check_tokens(prompt, spec.vocab, "prompt")


def check_tokens(tokens: Sequence[int], vocab: int, field: str) -> None:
    """Raises ApiError (400) unless all ids are in [0, vocab)."""
    wrong = min(tokens) if min(tokens, default=0) < 0 else max(tokens, default=0)
    if wrong < 0 or wrong >= vocab:
        raise bad(f"'{field}' holds the token id {wrong}; this model's ids are 0 to {vocab - 1}.", field)


def conversation_of(messages: list[Message] | None) -> list[dict[str, Any]]:
    """The messages as a chat template takes them, each content one string.

    Raises:
        ApiError: 400, for none, or for content that is not text.
    """
    if not messages:
        raise bad("'messages' is missing or empty: send at least one message.", "messages")
    return [_message(message) for message in messages]


def _message(message: Message) -> dict[str, Any]:
    if message.tool_calls or message.tool_call_id is not None or message.function_call is not None or message.role in ("tool", "function"):
        raise unsupported("messages", "tools are not supported: messages of roles system, user and assistant are.")
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text":
                raise unsupported("messages", f"content of type '{part.type}' is not supported: this server takes text only.")
        content = "\n".join(part.text or "" for part in content)
    if content is None:
        raise bad("each of 'messages' must have a 'content'.", "messages")
    return {"role": message.role, "content": content} | ({"name": message.name} if message.name else {})


def _max_tokens(request: CompletionRequest | ChatRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return _integer("max_tokens", request.max_tokens, DEFAULT_MAX_TOKENS, 1, INT64 - 1)
    if request.max_completion_tokens is not None:
        return _integer("max_completion_tokens", request.max_completion_tokens, 0, 1, INT64 - 1)
    return None if request.max_tokens is None else _integer("max_tokens", request.max_tokens, 0, 1, INT64 - 1)


def _sampling(request: CompletionRequest | ChatRequest, spec: ModelSpec, limits: Limits) -> Sampling:
    temperature = _number("temperature", request.temperature, 1.0, 0.0, 1e4)
    top_p = _number("top_p", request.top_p, 1.0, 0.0, 1.0)
    if top_p == 0.0:
        raise bad("'top_p' must be above 0 and at most 1; it is 0.", "top_p")
    top_k = _integer("top_k", request.top_k, 0, -1, INT64 - 1)
    min_p = _number("min_p", request.min_p, 0.0, 0.0, 1.0)
    seed = _integer("seed", request.seed, 0, -INT64, INT64 - 1) if request.seed is not None else secrets.randbits(63)
    logprobs = _logprobs(request, limits)
    if temperature < GREEDY_BELOW:
        return Sampling(logprobs=logprobs)
    top_k = 0 if top_k in (-1, 0) or top_k >= spec.vocab else top_k
    return Sampling(max(temperature, TEMPERATURE_MIN), top_p, top_k, min_p, seed % INT64, logprobs)


def _logprobs(request: CompletionRequest | ChatRequest, limits: Limits) -> int:
    if isinstance(request, CompletionRequest):
        return _integer("logprobs", request.logprobs, -1, 0, limits.logprobs)
    if request.top_logprobs and not request.logprobs:
        raise bad("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs")
    top = _integer("top_logprobs", request.top_logprobs, 0, 0, limits.logprobs)
    return top if request.logprobs else -1


def _stops(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > limits.stop:
        raise bad(f"'stop' may hold at most {limits.stop} strings; it holds {len(stops)}.", "stop")
    for one in stops:
        if not one:
            raise bad("'stop' holds an empty string, which would stop every answer at once.", "stop")
        if len(one) > limits.stop_chars:
            raise bad(f"a string in 'stop' may have at most {limits.stop_chars} characters; one has {len(one)}.", "stop")
    return stops


def _stop_token_ids(request: CompletionRequest | ChatRequest, spec: ModelSpec, limits: Limits) -> tuple[int, ...]:
    wanted = request.stop_token_ids or []
    if len(wanted) > limits.stop_token_ids:
        raise bad(f"'stop_token_ids' may hold at most {limits.stop_token_ids} ids; it holds {len(wanted)}.", "stop_token_ids")
    check_tokens(wanted, spec.vocab, "stop_token_ids")
    ends = () if request.ignore_eos else spec.eos_token_ids
    return tuple(dict.fromkeys([*ends, *wanted]))


def _integer(field: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise _out_of_range(field, value, low, "2^63 - 1" if high == INT64 - 1 else high)
    return value


def _number(field: str, value: float | None, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    if not low <= value <= high:
        raise _out_of_range(field, value, low, high)
    return value


def _out_of_range(field: str, value: float, low: float, high: object) -> ApiError:
    return bad(f"'{field}' must be from {low:g} to {high}; it is {value}.", field, "out_of_range")
