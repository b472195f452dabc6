"""`hetserve serve` as a process of its own, with the real engine on a tiny model: starting, answering, stopping, and what can go wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.server.run import allow_connections, bind, is_loopback, url_of
from hetserve.engine.tokenizer import load_tokenizer
from hetserve.errors import ResourceError, UsageError
from hetserve.planner.options import Options
from hetserve.spec.load import load_cluster, load_model, save_plan
from hetserve.systems import system

COMMAND = [sys.executable, "-m", "hetserve.cli.main", "serve"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint("tiny", path)
    return path


@contextmanager
def started(folder, *flags: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """(process, URL) of a ready server; killed on the way out if it still runs."""
    base = [*COMMAND, str(folder), "--port", "0", "--json", "--cluster", "cpu-1", "--kv-memory", "32MiB", "--dtype", "float32"]
    process = subprocess.Popen([*base, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = ""
        assert process.stdout is not None
        while not lines.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines += line
        yield process, json.loads(lines)["url"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def failed(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_serve_answers_and_drains_on_sigterm(folder):
    with started(folder, "--served-model-name", "mine") as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        whole = client.completions.create(model="mine", prompt="Hello there", max_tokens=12, temperature=0, extra_body={"return_token_ids": True})
        stream = client.completions.create(model="mine", prompt="Hello there", max_tokens=12, temperature=0, stream=True)
        text = whole.choices[0].text
        assert "".join(chunk.choices[0].text for chunk in stream) == text
        ids = whole.choices[0].token_ids
        assert load_tokenizer(folder).decode(ids) == text and whole.usage.completion_tokens == 12 == len(ids)

        stop = text[len(text) // 2 : len(text) // 2 + 3]
        stopped = client.completions.create(model="mine", prompt="Hello there", max_tokens=12, temperature=0, stop=stop)
        assert stopped.choices[0].text == text[: text.index(stop)] and stopped.choices[0].finish_reason == "stop"

        chat = client.chat.completions.create(model="mine", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, n=2, seed=1, logprobs=True)
        assert len(chat.choices) == 2 and all(len(choice.logprobs.content) == 4 for choice in chat.choices)

        running = client.completions.create(model="mine", prompt="Hello", max_tokens=300, stream=True, extra_body={"ignore_eos": True})
        next(running)
        process.send_signal(signal.SIGTERM)
        assert sum(1 for _ in running) == 299
        assert process.wait(20) == 0


def test_a_killed_worker_is_an_error_not_a_hang(folder):
    with started(folder) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=20)
        running = client.completions.create(model="tiny", prompt="Hello", max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
        next(running)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        with pytest.raises(openai.APIError, match="lost"):
            list(running)
        assert httpx.get(f"{url}/health").status_code == 503
        with pytest.raises(openai.InternalServerError, match="lost"):
            client.completions.create(model="tiny", prompt="Hello")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_signal_while_the_model_is_loaded_leaves_nothing_behind(folder):
    process = subprocess.Popen([*COMMAND, str(folder), "--port", "0", "--kv-memory", "32MiB"], stdout=subprocess.PIPE, text=True)
    while not (found := workers(process.pid)):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert not any(os.path.exists(f"/proc/{worker}") for worker in found)


def workers(pid: int) -> list[int]:
    """The engine's worker processes below a server."""
    children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [int(child) for child in children if b"engine.process" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_port_in_use_is_said_before_the_model_is_looked_at():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = failed("/no/such/model", "--port", str(port))
    assert found.returncode == ResourceError.exit_code
    assert f"port {port}" in found.stderr and "--port" in found.stderr.split("hint:")[1]


def test_what_is_no_model_is_said(tmp_path):
    found = failed(str(tmp_path), "--port", "0")
    assert found.returncode == 4 and "config.json" in found.stderr and "Traceback" not in found.stderr


def test_flags_that_contradict_a_plan_are_refused(folder, tmp_path):
    plan = system("uniform").planner(load_cluster("cpu-1"), load_model(folder), None, Options(dtype="float32", kv_memory_bytes=32 << 20))
    save_plan(plan, tmp_path / "plan.json")
    for flags, words in (
        (("--cluster", "cpu"), "--cluster"),
        (("--dtype", "bfloat16"), "float32"),
        (("--max-num-seqs", "7"), "256"),
        (("--kv-memory", "1MiB"), "KV pools"),
    ):
        found = failed(str(folder), "--port", "0", "--plan", str(tmp_path / "plan.json"), *flags)
        assert found.returncode == UsageError.exit_code and words in found.stderr


def test_binding():
    with bind("127.0.0.1", 0) as one:
        assert is_loopback(one) and url_of(one).startswith("http://127.0.0.1:")
        one.listen()
        with pytest.raises(ResourceError, match="in use"):
            bind("127.0.0.1", one.getsockname()[1])
    with bind("localhost", 0) as one:
        assert url_of(one).startswith("http://127.0.0.1:")
    for host in ("no.such.host.invalid", "a" * 100, "\udc80"):
        with pytest.raises(UsageError):
            bind(host, 0)


def test_what_other_machines_reach_is_no_loopback():
    class Bound:
        def __init__(self, *name: object) -> None:
            self.name = name

        def getsockname(self):
            return self.name

    names = {
        ("127.0.0.1", 1): True,
        ("127.8.0.1", 1): True,
        ("::1", 1, 0, 0): True,
        ("0.0.0.0", 1): False,
        ("::", 1, 0, 0): False,
        ("10.0.0.1", 1): False,
    }
    assert {name: is_loopback(Bound(*name)) for name in names} == names
    assert url_of(Bound("::1", 8, 0, 0)) == "http://[::1]:8"


def test_no_more_connections_than_files_allow():
    assert 0 < allow_connections(100) <= 100
    assert allow_connections(10**9) <= 10**9
