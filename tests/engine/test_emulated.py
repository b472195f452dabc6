"""Devices and links made slower on purpose are so much slower, and nothing else changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import torch

from hetserve.control.messages import Sampling
from hetserve.engine.engine import Engine
from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.slack import without_slack
from hetserve.engine.stretch import StretchedPass
from hetserve.engine.transport.link import PeerLost
from hetserve.engine.transport.local import LocalHub, LocalLinks
from hetserve.engine.transport.paced import PacedLink
from hetserve.planner.options import Options
from hetserve.planner.uniform import plan_uniform
from hetserve.spec.cluster import Cluster, Device, Link, Stretch
from hetserve.spec.load import load_model
from hetserve.spec.plan import Group, Online, Pool


def burn(seconds: float) -> None:
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        pass


def test_a_stretched_device_sleeps_in_proportion_to_its_cpu_time() -> None:
    def attend(layer, q, k, v):
        burn(0.02)
        return q

    began_s, cpu_s = time.monotonic(), time.process_time()
    with without_slack():
        stretched = StretchedPass(attend, Stretch(dense=3.0, attention=2.0))
        for layer in range(4):
            burn(0.02)
            stretched(layer, *[torch.zeros(1)] * 3)
        stretched.finish()
    wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    assert cpu_s == pytest.approx(0.16, rel=0.2)
    assert wall_s >= 0.95 * (4 * 0.02 * 3 + 4 * 0.02 * 2)  # at least that long; a busy machine adds to it


def test_a_paced_link_delivers_in_order_no_earlier_than_declared() -> None:
    hub = LocalHub()
    sender = PacedLink(LocalLinks(hub, "a").connect("b", "steps"), 0.02, 1e6)
    receiver = LocalLinks(hub, "b").connect("a", "steps")
    began_s = time.monotonic()
    messages = [torch.full((10_000,), value, dtype=torch.uint8) for value in range(3)]  # 10 ms each on the wire
    sends = [sender.isend(message, 0) for message in messages]
    assert time.monotonic() - began_s < 0.015, "posting does not wait"
    for value, took_s in ((0, 0.03), (1, 0.04), (2, 0.05)):
        into = torch.empty(10_000, dtype=torch.uint8)
        receiver.post_recv(into, 0).wait(5)
        assert (into == value).all() and time.monotonic() - began_s >= took_s
    for send in sends:
        send.wait(5)
    sender.close()


def test_a_lost_peer_is_noticed_through_a_paced_link() -> None:
    hub = LocalHub()
    link = PacedLink(LocalLinks(hub, "a").connect("b", "steps"), 0.01, 1e9)
    hub.leave("b")
    with pytest.raises(PeerLost):
        link.isend(torch.zeros(4), 0).wait(5)
    link.close()


async def run(engine: Engine) -> list[int]:
    """The answer to one prompt."""
    await engine.start()
    tokens: list[int] = []
    ended = asyncio.Event()

    def sink(output) -> None:
        tokens.extend(output.tokens)
        if output.finish is not None:
            ended.set()

    try:
        engine.submit([5 + 3 * i % 250 for i in range(40)], 12, 1, (), 0, Sampling(), sink)
        await asyncio.wait_for(ended.wait(), 60)
        return tokens
    finally:
        await engine.close()


def test_an_emulated_cluster_says_the_same_later(tmp_path) -> None:
    make_checkpoint("tiny", tmp_path / "tiny")
    devices = (Device("fast", "cpu", (0,), "", 2**29), Device("slow", "cpu", (0,), "", 2**29))
    spec, options = load_model(tmp_path / "tiny"), Options(dtype="float32", max_model_len=128, kv_memory_bytes=4 * 2**20, max_seqs=4)
    plan = plan_uniform(Cluster("pair", (0,), devices), spec, None, options)
    (stage,) = plan.groups[0].stages
    dealt = replace(stage, attention=("slow",), pools=(*stage.pools, Pool("slow", stage.pools[0].pages, stage.pools[0].page_bytes)))
    plan = replace(plan, groups=(Group("mixed", (dealt,)),), online=Online("even"))
    links = (Link("fast", "slow", 0.01, 1e9, emulate=True), Link("slow", "fast", 0.01, 1e9, emulate=True))
    stretched = tuple(replace(device, stretch=Stretch(2.0, 2.0)) for device in devices)
    slowed = replace(plan, cluster=replace(plan.cluster, devices=stretched, links=links))
    answers, took_s = [], []
    for one in (plan, slowed):
        engine = Engine(one, tmp_path / "tiny", in_process=True)
        answers.append(asyncio.run(run(engine)))
        took_s.append(engine.stats()["model_s"])
        assert engine.stats()["moves_total"] == 1
    assert answers[0] == answers[1]
    assert took_s[1] - took_s[0] > 5 * spec.layers * 2 * 0.01, "at least five steps with heads over there, each layer there and back"
