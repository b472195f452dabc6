"""The endpoints over real sockets: what the openai client and plain HTTP clients get, whole and streamed, and that both say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_fakes import EOS, FakeEngine, FakeTokenizer, Running, serving

from hetserve.errors import ModelError


def end_after(*tokens: int):
    """A script: these tokens, then the end of text."""

    def script(prompt, choice) -> Iterator[int]:
        yield from tokens
        while True:
            yield EOS

    return script


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)


def events(response: httpx.Response) -> list[dict]:
    """The objects of a finished event stream, which must end with [DONE]."""
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_completion_by_the_openai_client(client):
    answer = client.completions.create(model="fake", prompt="hello", max_tokens=5)
    assert answer.choices[0].text == "abcde" and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 5, 10)
    assert answer.object == "text_completion" and answer.model == "fake"


def test_streamed_completion_by_the_openai_client(client):
    chunks = list(client.completions.create(model="fake", prompt="hello", max_tokens=5, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == list("abcde")
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 5


def test_chat_by_the_openai_client(client, server):
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    answer = client.chat.completions.create(model="fake", messages=messages, max_completion_tokens=3, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == "abc" and answer.choices[0].message.role == "assistant"
    assert bytes(server.engine.submitted[-1][0]).decode() == "<system>be\n<user>hi\n<assistant>"
    entries = answer.choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["a", "b", "c"] and entries[0].bytes == [97]
    assert [top.token for top in entries[0].top_logprobs] == ["a", "b"]


def test_streamed_chat_by_the_openai_client(client):
    stream = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True, n=2)
    texts, roles, ends = {0: "", 1: ""}, {}, {}
    for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        roles.setdefault(choice.index, choice.delta.role)
        ends[choice.index] = choice.finish_reason
    assert texts == {0: "abcd", 1: "bcde"} and roles == {0: "assistant", 1: "assistant"} and ends == {0: "length", 1: "length"}


def test_a_chat_without_max_tokens_may_fill_the_model(http, server):
    server.engine.script, old = end_after(97), server.engine.script
    try:
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    finally:
        server.engine.script = old
    prompt, max_tokens = server.engine.submitted[-1][:2]
    assert len(prompt) + max_tokens == server.engine.max_model_len


@pytest.mark.parametrize(
    "fields", [{}, {"n": 3}, {"logprobs": 2}, {"stop": ["e", "zz"]}, {"return_token_ids": True}, {"prompt": ["ab", "cd"], "n": 2}]
)
def test_streamed_and_whole_answers_say_the_same(http, fields):
    body = {"prompt": "hello", "max_tokens": 7, **fields}
    whole = http.post("/v1/completions", json=body).json()
    streamed = events(http.post("/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    assert streamed[-1]["usage"] == whole["usage"] and streamed[-1]["choices"] == []
    for choice in whole["choices"]:
        mine = [chunk["choices"][0] for chunk in streamed[:-1] if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in mine) == choice["text"]
        assert (mine[-1]["finish_reason"], mine[-1]["stop_reason"]) == (choice["finish_reason"], choice["stop_reason"])
        assert all(chunk["finish_reason"] is None for chunk in mine[:-1])
        if "return_token_ids" in fields:
            assert [token for chunk in mine for token in chunk["token_ids"]] == choice["token_ids"]
            assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"] and "prompt_token_ids" not in mine[1]
        if "logprobs" in fields:
            for key, values in choice["logprobs"].items():
                assert [value for chunk in mine for value in chunk["logprobs"][key]] == values


def test_several_prompts_and_choices_are_numbered_as_openai_does(http):
    body = {"prompt": ["ab", "xyz"], "n": 2, "max_tokens": 3, "return_token_ids": True}
    answer = http.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["abc", "bcd", "abc", "bcd"]
    assert [bytes(choice["prompt_token_ids"]).decode() for choice in answer["choices"]] == ["ab", "ab", "xyz", "xyz"]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


def test_the_first_log_probability_is_that_of_the_token(http):
    found = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 3, "logprobs": 0}).json()["choices"][0]["logprobs"]
    assert found["tokens"] == ["a", "b", "c"] and found["text_offset"] == [0, 1, 2]
    assert found["token_logprobs"] == [-0.5] * 3 and found["top_logprobs"][0] == {"a": -0.5}
    ids = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, "logprobs": 0, "return_tokens_as_token_ids": True}).json()
    assert ids["choices"][0]["logprobs"]["tokens"] == ["token_id:97"]


def test_minus_infinity_is_still_json():
    with serving(FakeEngine(logprob=float("-inf"))) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 1, "logprobs": 1}).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]


def test_a_stop_string_ends_the_choice_in_the_engine_too(http, server):
    answer = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 100, "stop": "cde", "return_token_ids": True}).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", "cde")
    assert answer["usage"]["completion_tokens"] == 5 == len(choice["token_ids"])
    assert server.engine.stopped[-1] == (len(server.engine.submitted) - 1, 0, 5)


def test_held_back_text_is_not_sent_before_it_is_certain(http):
    chunks = events(http.post("/v1/completions", json={"prompt": "x", "max_tokens": 6, "stop": "bcx", "stream": True}))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "", "", "bcd", "e", "f"]


def test_characters_are_sent_whole(server):
    with serving(FakeEngine(script=end_after(97, 261, 262, 260))) as other:
        text = httpx.post(f"{other.url}/v1/completions", json={"prompt": "x", "max_tokens": 9, "stream": True})
    chunks = [chunk["choices"][0] for chunk in events(text)]
    assert [chunk["text"] for chunk in chunks] == ["a", "", "😀", "é€", ""]
    assert chunks[-1]["finish_reason"] == "stop" and chunks[-1]["stop_reason"] is None


def test_running_usage_on_request(http):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(http.post("/v1/completions", json={"prompt": "x", "max_tokens": 3, "stream": True, "stream_options": options}))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]


def test_what_the_engine_is_told(http, server):
    body = {"prompt": [5, 6], "n": 2, "max_tokens": 3, "min_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 9}
    http.post("/v1/completions", json={**body, "stop_token_ids": [8], "logprobs": 1})
    prompt, max_tokens, n, stop_ids, min_tokens, sampling = server.engine.submitted[-1]
    assert (prompt, max_tokens, n, stop_ids, min_tokens) == ([5, 6], 3, 2, (EOS, 8), 2)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed, sampling.logprobs) == (0.7, 0.9, 4, 0.1, 9, 1)


def test_models_and_version(http, client):
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").max_model_len == 2048
    assert http.get("/version").json()["version"]
    assert http.get("/v1/models/other").status_code == 404


def test_tokenize_and_back(http):
    found = http.post("/tokenize", json={"prompt": "héllo"}).json()
    assert found == {"count": 6, "max_model_len": 2048, "tokens": list("héllo".encode())}
    assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "héllo"}
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert bytes(chat["tokens"]).decode() == "<user>hi\n<assistant>"
    assert http.post("/detokenize", json={"tokens": [320]}).status_code == 400
    assert http.post("/tokenize", json={}).status_code == 400


def test_long_texts_are_encoded_beside_the_event_loop(http, server):
    import threading

    used = []

    class Noting(FakeTokenizer):
        def encode(self, text, add_special_tokens=True):
            used.append(threading.current_thread().name)
            return super().encode(text, add_special_tokens)

    with serving(tokenizer=Noting()) as other:
        for prompt in ("x" * 10, "x" * 1500):
            assert httpx.post(f"{other.url}/v1/completions", json={"prompt": prompt, "max_tokens": 1}).status_code == 200
    assert not used[0].startswith("encode") and used[1].startswith("encode")


def test_a_model_without_a_tokenizer_takes_and_gives_token_ids():
    with serving(tokenizer=None) as server, httpx.Client(base_url=server.url) as http:
        refused = http.post("/v1/completions", json={"prompt": "text", "max_tokens": 1})
        assert refused.status_code == 400 and "token ids" in refused.json()["error"]["message"]
        assert http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}).status_code == 400
        answer = http.post("/v1/completions", json={"prompt": [1, 2], "max_tokens": 2, "return_token_ids": True, "logprobs": 0}).json()
        assert answer["choices"][0]["token_ids"] == [97, 98] and answer["choices"][0]["text"] == ""
        assert answer["choices"][0]["logprobs"]["tokens"] == ["token_id:97", "token_id:98"]


def test_a_template_that_refuses_is_the_clients_error(http):
    answer = http.post("/v1/chat/completions", json={"messages": [{"role": "pirate", "content": "x"}]})
    assert answer.status_code == 400 and "no such role" in answer.json()["error"]["message"]


def test_a_template_that_fails_is_not_the_clients_error():
    class Broken(FakeTokenizer):
        def render_chat(self, messages):
            raise ModelError("The model's chat template took longer than 2 s.")

    with serving(tokenizer=Broken()) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    assert answer.status_code == 500 and "took longer" in answer.json()["error"]["message"]


def test_metrics_parse_and_count(server, http):
    before = metrics(http)
    http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 4, "n": 2})
    http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 9, "stop": "c"})
    after = metrics(http)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted({"model_name": "fake", "engine": "0", **labels}.items())))
        return after[key] - before[key]

    assert grown("vllm:prompt_tokens_total") == 10 and grown("vllm:generation_tokens_total") == 11
    assert grown("vllm:request_success_total", finished_reason="length") == 2
    assert grown("vllm:request_success_total", finished_reason="stop") == 1
    assert grown("vllm:time_to_first_token_seconds_count") == 3 == grown("vllm:e2e_request_latency_seconds_count")
    assert grown("vllm:inter_token_latency_seconds_count") == 3 + 3 + 2
    assert grown("vllm:request_generation_tokens_bucket", le="+Inf") == 3
    gauges = {name: value for (name, _), value in after.items()}
    assert gauges["vllm:num_requests_running"] == 0 and gauges["vllm:kv_cache_usage_perc"] == 0.25
    assert gauges["vllm:num_preemptions_total"] == 3 and gauges["hetserve:engine_steps_total"] == 7
    pools = {(name, dict(labels)["device"], dict(labels)["worker"]): value for (name, labels), value in after.items() if "pool_" in name}
    assert pools["hetserve:pool_pages", "slow", "attention"] == 50 and pools["hetserve:pool_pages_free", "fast", "primary"] == 40
    assert pools["hetserve:pool_cpu_seconds", "fast", "primary"] == 1.25 and ("hetserve:pool_cpu_seconds", "slow", "attention") not in pools


def metrics(http: httpx.Client) -> dict[tuple, float]:
    page = http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(page.text))
    assert len({family.name for family in families}) == len(families)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def test_two_servers_in_one_process_count_apart(server):
    with serving() as other, httpx.Client(base_url=other.url) as http:
        http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 1})
        assert metrics(http)["vllm:generation_tokens_total", (("engine", "0"), ("model_name", "fake"))] == 1
