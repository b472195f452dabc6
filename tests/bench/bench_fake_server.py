"""A made-up OpenAI server for tests: python bench_fake_server.py PORT [--fault KIND] [--noted FILE]. Its answers follow from the prompt.

It has a child process, as real servers do, and writes a line to FILE for each request it gets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web

STEP_S = 0.002
WORK_S = 0.005  # CPU time a request costs at least: what six of them use shows on a clock of 10 ms ticks
FAULTS = ("none", "status", "cut", "silent", "event", "wrong", "short", "no-ids", "dies")


def token(prompt: list[int], index: int) -> int:
    """What this server answers: a function of prompt and position."""
    return (sum(prompt) * 31 + 7 * index) % 997


class Fake:
    def __init__(self, fault: str = "none", noted: Path | None = None, model: str = "fake") -> None:
        self.fault, self.noted, self.model = fault, noted, model
        self.running = self.most_running = 0
        self.bodies: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def metrics(self, _: web.Request) -> web.Response:
        lines = (f'vllm:num_requests_running{{engine="0"}} {float(self.running)}', "vllm:num_requests_waiting 0.0")
        counts = (f'hetserve:engine_kv_tokens{{engine="0"}} {100.0 * self.running}', f"vllm:num_preemptions_total {len(self.bodies)}")
        done = len(self.bodies)  # 4 steps of 50 ms a request, and 1 ms of its controller's time
        steps = (f"hetserve:engine_steps_total {4 * done}", f"hetserve:engine_step_s {0.2 * done}", f"hetserve:engine_controller_s {0.001 * done}")
        return web.Response(text="\n".join((*lines, *counts, *steps)) + "\n")

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.model, "root": "/nowhere", "max_model_len": 4096}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.noted:
            with self.noted.open("a") as file:
                file.write(json.dumps({"at_s": time.time(), "prompt": len(body["prompt"]), "max_tokens": body["max_tokens"]}) + "\n")
        worked_s = time.process_time() + WORK_S
        while time.process_time() < worked_s:
            pass
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._answer(request, body)
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, list[int]]) -> web.StreamResponse:
        prompt, count = body["prompt"], int(body["max_tokens"])  # type: ignore[call-overload]
        if self.fault == "dies":
            sys.exit(3)
        if self.fault == "status":
            return web.json_response({"error": {"message": "no room"}}, status=503)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        if self.fault == "event":
            await _say(answer, {"error": {"message": "worker lost"}})
        if self.fault in ("event", "silent"):
            await answer.write(b"data: [DONE]\n\n")
            return answer
        count = count - 1 if self.fault == "short" else count
        for index in range(count):
            await asyncio.sleep(STEP_S)
            if self.fault == "cut" and index == 2:
                assert request.transport is not None
                request.transport.abort()
                return answer
            await _say(answer, {"choices": [self._choice(prompt, index, count)]})
        await answer.write(b": a comment, as pings are\n\n")
        await _say(answer, {"choices": [], "usage": {"prompt_tokens": len(prompt), "completion_tokens": count}})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    def _choice(self, prompt: list[int], index: int, count: int) -> dict[str, object]:
        said = token(prompt, index) + (self.fault == "wrong" and index >= 2)
        ids = {} if self.fault == "no-ids" else {"token_ids": [said]}
        return {"index": 0, "text": f"t{said} ", "finish_reason": "length" if index == count - 1 else None, **ids}


async def _say(answer: web.StreamResponse, event: dict[str, object]) -> None:
    await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--noted", type=Path)
    parser.add_argument("--model", default="fake")
    given = parser.parse_args()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"child {child.pid}", flush=True)
    web.run_app(Fake(given.fault, given.noted, given.model).app(), host="127.0.0.1", port=given.port, print=None, handle_signals=True)


if __name__ == "__main__":
    main()
