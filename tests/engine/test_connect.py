"""Which link joins two devices: a table. Both ends have to agree wherever it matters to the other."""

from __future__ import annotations

import pytest
import torch
from devices_stand_in import PlainGpu

from hetserve.engine.accelerator import Accelerator, CpuAccelerator
from hetserve.engine.transport import connect as connect_module
from hetserve.engine.transport.connect import make_connect
from hetserve.engine.transport.link import HEADS, HIDDEN, KV, MOVES, STEPS, make_tag
from hetserve.engine.transport.local import LocalHub, LocalLink, LocalLinks
from hetserve.engine.transport.nccl import device_messages
from hetserve.engine.transport.paced import PacedLink
from hetserve.engine.transport.staged import StagedLink
from hetserve.engine.wire import Gpu, GroupLayout, PoolLayout, StageLayout, WorkerConfig
from hetserve.spec.cluster import CPU, CUDA, EMULATED, Device, Link


def stage(layers: tuple[int, int], devices: str, first_pool: int = 0) -> StageLayout:
    return StageLayout(layers, "float32", tuple(PoolLayout(device, 4) for device in devices), first_pool)


def make_config(device: str, devices: tuple[Device, ...], links: tuple[Link, ...] = (), groups: tuple[GroupLayout, ...] = ()) -> WorkerConfig:
    """As `channel.make_channels` does it."""
    gpus = tuple(Gpu(one.name, one.kind, one.index, one.node) for one in devices if one.is_gpu)
    own = next(one for one in devices if one.name == device)
    slowed = tuple(link for link in links if device in (link.source, link.target))
    return WorkerConfig(device, (0,), "", "", "float32", groups, 16, 4, 64, "", slowed=slowed, kind=own.kind, index=own.index, gpus=gpus)


def make_device(name: str, kind: str, index: int = 0, node: str = "") -> Device:
    return Device(name, kind, (0,), "", 2**30, None, node, index)


A_CPU, A_GPU, A_EMULATED = make_device("a", CPU), make_device("a", CUDA), make_device("a", EMULATED)
SLOW = Link("b", "a", 0.1, 1e9, emulate=True)

# (device a, device b, links): (from a to b, from b to a), the outermost first
TABLE = {
    "CPUs": ((A_CPU, make_device("b", CPU), ()), ("host", "host")),
    "CPUs, slowed one way": ((A_CPU, make_device("b", CPU), (SLOW,)), ("host", "paced host")),
    "GPU and CPU": ((A_GPU, make_device("b", CPU), ()), ("staged host", "host")),
    "GPU and CPU, slowed one way": ((make_device("a", CPU), make_device("b", CUDA), (SLOW,)), ("host", "staged paced host")),
    "emulated GPU and CPU": ((A_EMULATED, make_device("b", CPU), ()), ("staged host", "host")),
    "two GPUs": ((A_GPU, make_device("b", CUDA, 1), ()), ("nccl", "nccl")),
    "two GPUs, slowed one way": ((A_GPU, make_device("b", CUDA, 1), (SLOW,)), ("staged host", "staged paced host")),
    "one GPU": ((A_GPU, make_device("b", CUDA), ()), ("staged host", "staged host")),
    "GPUs of two nodes": ((A_GPU, make_device("b", CUDA, 1, "far"), ()), ("staged host", "staged host")),
    "GPUs of one far node": ((make_device("a", CUDA, 0, "far"), make_device("b", CUDA, 1, "far"), ()), ("nccl", "nccl")),
    "emulated GPUs": ((A_EMULATED, make_device("b", EMULATED, 1), ()), ("staged host", "staged host")),
    "GPU and emulated GPU": ((A_GPU, make_device("b", EMULATED, 1), ()), ("staged host", "staged host")),
}


class Nccl:
    """Stands for NcclLinks, which would wait for the peer."""

    def __init__(self, *arguments: object) -> None:
        pass

    def connect(self, peer: str, plane: str) -> str:
        return f"nccl {peer} {plane}"


def kind_of(link: object) -> str:
    if isinstance(link, str):
        return link.split()[0]
    if isinstance(link, LocalLink):
        return "host"
    assert isinstance(link, (StagedLink, PacedLink))
    return ("staged " if isinstance(link, StagedLink) else "paced ") + kind_of(link._link)


@pytest.mark.parametrize("nccl", [True, False], ids=["", "without NCCL"])
@pytest.mark.parametrize(("devices", "expected"), TABLE.values(), ids=TABLE.keys())
def test_the_link_between_two_devices(devices, expected, nccl, monkeypatch):
    monkeypatch.setattr(connect_module, "NcclLinks", Nccl)
    *pair, links = devices
    hub, found = LocalHub(), []
    for own, peer in (pair, reversed(pair)):
        at: Accelerator = PlainGpu() if own.is_gpu else CpuAccelerator()
        config = make_config(own.name, tuple(pair), links)
        connect = make_connect(config, at, LocalLinks(hub, own.name).connect, (lambda peer, name: None) if nccl else None)  # type: ignore[arg-type, return-value]
        made = {kind_of(connect(peer.name, plane)) for plane in (STEPS, MOVES)}
        assert len(made) == 1
        found.append(made.pop())
    assert tuple(found) == (expected if nccl else tuple(one.replace("nccl", "staged host") for one in expected))


def test_a_gpus_tensors_reach_a_cpu_over_a_slowed_link():
    devices = (make_device("a", CPU), make_device("b", EMULATED))
    hub, links = LocalHub(), (Link("b", "a", 0.01, 1e9, emulate=True),)
    gpu = make_connect(make_config("b", devices, links), PlainGpu(), LocalLinks(hub, "b").connect, None)("a", STEPS)
    cpu = make_connect(make_config("a", devices, links), CpuAccelerator(), LocalLinks(hub, "a").connect, None)("b", STEPS)
    data, into = torch.ones(5), torch.zeros(5)
    receiving, sending = cpu.post_recv(into, 3), gpu.isend(data, 3)
    data.zero_()
    receiving.wait(5)
    sending.wait(5)
    gpu.close()
    assert into.tolist() == [1.0] * 5


def test_what_travels_between_two_devices_is_the_same_list_at_both_ends():
    """a: primary of two groups' first stages; b: of the second stage of one, attention worker of the other; c: attention worker for b."""
    groups = (
        GroupLayout((stage((0, 2), "a"), stage((2, 4), "bc", 1)), False),
        GroupLayout((stage((0, 4), "acb"),), False),
        GroupLayout((stage((0, 4), "d"),), False),
    )
    devices = tuple(make_device(name, CUDA, index) for index, name in enumerate("abcd"))
    messages = {
        frozenset(pair): [device_messages(make_config(one, devices, (), groups), other, STEPS) for one, other in (pair, reversed(pair))]
        for pair in ("ab", "ac", "bc", "ad")
    }
    for one, other in messages.values():
        assert one == other
    heads = make_tag(HEADS, 1, 0)
    assert messages[frozenset("ab")][0] == sorted([(make_tag(HIDDEN, 0, 1), "a"), (heads, "a"), (heads, "b")])
    assert messages[frozenset("ac")][0] == [(heads, "a"), (heads, "c")]
    assert messages[frozenset("bc")][0] == [(make_tag(HEADS, 0, 1), "b"), (make_tag(HEADS, 0, 1), "c")]
    assert messages[frozenset("ad")][0] == []
    assert device_messages(make_config("d", devices, (), groups), "a", MOVES) == [(make_tag(KV), "a"), (make_tag(KV), "d")]
