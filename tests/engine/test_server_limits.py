"""Clients that leave, never read, send too much, too slowly, or nonsense; keys; overload; an engine that fails; stopping.

Each gets a clear answer or is cut, and nobody else notices.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from server_fakes import FakeEngine, Running, serving

from hetserve.engine.server.limits import Limits

SHORT = {"prompt": "hello", "max_tokens": 2}
ENDLESS = {"prompt": "hello", "max_tokens": 2000, "stream": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(step_s=0.002)) as running:
        yield running


def post(server: Running, body: object, path: str = "/v1/completions", **more) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=20, **more)


def error_of(response: httpx.Response) -> dict:
    """The error object, which must be OpenAI's: these four fields and nothing else."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def eventually(condition, timeout_s: float = 5.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.005)
    return False


def raw(server: Running, data: bytes, size: int = 0) -> socket.socket:
    """A connection on which `data` has been sent."""
    connection = socket.socket()
    if size:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(data)
    return connection


def request_bytes(body: object, path: str = "/v1/completions", headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data


def read_all(connection: socket.socket) -> bytes:
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


# ----------------------------------------------------------------------------------------------------- bad requests


def test_an_unknown_model_is_404_with_the_right_name(server):
    for path, body in (("/v1/completions", SHORT), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})):
        answer = post(server, {**body, "model": "gpt-9"}, path)
        assert answer.status_code == 404 and "'fake'" in error_of(answer)["message"] and error_of(answer)["code"] == "model_not_found"


def test_a_prompt_longer_than_the_model_is_refused_with_numbers(server):
    answer = post(server, {"prompt": [1] * 2048, "max_tokens": 1})
    assert answer.status_code == 400
    assert "2048" in error_of(answer)["message"] and error_of(answer)["code"] == "context_length_exceeded"
    answer = post(server, {"prompt": "x" * 2000, "max_tokens": 100})
    assert all(number in error_of(answer)["message"] for number in ("2048", "2100", "2000", "100"))
    assert post(server, {"prompt": [1] * 2047, "max_tokens": 1}).status_code == 200


def test_what_the_engine_refuses_is_the_clients_error():
    with serving(FakeEngine(refuse="it needs 900 pages, there are 10")) as server:
        for stream in (False, True):
            answer = post(server, {**SHORT, "stream": stream})
            assert answer.status_code == 400 and "900 pages" in error_of(answer)["message"]


def test_every_error_is_openais_object(server):
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/health", 405)):
        answer = httpx.request(method, server.url + path)
        assert answer.status_code == status and error_of(answer)
    wrong = httpx.post(server.url + "/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": "text/plain"})
    assert wrong.status_code == 415 and "application/json" in error_of(wrong)["message"]
    with pytest.raises(openai.BadRequestError) as caught:
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0).completions.create(model="fake", prompt="x", n=0)
    assert caught.value.param == "n"


def test_a_fault_of_ours_is_500_and_ends_nobody_else(server, caplog):
    class Broken(FakeEngine):
        def submit(self, prompt, *rest):
            if prompt == [66]:
                raise RuntimeError("planted")
            return super().submit(prompt, *rest)

    with serving(Broken()) as other:
        answer = post(other, {"prompt": [66]})
        assert answer.status_code == 500 and "planted" not in answer.text and error_of(answer)["type"] == "server_error"
        assert post(other, SHORT).status_code == 200


def test_a_fault_while_text_is_made_ends_that_request_alone():
    def script(prompt, choice):
        yield from iter(lambda: "no token" if prompt[0] == 66 else 97, None)

    with serving(FakeEngine(script=script)) as other:
        assert post(other, {"prompt": [66], "max_tokens": 3}).status_code == 500
        assert post(other, SHORT).json()["choices"][0]["text"] == "aa"


def test_bad_http_gets_a_json_400(server):
    answer = read_all(raw(server, b"THIS IS NOT HTTP\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400") and json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "invalid_http"


def test_pipelined_requests_are_answered_in_order_and_forgotten_together(server, caplog):
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = read_all(raw(server, request_bytes({**SHORT, "stream": True}) * 20 + last))
    assert answer.count(b"HTTP/1.1 200") == 21 and answer.count(b"[DONE]") == 20
    connection = raw(server, request_bytes(ENDLESS) + request_bytes({**ENDLESS, "stream": False}) * 5)
    assert eventually(lambda: server.engine.running)
    connection.close()
    assert eventually(lambda: not server.call(lambda: server.server.server_state.tasks))
    assert not server.engine.running and not caplog.records


def test_nonsense_of_every_kind_leaves_the_server_as_it_was(server):
    good = request_bytes({**SHORT, "stream": True})
    rng = random.Random(0)
    for _ in range(200):
        broken = bytearray(good)
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(broken))
            broken[place : place + rng.randint(0, 8)] = rng.randbytes(rng.randint(0, 4))
        raw(server, bytes(broken)).close()
    assert eventually(lambda: not server.call(lambda: server.server.server_state.connections or server.server.server_state.tasks))
    assert not server.engine.running and post(server, SHORT).status_code == 200


# ---------------------------------------------------------------------------------------------------------- too much


def test_a_ten_megabyte_body_is_413(server):
    answer = post(server, {"prompt": "x" * 10_000_000})
    assert answer.status_code == 413 and str(Limits.body_bytes) in error_of(answer)["message"]
    assert post(server, SHORT).status_code == 200


def test_an_announced_body_is_refused_without_reading_it(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000000000\r\n\r\n"
    connection = raw(server, head)
    assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    began_s = time.monotonic()
    assert eventually(lambda: not connection.recv(1), 5)  # and does not wait for the rest for ever
    assert time.monotonic() - began_s < 4


def test_a_body_of_unknown_length_is_cut_at_the_limit():
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    with serving(limits=Limits(body_bytes=5000)) as server:
        answer = httpx.post(server.url + "/v1/completions", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_endless_headers_are_refused():
    with serving(limits=Limits(head_bytes=2000)) as server:
        answer = read_all(raw(server, b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 50) for i in range(100))))
        assert answer.startswith(b"HTTP/1.1 431")
        fine = b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 50) for i in range(10)) + b"Connection: close\r\n\r\n"
        assert read_all(raw(server, fine)).startswith(b"HTTP/1.1 200")


def test_the_head_limit_does_not_count_bodies():
    with serving(limits=Limits(head_bytes=300)) as server:
        connection = raw(server, request_bytes({"prompt": [1] * 500, "max_tokens": 1}) * 3)
        assert eventually(lambda: connection.recv(65536, socket.MSG_PEEK).count(b"HTTP/1.1 200") == 3)


def test_five_hundred_connections_hurt_nobody(server):
    idle = [raw(server, b"") for _ in range(250)]
    busy = [raw(server, request_bytes({**SHORT, "stream": True}, headers="Connection: close\r\n")) for _ in range(250)]
    assert post(server, SHORT).status_code == 200
    for connection in busy:
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in answer
    for connection in (*idle, *busy):
        connection.close()
    assert eventually(lambda: server.call(lambda: len(server.server.server_state.connections)) == 0)


def test_connections_past_the_limit_are_told_so():
    with serving(limits=Limits(connections=3)) as server:
        held = [raw(server, b"") for _ in range(3)]
        assert eventually(lambda: server.call(lambda: len(server.server.server_state.connections)) == 3)
        assert read_all(raw(server, b"")).startswith(b"HTTP/1.1 503")
        held.pop().close()
        assert eventually(lambda: server.call(lambda: len(server.server.server_state.connections)) == 2)
        assert httpx.get(server.url + "/health").status_code == 200


def test_too_many_waiting_requests_are_429_with_retry_after():
    with serving(FakeEngine(max_waiting=1)) as server:
        server.call(lambda: setattr(server.engine, "paused", True))
        holder = raw(server, request_bytes(ENDLESS))
        assert eventually(lambda: len(server.engine.running) == 1)
        for stream in (False, True):
            answer = post(server, {**SHORT, "stream": stream})
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert error_of(answer)["code"] == "overloaded"
        holder.close()
        assert eventually(lambda: not server.engine.running)


# ---------------------------------------------------------------------------------------------------------- too slow


def test_a_request_that_never_comes_is_cut():
    with serving(FakeEngine(step_s=0.002), limits=Limits(receive_s=0.2)) as server:
        for sent in (b"", b"POST /v1/comp", request_bytes(SHORT)[:-3]):
            assert read_all(raw(server, sent)) == b""
        connection = raw(server, request_bytes({**ENDLESS, "max_tokens": 300}, headers="Connection: close\r\n"))
        assert read_all(connection).count(b'"text":') == 300  # an answer may take longer than that


def test_idle_connections_are_closed():
    with serving(limits=Limits(idle_s=1)) as server:
        connection = raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_request(server, stream):
    before = len(server.engine.cancelled)
    connection = raw(server, request_bytes({**ENDLESS, "stream": stream}))
    assert eventually(lambda: server.engine.running)
    if stream:
        connection.recv(100)
    connection.close()
    assert eventually(lambda: not server.engine.running and len(server.engine.cancelled) > before)
    assert not server.call(lambda: server.service._around.exchanges)


def test_a_client_that_leaves_frees_all_its_prompts_and_choices(server):
    connection = raw(server, request_bytes({**ENDLESS, "prompt": ["a", "b"], "n": 3}))
    assert eventually(lambda: len(server.engine.running) == 6)
    connection.close()
    assert eventually(lambda: not server.engine.running)


def test_a_client_that_never_reads_is_cut_and_others_are_not():
    limits = Limits(stream_buffer_bytes=20_000)
    with serving(FakeEngine(max_model_len=10**6), limits=limits) as server:
        deaf = raw(server, request_bytes({**ENDLESS, "max_tokens": 900_000}), size=4096)
        assert eventually(lambda: server.engine.submitted)
        assert post(server, SHORT).status_code == 200
        assert eventually(lambda: not server.engine.running, 20)
        assert server.engine.cancelled == [0] and server.service.metrics.streams_cut == 1
        assert not read_all(deaf).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert post(server, SHORT).status_code == 200


def test_a_client_that_reads_late_but_in_time_gets_everything(server):
    connection = raw(server, request_bytes({**ENDLESS, "max_tokens": 200}, headers="Connection: close\r\n"))
    time.sleep(0.3)
    assert read_all(connection).count(b'"text":') == 200


def test_a_finished_answer_that_nobody_takes_is_dropped():
    with serving(limits=Limits(send_s=0.3, stream_buffer_bytes=1 << 22), engine=FakeEngine(max_model_len=10**6)) as server:
        deaf = raw(server, request_bytes({**ENDLESS, "max_tokens": 12_000}), size=4096)
        assert eventually(lambda: server.engine.submitted and not server.engine.running, 20)
        assert eventually(lambda: not server.call(lambda: server.server.server_state.connections), 10)
        deaf.close()


# -------------------------------------------------------------------------------------------------------------- keys


def test_only_holders_of_a_key_are_served():
    with serving(api_keys=["secret", "other"]) as server:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "secret"},
            {"authorization": "Bearer"},
            {"authorization": "Basic secret"},
        ):
            for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
                answer = post(server, SHORT, path, headers=headers)
                assert answer.status_code == 401 and error_of(answer)["code"] == "invalid_api_key"
            assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 401
        assert httpx.get(server.url + "/health").status_code == 200
        assert httpx.get(server.url + "/metrics").status_code == 200
        for key in ("secret", "other"):
            assert openai.OpenAI(base_url=f"{server.url}/v1", api_key=key).completions.create(model="fake", prompt="x", max_tokens=1).choices


# --------------------------------------------------------------------------------------------------- engine failures


def test_an_engine_that_fails_ends_streams_with_an_error_and_is_reported():
    with serving(FakeEngine(step_s=0.002)) as server:
        stream = raw(server, request_bytes(ENDLESS, headers="Connection: close\r\n"))
        whole = raw(server, request_bytes({**ENDLESS, "stream": False}, headers="Connection: close\r\n"))
        assert eventually(lambda: len(server.engine.running) == 2 and server.engine.running[0].count > 2)
        assert httpx.get(server.url + "/health").json() == {"status": "ok"}
        server.call(lambda: server.engine.fail("worker 'cpu' was killed"))
        streamed, answered = read_all(stream), read_all(whole)
        last = streamed.split(b"data: ")[-2]
        assert b"worker 'cpu' was killed" in last and b'"error"' in last and streamed.endswith(b"0\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 503") and b"worker 'cpu' was killed" in answered
        health = httpx.get(server.url + "/health")
        assert health.status_code == 503 and "worker 'cpu' was killed" in error_of(health)["message"]
        refused = post(server, {**SHORT, "stream": True})
        assert refused.status_code == 503 and "worker 'cpu' was killed" in error_of(refused)["message"]


def test_an_engine_failure_reaches_the_openai_client_as_an_error():
    with serving(FakeEngine(step_s=0.002)) as server:
        chunks = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0).completions.create(model="fake", **ENDLESS)
        next(chunks)
        server.call(lambda: server.engine.fail("it broke"))
        with pytest.raises(openai.APIError, match="it broke"):
            list(chunks)


# ---------------------------------------------------------------------------------------------------------- stopping


def test_a_drain_finishes_what_runs_and_takes_nothing_new():
    with serving(FakeEngine(step_s=0.002)) as server:
        connection = raw(server, request_bytes({**ENDLESS, "max_tokens": 200}))
        assert eventually(lambda: server.engine.running)
        server.server.handle_exit(15, None)
        assert eventually(lambda: refused(server.port))
        answer = read_all(connection)
        assert answer.count(b'"text":') == 200 and b"data: [DONE]" in answer
        server.thread.join(5)
        assert not server.thread.is_alive()


def test_what_outlasts_the_drain_limit_gets_an_error():
    with serving(FakeEngine(step_s=0.002, max_model_len=10**6), limits=Limits(drain_s=0.3)) as server:
        connection = raw(server, request_bytes({**ENDLESS, "max_tokens": 100_000}))
        assert eventually(lambda: server.engine.running)
        server.server.handle_exit(15, None)
        answer = read_all(connection)
        assert b"the server is stopping" in answer and answer.endswith(b"0\r\n\r\n")
        server.thread.join(5)
        assert not server.thread.is_alive() and not server.engine.running


def test_a_second_signal_stops_at_once():
    with serving(FakeEngine(step_s=0.002, max_model_len=10**6), limits=Limits(drain_s=60)) as server:
        connection = raw(server, request_bytes({**ENDLESS, "max_tokens": 100_000}))
        assert eventually(lambda: server.engine.running)
        for sig in (15, 15):
            server.server.handle_exit(sig, None)
            time.sleep(0.05)
        server.thread.join(3)
        assert not server.thread.is_alive() and not server.engine.running
        connection.close()


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False
