"""The fields clients may send, with their types, and the table of what is refused. Bytes in, a request or an ApiError out.

Fields that neither OpenAI nor vLLM gives a meaning here are ignored, as both do. Fields that ask for a feature this engine lacks are refused
unless they hold a value that asks for nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from hetserve.engine.server.errors import undecodable, unsupported


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """What both endpoints take. Types are strict: a boolean is no integer, 5.0 is no integer."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    user: str | None = None
    # Asking for what is not here: any value but the neutral one is refused, by REFUSED below.
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    length_penalty: Any = None
    logit_bias: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    best_of: Any = None
    use_beam_search: Any = None
    prompt_logprobs: Any = None
    logprob_token_ids: Any = None
    truncate_prompt_tokens: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_decoding_backend: Any = None
    lora_request: Any = None
    speculative_config: Any = None
    prediction: Any = None
    kv_transfer_params: Any = None
    thinking_token_budget: Any = None
    priority: Any = None


class CompletionRequest(Common, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    logprobs: int | None = None
    echo: Any = None
    suffix: Any = None
    prompt_embeds: Any = None


class Part(msgspec.Struct):
    """A piece of a message's content."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None


class ChatRequest(Common, kw_only=True):
    messages: list[Message] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    parallel_tool_calls: Any = None
    modalities: Any = None
    audio: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    documents: Any = None
    continue_final_message: Any = None
    add_generation_prompt: Any = None
    echo: Any = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


# field -> (values that ask for nothing, what is supported instead)
_SAMPLERS = "temperature, top_p, top_k, min_p and seed are supported"
_PLAIN = "answers are plain text"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": ((0,), f"penalties are not supported; {_SAMPLERS}"),
    "presence_penalty": ((0,), f"penalties are not supported; {_SAMPLERS}"),
    "repetition_penalty": ((1,), f"penalties are not supported; {_SAMPLERS}"),
    "length_penalty": ((1,), "beam search is not supported"),
    "logit_bias": (({},), f"biased logits are not supported; {_SAMPLERS}"),
    "bad_words": (([],), "banned words are not supported; 'stop' and 'stop_token_ids' are"),
    "allowed_token_ids": (([],), f"restricted vocabularies are not supported; {_SAMPLERS}"),
    "best_of": ((1,), "best_of is not supported; 'n' returns several choices"),
    "use_beam_search": ((False,), "beam search is not supported; 'n' returns several choices"),
    "prompt_logprobs": ((), "log-probabilities of the prompt are not supported; 'logprobs' gives those of the answer"),
    "logprob_token_ids": (([],), "log-probabilities of chosen tokens are not supported; 'logprobs' gives the most likely ones"),
    "truncate_prompt_tokens": ((), "prompts are never cut; send one that fits the model"),
    "response_format": (({"type": "text"},), f"guided decoding is not supported; {_PLAIN}"),
    "structured_outputs": ((), f"guided decoding is not supported; {_PLAIN}"),
    "guided_json": ((), f"guided decoding is not supported; {_PLAIN}"),
    "guided_regex": ((), f"guided decoding is not supported; {_PLAIN}"),
    "guided_choice": ((), f"guided decoding is not supported; {_PLAIN}"),
    "guided_grammar": ((), f"guided decoding is not supported; {_PLAIN}"),
    "guided_decoding_backend": ((), f"guided decoding is not supported; {_PLAIN}"),
    "lora_request": ((), "LoRA adapters are not supported; /v1/models lists what is served"),
    "speculative_config": ((), "speculative decoding is not supported"),
    "prediction": ((), "speculative decoding is not supported"),
    "kv_transfer_params": (({},), "KV transfer between servers is not supported"),
    "thinking_token_budget": ((-1,), "thinking budgets are not supported; 'max_tokens' limits the whole answer"),
    "priority": ((0,), "priorities are not supported; requests are served in order of arrival"),
    "echo": ((False,), "echoing the prompt is not supported"),
    "suffix": (("",), "insertion is not supported; the answer continues the prompt"),
    "prompt_embeds": ((), "embeddings as prompts are not supported; send text or token ids"),
    "tools": (([],), f"tools are not supported; {_PLAIN}"),
    "tool_choice": (("none", "auto"), f"tools are not supported; {_PLAIN}"),
    "functions": (([],), f"functions are not supported; {_PLAIN}"),
    "function_call": (("none", "auto"), f"functions are not supported; {_PLAIN}"),
    "parallel_tool_calls": ((True, False), f"tools are not supported; {_PLAIN}"),
    "modalities": ((["text"],), "images and audio are not supported; text is"),
    "audio": ((), "images and audio are not supported; text is"),
    "chat_template": ((), "the model's own chat template is used; a client's is not"),
    "chat_template_kwargs": (({},), "arguments for the chat template are not supported"),
    "documents": (([],), "documents are not supported; put their text in a message"),
    "continue_final_message": ((False,), "continuing the last message is not supported; an answer is always a new one"),
    "add_generation_prompt": ((True,), "an answer is always a new message of the assistant"),
}

Body = TypeVar("Body", bound=msgspec.Struct)


def decode(body: bytes, kind: type[Body]) -> Body:
    """The body as a request of `kind`.

    Raises:
        ApiError: 400, for bad JSON, wrong types, and features that are not supported.
    """
    try:
        request = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise undecodable(error, body) from None
    for field in kind.__struct_fields__:
        if field in REFUSED:
            _refuse(field, getattr(request, field))
    return request


def _refuse(field: str, value: Any) -> None:
    neutral, what = REFUSED[field]
    if value is not None and not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
        raise unsupported(field, f"'{field}' cannot be served: {what}.")
