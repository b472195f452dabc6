"""Links between GPUs, over gloo groups that wait as NCCL's communicators do: every order of both ends comes through, and lost peers are found."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from devices_stand_in import PlainGpu
from groups_stand_in import StreamGroups
from nccl_peer import GPUS, one_stage, serve_over_groups, vanish
from net_peer import answer
from test_connect import make_config, stage
from test_net import start_process
from test_transport import gloo_pair, local_pair

from hetserve.engine.heads import RemoteHeads
from hetserve.engine.transport import nccl as nccl_module
from hetserve.engine.transport.dispatch import LinkDispatch
from hetserve.engine.transport.gloo import GlooLinks
from hetserve.engine.transport.link import HEADS, HIDDEN, KV, MOVES, STEPS, TOKENS, PeerLost, make_tag
from hetserve.engine.transport.local import LocalHub, LocalLinks
from hetserve.engine.transport.nccl import NcclLink, NcclLinks, _Incoming, nccl_groups
from hetserve.engine.wire import GroupLayout

WAIT_S = 20.0
# a and b: stages of one group, attention workers for each other in two more
LAYOUT = (
    GroupLayout((stage((0, 2), "a"), stage((2, 4), "b", 1)), False),
    GroupLayout((stage((0, 4), "ab"),), False),
    GroupLayout((stage((0, 4), "ba"),), False),
)
FIRST, SECOND = make_tag(HEADS, 1, 0), make_tag(HEADS, 2, 0)


def both(run: Callable[[str, str], Any]) -> dict[str, Any]:
    """What `run(device, peer)` gives on a thread for each end; an error of one is raised."""
    results: dict[str, Any] = {}
    errors: list[BaseException] = []

    def end(device: str, peer: str) -> None:
        try:
            results[device] = run(device, peer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=end, args=pair) for pair in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def connect(folder: Path, plane: str = STEPS, shared: bool = False) -> dict[str, NcclLink]:
    """Both ends of a link, by device."""
    made = both(
        lambda device, peer: NcclLinks(
            make_config(device, GPUS, (), LAYOUT),
            PlainGpu(),
            GlooLinks(str(folder), device, "127.0.0.1").connect,
            StreamGroups(str(folder), device, shared, 2.0 if shared else WAIT_S),
        ).connect(peer, plane)
    )
    return {device: made[device] for device in "ab"}


@pytest.fixture
def links(tmp_path):
    links = connect(tmp_path)
    yield links
    for link in links.values():
        link.close()


class Never:
    """A group of which nothing comes."""

    aborted = False

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> SimpleNamespace:
        return SimpleNamespace(is_completed=lambda: False)

    recv = send

    def abort(self) -> None:
        self.aborted = True


def waiting_link(host, announced: bool = False) -> tuple[NcclLink, list[Never]]:
    """A link whose groups never finish anything."""
    link, groups = NcclLink(host, 1, announced), [Never(), Never()]
    link.outgoing[1], link.incoming[1] = groups[0], _Incoming(groups[1])
    return link, groups


def cross(link: NcclLink, device: str, timeout_s: float) -> float:
    """Sends on one tag, then receives on the other, as the other end does with the tags exchanged."""
    own, theirs = (FIRST, SECOND) if device == "a" else (SECOND, FIRST)
    into = torch.zeros(4)
    sending = link.isend(torch.full((4,), float(own)), own)
    link.post_recv(into, theirs).wait(timeout_s)
    sending.wait(timeout_s)
    return float(into[0])


def test_two_that_send_before_they_receive_both_come_through(links):
    assert both(lambda device, peer: cross(links[device], device, WAIT_S)) == {"a": SECOND, "b": FIRST}


def test_on_one_communicator_they_would_wait_for_each_other(tmp_path):
    """So the test before can fail."""
    links = connect(tmp_path, shared=True)
    with pytest.raises(PeerLost):
        both(lambda device, peer: cross(links[device], device, 0.5))


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_tags_and_directions_comes_through(links, seed):
    """Within a tag in the order it was sent; receives are posted and waited for in any order of tags, tokens go by the host's link."""
    count = 12
    sends = {"a": (make_tag(HIDDEN, 0, 1), FIRST, SECOND, make_tag(TOKENS, 3)), "b": (FIRST, SECOND, make_tag(TOKENS, 3))}

    def run(device: str, peer: str) -> None:
        rng, link = random.Random(f"{seed}{device}"), links[device]
        left = [(tag, "send") for tag in sends[device] for _ in range(count)] + [(tag, "receive") for tag in sends[peer] for _ in range(count)]
        rng.shuffle(left)
        numbers = dict.fromkeys(set(left), 0)
        sending, receiving = [], []
        for tag, way in left:
            number, numbers[tag, way] = numbers[tag, way], numbers[tag, way] + 1
            if way == "send":
                data = torch.full((500 * (1 + tag % 7),), float(1000 * tag + number))
                sending.append((link.isend(data, tag), data))
            else:
                into = torch.zeros(500 * (1 + tag % 7))
                receiving.append((link.post_recv(into, tag), into, 1000 * tag + number))
        order = list(range(len(receiving)))
        rng.shuffle(order)
        for place in order:
            pending, into, expected = receiving[place]
            pending.wait(WAIT_S)
            assert float(into[0]) == float(into[-1]) == expected
        for pending, _ in sending:
            pending.wait(WAIT_S)

    both(run)


def test_moves_have_groups_of_their_own(tmp_path):
    tag, links = make_tag(KV), connect(tmp_path, MOVES)
    assert [list(link.outgoing) for link in links.values()] == [list(link.incoming) for link in links.values()] == [[tag], [tag]]
    into = {device: torch.zeros(4) for device in "ab"}

    def run(device: str, peer: str) -> None:
        sends = [links[device].isend(torch.full((4,), float(ord(device))), tag) for _ in range(3)]
        receives = [links[device].post_recv(into[device], tag) for _ in range(3)]
        for one in (*receives, *sends):
            one.wait(WAIT_S)

    both(run)
    assert [float(one[0]) for one in into.values()] == [ord("b"), ord("a")]


def test_a_receive_is_given_to_the_group_when_it_is_waited_for():
    link, groups = waiting_link(local_pair(None)[0])
    given: list[torch.Tensor] = []
    groups[1].recv = lambda tensors, peer, tag: given.append(tensors[0]) or SimpleNamespace(is_completed=lambda: True, wait=lambda: None)  # type: ignore[method-assign, func-returns-value]
    receives = [link.post_recv(torch.full((1,), float(number)), 1) for number in range(3)]
    assert not given
    receives[1].wait(1)
    assert [float(one) for one in given] == [0, 1], "those of the tag that were posted before too"
    receives[0].wait(1)
    receives[2].wait(1)
    assert [float(one) for one in given] == [0, 1, 2]


def test_a_receive_of_a_move_is_given_to_the_group_when_the_sender_has_sent():
    """It may be posted a whole step before, and would turn on the GPU all the time."""
    here, there = local_pair(None)
    link, groups = waiting_link(here, announced=True)
    sender, _ = waiting_link(there, announced=True)
    given = threading.Event()
    groups[1].recv = lambda tensors, peer, tag: given.set() or SimpleNamespace(is_completed=lambda: True, wait=lambda: None)  # type: ignore[method-assign]
    waiting = threading.Thread(target=link.post_recv(torch.zeros(1), 1).wait, args=(WAIT_S,))
    waiting.start()
    assert not given.wait(0.2)
    sender.isend(torch.zeros(1), 1)
    assert given.wait(WAIT_S)
    waiting.join(WAIT_S)
    with pytest.raises(PeerLost):
        link.post_recv(torch.zeros(1), 1).wait(0.1)
    assert all(group.aborted for group in groups)


@pytest.mark.parametrize("what", ["send", "receive"])
def test_a_silent_peer_is_lost_in_time_and_for_good(what):
    link, groups = waiting_link(local_pair(None)[0])
    pending = link.isend(torch.zeros(1), 1) if what == "send" else link.post_recv(torch.zeros(1), 1)
    other = link.post_recv(torch.zeros(1), 1)
    began_s = time.monotonic()
    with pytest.raises(PeerLost, match="does not answer"):
        pending.wait(0.2)
    assert 0.15 < time.monotonic() - began_s < 5
    assert all(group.aborted for group in groups), "or kernels would turn on the GPU for ever"
    for use in (lambda: link.isend(torch.zeros(1), 1), lambda: link.post_recv(torch.zeros(1), 1), lambda: link.isend(torch.zeros(1), 9)):
        with pytest.raises(PeerLost):
            use()
    with pytest.raises(PeerLost):
        other.wait(1)


def test_a_peer_that_goes_away_is_found_long_before_the_time_is_over():
    hub = LocalHub()
    link, groups = waiting_link(LocalLinks(hub, "a").connect("b", STEPS))
    threading.Timer(0.2, hub.leave, "b").start()
    began_s = time.monotonic()
    with pytest.raises(PeerLost):
        link.post_recv(torch.zeros(1), 1).wait(WAIT_S)
    assert time.monotonic() - began_s < 5 and all(group.aborted for group in groups)


def test_a_process_that_is_killed_is_found_over_gloo(tmp_path):
    peer = start_process(vanish, str(tmp_path), "b", 1.0)
    link, _ = waiting_link(GlooLinks(str(tmp_path), "a", "127.0.0.1").connect("b", STEPS))
    began_s = time.monotonic()
    with pytest.raises(PeerLost):
        link.post_recv(torch.zeros(1), 1).wait(WAIT_S)
    assert time.monotonic() - began_s < WAIT_S / 2
    peer.join()


def test_a_peer_may_be_asked_many_times(tmp_path, monkeypatch):
    """Nobody receives what it is asked with, and nothing comes of that."""
    monkeypatch.setattr(nccl_module, "ASK_S", 0.0)
    here, there = gloo_pair(tmp_path)
    link, _ = waiting_link(here)
    done = threading.Event()
    waiting = threading.Thread(target=link.finish, args=(SimpleNamespace(is_completed=done.is_set, wait=lambda: None), WAIT_S))
    waiting.start()
    time.sleep(1)
    done.set()
    waiting.join(WAIT_S)
    into = torch.zeros(2)
    receiving, sending = there.post_recv(into, 9), link.isend(torch.ones(2), 9)
    receiving.wait(WAIT_S)
    sending.wait(WAIT_S)
    assert into.tolist() == [1.0, 1.0]


def test_a_group_that_fails_loses_the_peer():
    link, groups = waiting_link(local_pair(None)[0])

    def fail() -> None:
        raise RuntimeError("NCCL error: unhandled cuda error\nmore of it")

    groups[0].send = lambda tensors, peer, tag: SimpleNamespace(is_completed=lambda: True, wait=fail)  # type: ignore[method-assign]
    with pytest.raises(PeerLost, match=r"^NCCL error: unhandled cuda error$"):
        link.isend(torch.zeros(1), 1).wait(1)
    assert all(group.aborted for group in groups)
    link, groups = waiting_link(local_pair(None)[0])
    groups[0].send = lambda tensors, peer, tag: fail()  # type: ignore[assignment, method-assign]
    with pytest.raises(PeerLost):
        link.isend(torch.zeros(1), 1)


def test_a_link_closed_from_another_thread_ends_a_wait():
    link, groups = waiting_link(local_pair(None)[0])
    threading.Timer(0.2, link.close).start()
    with pytest.raises(PeerLost):
        link.post_recv(torch.zeros(1), 1).wait(WAIT_S)
    assert all(group.aborted for group in groups)


def test_a_steps_heads_over_it(tmp_path):
    """A primary's packing and an attention worker's loop, in two processes."""
    layers, pairs = 5, torch.tensor([[0, 1], [1, 0], [2, 2]], dtype=torch.int32)
    worker = start_process(serve_over_groups, str(tmp_path), (2, 16), layers, [len(pairs)] * 2)
    link = one_stage(str(tmp_path), "a", layers).connect("b", STEPS)
    remote = RemoteHeads("b", link, make_tag(HEADS), SimpleNamespace(group=2, head_dim=16), torch.float32)  # type: ignore[arg-type]
    for _ in range(2):
        remote.begin(pairs.numpy(), layers, WAIT_S)
        dispatch = LinkDispatch([remote.part])
        for _ in range(layers):
            q, k, v = torch.randn(3, 3 * 32), torch.randn(3, 3 * 16), torch.randn(3, 3 * 16)
            out = torch.zeros(3, 3 * 32)
            dispatch.send(q, k, v)
            dispatch.collect(out)
            expected = torch.zeros(3, 3, 2, 16)
            whole = answer(q.view(9, 2, 16), k.view(9, 16), v.view(9, 16)).view(3, 3, 2, 16)
            for row, head in pairs.tolist():
                expected[row, head] = whole[row, head]
            assert torch.equal(out.view(3, 3, 2, 16), expected)
    worker.join(WAIT_S)
    assert worker.exitcode == 0 and not remote.lost
    link.close()


def test_without_nccl_there_are_no_groups(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert nccl_groups(make_config("a", GPUS)) is None


def test_what_torchs_groups_are_made_with(tmp_path, monkeypatch):
    """Both ends meet in one place of the store, under different ranks, and no thread of torch's may end the process."""

    class Nccl:
        Options = SimpleNamespace

        def __init__(self, store, rank: int, size: int, options: SimpleNamespace) -> None:
            self.store, self.place, self.options = store, (rank, size), options
            self.waits = os.environ["TORCH_NCCL_BLOCKING_WAIT"]

    for name in nccl_module.ENVIRONMENT:
        monkeypatch.setenv(name, "not set yet")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Nccl, raising=False)
    made = {}
    for device, peer in ("ab", "ba"):
        make = nccl_groups(replace(make_config(device, GPUS), meeting=str(tmp_path)))
        made[device] = [make(peer, name) for name in ("steps|0|a", "moves|4|a")]
    assert [[group.place for group in groups] for groups in made.values()] == [[(0, 2)] * 2, [(1, 2)] * 2]
    assert [group.options.is_high_priority_stream for group in made["a"]] == [True, False]
    assert all(group.waits == "1" for groups in made.values() for group in groups)
    for number, (one, other) in enumerate(zip(*made.values(), strict=True)):
        one.store.set("id", str(number))
        assert other.store.get("id") == str(number).encode()
