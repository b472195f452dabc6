"""Workers that join over tcp on loopback: the same tokens as one device, strangers stay outside, and one that goes away ends nobody else's stream."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from hetserve.control.messages import Sampling
from hetserve.engine.engine import Engine
from hetserve.engine.join import Door, Knock, knock, split_address
from hetserve.engine.keys import read_token
from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.wire import WorkerConfig
from hetserve.errors import ResourceError, UsageError, WorkerError
from hetserve.planner.options import Options
from hetserve.planner.uniform import plan_uniform
from hetserve.spec.cluster import Cluster, Device, Node
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.load import load_model
from hetserve.spec.plan import Group, Online, Pool

TOKEN = "a secret of more than sixteen characters"
MIB = 2**20
CLUSTER = Cluster(
    "two-nodes",
    (0,),
    (Device("here", "cpu", (0,), "", 512 * MIB), Device("there", "cpu", (0,), "", 512 * MIB, node="other")),
    (Node("other"),),
)
AWAY = replace(CLUSTER, devices=(replace(CLUSTER.devices[0], node="one"), CLUSTER.devices[1]), nodes=(Node("one"), Node("other")))
HELLO = Knock("there", "127.0.0.2", "amx", (0, 5), "")
PROMPTS = [[(7 * i + 3 * j) % 250 + 5 for j in range(length)] for i, length in enumerate((5, 40, 75))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint("tiny", path)
    return path


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


def make_plan(folder, cluster=CLUSTER):
    options = Options(dtype="float32", max_model_len=256, kv_memory_bytes=8 * MIB, max_seqs=8)
    alone = plan_uniform(replace(CLUSTER, devices=CLUSTER.devices[:1], nodes=()), load_model(folder), None, options)
    (stage,) = alone.groups[0].stages
    (pool,) = stage.pools
    dealt = replace(stage, attention=("there",), pools=(pool, Pool("there", pool.pages, pool.page_bytes)))
    return alone, replace(alone, cluster=cluster, groups=(Group("mixed", (dealt,)),), online=Online("even"))


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def join(address: str, token, folder, device: str = "there", **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "hetserve.cli.main", "worker", "--join", address, "--token", str(token), "--device", device]
    return subprocess.Popen([*command, "--model", str(folder)], stderr=subprocess.PIPE, text=True, **options)


async def serve(engine: Engine, meanwhile=None) -> list[list[int]]:
    await engine.start()
    try:
        ends = [asyncio.Event() for _ in PROMPTS]
        tokens: list[list[int]] = [[] for _ in PROMPTS]

        def sink(index):
            def take(output):
                tokens[index].extend(output.tokens)
                if output.finish is not None:
                    assert output.finish == "length", output.why
                    ends[index].set()
                elif meanwhile is not None:
                    meanwhile(engine)

            return take

        for index, prompt in enumerate(PROMPTS):
            engine.submit(prompt, 60, 1, (), 0, Sampling(), sink(index))
        await asyncio.wait_for(asyncio.gather(*(end.wait() for end in ends)), 60)
        return tokens
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def alone(folder):
    return asyncio.run(serve(Engine(make_plan(folder)[0], folder)))


def test_a_joined_worker_serves_heads_and_stops_with_the_engine(folder, token, alone) -> None:
    address = free_address()
    worker = join(address, token, folder)
    engine = Engine(make_plan(folder)[1], folder, door=Door(address, TOKEN.encode()))
    assert asyncio.run(serve(engine)) == alone
    assert engine.stats()["moves_total"] > 0
    assert worker.wait(20) == 0


def test_an_engine_all_of_whose_workers_joined(folder, token, alone) -> None:
    address = free_address()
    workers = [join(address, token, folder, device) for device in ("there", "here")]
    engine = Engine(make_plan(folder, AWAY)[1], folder, door=Door(address, TOKEN.encode()))
    assert asyncio.run(serve(engine)) == alone
    assert engine.worker_pids() == [] and engine.stats()["moves_total"] > 0
    assert [worker.wait(20) for worker in workers] == [0, 0]


def test_a_joined_worker_that_goes_away_ends_nobody(folder, token, alone) -> None:
    address = free_address()
    worker = join(address, token, folder)

    healthy = []

    def kill(engine):
        if engine.stats()["moves_total"] >= len(PROMPTS):
            worker.kill()
        healthy.append(engine.health()[0])

    told = []
    door = Door(address, TOKEN.encode())
    engine = Engine(make_plan(folder)[1], folder, door=door, on_lost=lambda device, reason: told.append(device))
    assert asyncio.run(serve(engine, kill)) == alone
    assert told == ["there"] and [pool.device for pool in engine.pools() if pool.lost] == told
    assert worker.wait(20) != 0
    assert all(healthy) and engine.stats()["moves_total"] >= len(PROMPTS)


def test_who_does_not_know_the_token_stays_outside(monkeypatch) -> None:
    address = free_address()
    door = Door(address, TOKEN.encode())
    monkeypatch.setattr("hetserve.engine.join.KNOCK_S", 1.0)
    try:
        with pytest.raises(WorkerError, match="did not answer"):
            knock(address, b"another secret of the same length......", HELLO)
        with pytest.raises(WorkerError, match="no device 'there' is waited for"):
            knock(address, TOKEN.encode(), HELLO)
        with pytest.raises(ResourceError):
            Door(address, TOKEN.encode())
    finally:
        door.close()
    with pytest.raises(WorkerError, match="nobody listens"):
        knock(address, TOKEN.encode(), HELLO)


def test_who_is_refused_may_knock_again(folder, tmp_path) -> None:
    other = model_fingerprint(load_model(make_checkpoint("tiny-mha", tmp_path / "mha")))
    address = free_address()
    door = Door(address, TOKEN.encode())
    config = WorkerConfig("there", (0, 5), "avx512", str(folder), "float32", (), 16, 8, 256, "")
    knocks = {
        "the cores \\[5\\]": replace(HELLO, cores=(0, 1)),
        "has avx512": replace(HELLO, isa="avx2"),
        "another shape": replace(HELLO, model=other),
    }
    try:
        door.expect(config, "steps", "results")
        for said, wrong in knocks.items():
            with pytest.raises(WorkerError, match=said):
                knock(address, TOKEN.encode(), wrong)
        answer = knock(address, TOKEN.encode(), HELLO)
        assert (answer.config, answer.steps_url) == (replace(config, address=HELLO.address), "steps")
        with pytest.raises(WorkerError, match="has joined already"):
            knock(address, TOKEN.encode(), HELLO)
    finally:
        door.close()


def test_addresses_and_tokens_are_checked(tmp_path, folder, token) -> None:
    for wrong in ("7000", ":7000", "host:", "host:0", "host:99999"):
        with pytest.raises(UsageError):
            split_address(wrong, "--join")
    short = tmp_path / "short"
    short.write_text("secret")
    for path in (tmp_path / "none", short):
        with pytest.raises(UsageError):
            read_token(path)
    with pytest.raises(UsageError, match="have to join"):
        asyncio.run(serve(Engine(make_plan(folder)[1], folder)))
    for extra, said in ((["--transport", "nixl"], "NIXL"), (["--placement", "ray"], "Ray")):
        for side in (["worker", "--join", "127.0.0.1:1", "--token", str(token), "--device", "x"], ["serve", str(folder)]):
            done = subprocess.run([sys.executable, "-m", "hetserve.cli.main", *side, *extra], capture_output=True, text=True)
            assert done.returncode == 9 and said in done.stderr
