"""Links between workers: order within a tag, tags apart, and what a peer that leaves or stays silent does to whoever waits."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from hetserve.engine.transport.gloo import GlooLinks
from hetserve.engine.transport.link import KINDS, MOST_STAGES, PeerLost, make_tag
from hetserve.engine.transport.local import LocalHub, LocalLinks


def local_pair(folder):
    hub = LocalHub()
    return LocalLinks(hub, "a").connect("b", "steps"), LocalLinks(hub, "b").connect("a", "steps")


def gloo_pair(folder):
    made = {}

    def connect(device: str, peer: str) -> None:
        made[device] = GlooLinks(str(folder), device, "127.0.0.1").connect(peer, "steps")

    other = threading.Thread(target=connect, args=("b", "a"))
    other.start()
    connect("a", "b")
    other.join()
    return made["a"], made["b"]


@pytest.fixture(params=[local_pair, gloo_pair], ids=["local", "gloo"])
def pair(request, tmp_path):
    return request.param(tmp_path)


def test_messages_of_a_tag_keep_their_order_and_tags_do_not_mix(pair):
    here, there = pair
    into = {(tag, i): torch.zeros(3) for tag in (1, 2) for i in (0, 1)}
    receives = {key: there.post_recv(tensor, key[0]) for key, tensor in into.items()}
    sends = [here.isend(torch.full((3,), 10.0 * tag + i), tag) for i in (0, 1) for tag in (2, 1)]
    for receive in receives.values():
        receive.wait(5)
    for send in sends:
        send.wait(5)
    assert {key: tensor.tolist() for key, tensor in into.items()} == {(tag, i): [10.0 * tag + i] * 3 for tag, i in into}


def test_a_silent_peer_is_lost_in_time_and_for_good(pair):
    here, _ = pair
    began_s = time.monotonic()
    with pytest.raises(PeerLost):
        here.post_recv(torch.zeros(1), 1).wait(0.2)
    assert 0.15 < time.monotonic() - began_s < 5
    with pytest.raises(PeerLost):
        here.isend(torch.zeros(1), 1)
    with pytest.raises(PeerLost):
        here.post_recv(torch.zeros(1), 1)


def test_tags_are_all_different():
    tags = {make_tag(kind, group, stage) for kind in range(KINDS) for group in range(3) for stage in range(MOST_STAGES)}
    assert len(tags) == KINDS * 3 * MOST_STAGES
