"""Request bodies: what is wrong with each is said in one sentence, with the field; what is right becomes what the engine is told."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_fakes import EOS, SPEC, VOCAB

from hetserve.control.messages import Sampling
from hetserve.engine.server.errors import ApiError
from hetserve.engine.server.fields import REFUSED, ChatRequest, CompletionRequest, decode
from hetserve.engine.server.limits import Limits
from hetserve.engine.server.requests import Job, conversation_of, job_of, prompts_of

LIMITS = Limits()


def completion(body: bytes) -> tuple[Job, list]:
    request = decode(body, CompletionRequest)
    return job_of(request, SPEC, LIMITS), prompts_of(request, SPEC, LIMITS)


def chat(body: bytes) -> tuple[Job, list]:
    request = decode(body, ChatRequest)
    return job_of(request, SPEC, LIMITS), conversation_of(request.messages)


BAD = [  # (body, the field at fault, words the message must have)
    (b"", None, "not valid JSON"),
    (b"{", None, "not valid JSON"),
    (b"nonsense", None, "not valid JSON"),
    (b'{"prompt": "x"} and more', None, "not valid JSON"),
    (b"[]", None, "expected `object`"),
    (b"null", None, "expected `object`"),
    (b'"x"', None, "expected `object`"),
    (b'{"prompt": "\xff"}', None, "not valid JSON"),
    (b'{"prompt": "\\ud800"}', None, "surrogate"),
    (b'{"x": ' + b"[" * 100_000, None, "nested"),
    (b'{"prompt": "x", "temperature": NaN}', None, "not valid JSON"),
    (b'{"prompt": "x", "temperature": Infinity}', None, "not valid JSON"),
    (b'{"prompt": "x", "temperature": 1e999}', "temperature", "range"),
    (b"{}", "prompt", "missing"),
    (b'{"prompt": null}', "prompt", "missing"),
    (b'{"prompt": ""}', "prompt", "empty"),
    (b'{"prompt": []}', "prompt", "empty"),
    (b'{"prompt": [[]]}', "prompt", "empty"),
    (b'{"prompt": ["a", ""]}', "prompt", "empty"),
    (b'{"prompt": 5}', "prompt", "expected"),
    (b'{"prompt": {"a": 1}}', "prompt", "expected"),
    (b'{"prompt": [1, "a"]}', "prompt", "mixture"),
    (b'{"prompt": ["a", 1]}', "prompt", "mixture"),
    (b'{"prompt": [[1], 2]}', "prompt", "mixture"),
    (b'{"prompt": [1, [2]]}', "prompt", "mixture"),
    (b'{"prompt": [["a"]]}', "prompt", "expected `int`"),
    (b'{"prompt": [1.5]}', "prompt", "expected"),
    (b'{"prompt": [true]}', "prompt", "bool"),
    (b'{"prompt": [-1]}', "prompt", "-1"),
    (b'{"prompt": [320]}', "prompt", "0 to 319"),
    (b'{"prompt": [99999999999999999999999]}', "prompt", "99999999999999999999999"),
    (b'{"prompt": ["a"' + b', "a"' * 256 + b"]}", "prompt", "at most 256"),
    (b'{"prompt": "x", "n": 0}', "n", "from 1 to 32"),
    (b'{"prompt": "x", "n": -3}', "n", "-3"),
    (b'{"prompt": "x", "n": 33}', "n", "33"),
    (b'{"prompt": "x", "n": true}', "n", "bool"),
    (b'{"prompt": "x", "n": "2"}', "n", "str"),
    (b'{"prompt": "x", "n": 1.0}', "n", "float"),
    (b'{"prompt": "x", "n": 99999999999999999999999999}', "n", "from 1 to 32"),
    (b'{"prompt": "x", "max_tokens": 0}', "max_tokens", "from 1"),
    (b'{"prompt": "x", "max_tokens": -5}', "max_tokens", "-5"),
    (b'{"prompt": "x", "max_tokens": 1e3}', "max_tokens", "float"),
    (b'{"prompt": "x", "max_tokens": "many"}', "max_tokens", "str"),
    (b'{"prompt": "x", "max_tokens": 9223372036854775808}', "max_tokens", "2^63"),
    (b'{"prompt": "x", "min_tokens": 17}', "min_tokens", "16"),
    (b'{"prompt": "x", "min_tokens": -1}', "min_tokens", "from 0"),
    (b'{"prompt": "x", "temperature": -0.1}', "temperature", "-0.1"),
    (b'{"prompt": "x", "temperature": "hot"}', "temperature", "str"),
    (b'{"prompt": "x", "temperature": true}', "temperature", "bool"),
    (b'{"prompt": "x", "top_p": 0}', "top_p", "above 0"),
    (b'{"prompt": "x", "top_p": 1.01}', "top_p", "1.01"),
    (b'{"prompt": "x", "top_k": -2}', "top_k", "-2"),
    (b'{"prompt": "x", "min_p": 2}', "min_p", "from 0 to 1"),
    (b'{"prompt": "x", "seed": 9223372036854775808}', "seed", "2^63"),
    (b'{"prompt": "x", "seed": 1.5}', "seed", "float"),
    (b'{"prompt": "x", "logprobs": 21}', "logprobs", "20"),
    (b'{"prompt": "x", "logprobs": -1}', "logprobs", "-1"),
    (b'{"prompt": "x", "logprobs": true}', "logprobs", "bool"),
    (b'{"prompt": "x", "stop": ""}', "stop", "empty"),
    (b'{"prompt": "x", "stop": ["a", ""]}', "stop", "empty"),
    (b'{"prompt": "x", "stop": 3}', "stop", "expected"),
    (b'{"prompt": "x", "stop": [3]}', "stop", "expected"),
    (b'{"prompt": "x", "stop": ["a"' + b',"a"' * 16 + b"]}", "stop", "at most 16"),
    (b'{"prompt": "x", "stop": "' + b"a" * 257 + b'"}', "stop", "at most 256"),
    (b'{"prompt": "x", "stop_token_ids": [320]}', "stop_token_ids", "320"),
    (b'{"prompt": "x", "stop_token_ids": [-1]}', "stop_token_ids", "-1"),
    (b'{"prompt": "x", "stop_token_ids": ' + str(list(range(65))).encode() + b"}", "stop_token_ids", "at most 64"),
    (b'{"prompt": "x", "stream": 1}', "stream", "int"),
    (b'{"prompt": "x", "stream": "yes"}', "stream", "str"),
    (b'{"prompt": "x", "stream_options": {"include_usage": true}}', "stream_options", "stream"),
    (b'{"prompt": "x", "stream": true, "stream_options": 5}', "stream_options", "expected"),
    (b'{"prompt": "x", "model": 5}', "model", "expected"),
    (b'{"prompt": "x", "ignore_eos": "no"}', "ignore_eos", "expected"),
]
BAD_CHAT = [
    (b"{}", "messages", "missing"),
    (b'{"messages": []}', "messages", "missing or empty"),
    (b'{"messages": "hi"}', "messages", "expected"),
    (b'{"messages": [{}]}', "messages", "role"),
    (b'{"messages": [{"role": "user"}]}', "messages", "content"),
    (b'{"messages": [{"role": "user", "content": 5}]}', "messages", "expected"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}', "messages", "image_url"),
    (b'{"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}', "messages", "tools"),
    (b'{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3}', "top_logprobs", "logprobs"),
    (b'{"messages": [{"role": "user", "content": "x"}], "logprobs": 3}', "logprobs", "int"),
    (b'{"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 21}', "top_logprobs", "20"),
    (b'{"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 0}', "max_completion_tokens", "from 1"),
]


@pytest.mark.parametrize(("body", "field", "words"), BAD, ids=lambda value: str(value)[:50])
def test_bad_completions_are_refused_with_the_field(body, field, words):
    with pytest.raises(ApiError) as caught:
        completion(body)
    assert (caught.value.status, caught.value.param) == (400, field) and words in caught.value.message


@pytest.mark.parametrize(("body", "field", "words"), BAD_CHAT, ids=lambda value: str(value)[:50])
def test_bad_chats_are_refused_with_the_field(body, field, words):
    with pytest.raises(ApiError) as caught:
        chat(body)
    assert (caught.value.status, caught.value.param) == (400, field) and words in caught.value.message


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_is_not_supported_is_refused_and_the_neutral_value_is_not(field):
    kind, rest = (CompletionRequest, {"prompt": "x"}) if field in CompletionRequest.__struct_fields__ else (ChatRequest, {})
    neutral, what = REFUSED[field]
    for value in (None, *neutral):
        decode(msgspec.json.encode({**rest, field: value}), kind)
    asked = {"echo": True, "parallel_tool_calls": 1, "continue_final_message": True, "use_beam_search": True, "add_generation_prompt": False}
    with pytest.raises(ApiError) as caught:
        decode(msgspec.json.encode({**rest, field: asked.get(field, ["something"])}), kind)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, field, "unsupported")
    assert what in caught.value.message


def test_images_tools_and_guided_decoding_say_what_is_supported():
    for field, words in (("tools", "plain text"), ("response_format", "guided decoding"), ("modalities", "text is")):
        with pytest.raises(ApiError) as caught:
            decode(msgspec.json.encode({field: [{"type": "json_object"}]}), ChatRequest)
        assert words in caught.value.message


def test_defaults_are_openais():
    job, prompts = completion(b'{"prompt": "x"}')
    assert (job.n, job.max_tokens, job.stream, prompts) == (1, 16, False, ["x"])
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.logprobs) == (1.0, 1.0, -1)
    assert chat(b'{"messages": [{"role": "user", "content": "x"}]}')[0].max_tokens is None


def test_nulls_and_unknown_fields_ask_for_nothing():
    names = [name for name in CompletionRequest.__struct_fields__ if name != "prompt"]
    body = msgspec.json.encode({"prompt": "x", **dict.fromkeys(names), "some_new_field": {"a": [1]}})
    job = completion(body)[0]
    assert (job.n, job.max_tokens, job.stops, job.skip_special_tokens) == (1, 16, (), True)


def test_unseeded_requests_differ_and_seeded_ones_do_not():
    seeds = {completion(b'{"prompt": "x"}')[0].sampling.seed for _ in range(8)}
    assert len(seeds) == 8
    assert completion(b'{"prompt": "x", "seed": -7}')[0].sampling == completion(b'{"prompt": "x", "seed": -7}')[0].sampling


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_seed_is_one_the_sampler_takes(seed):
    sampling = completion(msgspec.json.encode({"prompt": "x", "seed": seed}))[0].sampling
    assert 0 <= sampling.seed < 2**63


def test_temperature_zero_is_greedy_whatever_else_is_asked():
    job = completion(b'{"prompt": "x", "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 5, "logprobs": 2}')[0]
    assert job.sampling == Sampling(logprobs=2)
    assert completion(b'{"prompt": "x", "temperature": 1e-30}')[0].sampling.temperature == 0
    assert completion(b'{"prompt": "x", "temperature": 0.001}')[0].sampling.temperature == 0.01


def test_top_k_off_in_all_its_spellings():
    for value in (0, -1, VOCAB, 2**40):
        assert completion(msgspec.json.encode({"prompt": "x", "top_k": value}))[0].sampling.top_k == 0
    assert completion(b'{"prompt": "x", "top_k": 5}')[0].sampling.top_k == 5


def test_stop_token_ids_join_the_models_own_end():
    assert completion(b'{"prompt": "x"}')[0].stop_token_ids == (EOS,)
    assert completion(b'{"prompt": "x", "stop_token_ids": [5, 300, 5]}')[0].stop_token_ids == (EOS, 5)
    assert completion(b'{"prompt": "x", "ignore_eos": true}')[0].stop_token_ids == ()
    assert completion(b'{"prompt": "x", "ignore_eos": true, "stop_token_ids": [7]}')[0].stop_token_ids == (7,)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (b'"a"', ["a"]),
        (b'["a", "b"]', ["a", "b"]),
        (b"[1, 2]", [[1, 2]]),
        (b"[[1, 2], [3]]", [[1, 2], [3]]),
        ('"😀"'.encode(), ["😀"]),
        (b'"\\ud83d\\ude00"', ["😀"]),
    ],
)
def test_prompts_come_in_four_forms(prompt, prompts):
    assert completion(b'{"prompt": ' + prompt + b"}")[1] == prompts


def test_message_content_in_parts_is_joined():
    body = b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "max_completion_tokens": 3}'
    job, messages = chat(body)
    assert messages == [{"role": "user", "content": "a\nb"}] and job.max_tokens == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*CompletionRequest.__struct_fields__, *ChatRequest.__struct_fields__]), JSON, max_size=6))
def test_any_values_are_served_or_refused_never_a_fault(fields):
    import json

    body = json.dumps({"prompt": "x", "messages": [{"role": "user", "content": "x"}], **fields}).encode()
    for parse in (completion, chat):
        try:
            job, _ = parse(body)
        except ApiError as error:
            assert error.status == 400 and msgspec.json.decode(error.body())["error"]["message"]
        else:
            assert 1 <= job.n <= LIMITS.n and 0 <= job.sampling.seed < 2**63
