"""Links of a device over links of the host: the same messages, in buffers that are used again but never too early."""

from __future__ import annotations

import threading

import pytest
import torch
from devices_stand_in import LateGpu, make_at
from test_transport import gloo_pair, local_pair

from hetserve.engine.accelerator import CpuAccelerator
from hetserve.engine.transport import staged as staged_module
from hetserve.engine.transport.dispatch import Part
from hetserve.engine.transport.link import PeerLost
from hetserve.engine.transport.posting import make_dispatch, make_exchange
from hetserve.engine.transport.staged import Buffers, StagedLink

WAIT_S = 10


@pytest.fixture(params=[local_pair, gloo_pair], ids=["local", "gloo"])
def pair(request, tmp_path):
    return request.param(tmp_path)


@pytest.mark.parametrize("kind", ["gpu", "cuda"])
@pytest.mark.parametrize("ends", [(True, True), (True, False), (False, True)], ids=["two GPUs", "to a CPU", "from a CPU"])
def test_what_arrives_is_what_was_sent(pair, ends, kind):
    at = [make_at(kind if is_gpu else "cpu") for is_gpu in ends]
    here, there = (StagedLink(link, one) if one.is_gpu else link for link, one in zip(pair, at, strict=True))
    for turn in range(3):
        source = (torch.randn(40, 6) + turn).to(at[0].device)
        sent = [source[:30], source.bfloat16()[3:20], source[:0], torch.arange(5), source[:8].t()]
        sent = sent if ends[0] else [one.contiguous() for one in sent]
        into = [torch.zeros(one.shape, dtype=one.dtype, device=at[1].device) for one in sent]
        receives = [there.post_recv(one, 1) for one in into]
        sends = [here.isend(one, 1) for one in sent]
        for one in (*receives, *sends):
            one.wait(WAIT_S)
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(sent, into, strict=True))


def test_what_was_sent_may_be_overwritten_and_many_messages_need_few_buffers(pair):
    """At most so many as are under way at a time."""
    at = LateGpu()
    here, there = (StagedLink(link, at) for link in pair)
    data, into = torch.zeros(3000), [torch.zeros(3000) for _ in range(4)]
    for turn in range(0, 40, 4):
        receives, sends = [there.post_recv(one, 1) for one in into], []
        for offset in range(4):
            data.fill_(turn + offset)
            sends.append(here.isend(data, 1))
        for one in (*receives, *sends):
            one.wait(WAIT_S)
        assert [float(one[0]) for one in into] == [float(one[-1]) for one in into] == [turn, turn + 1, turn + 2, turn + 3]
    assert len(at.made) == 8


def test_a_message_leaves_when_the_copy_to_the_host_is_done():
    at, steps = LateGpu(late=True), []

    class Inner:
        def isend(self, data: torch.Tensor, tag: int):
            steps.append((at.marks[-1].passed.is_set(), data.clone(), tag))

    sending = threading.Thread(target=StagedLink(Inner(), at).isend, args=(torch.ones(4), 7))  # type: ignore[arg-type]
    sending.start()
    sending.join(0.1)
    assert sending.is_alive() and not steps
    at.go_on()
    sending.join(WAIT_S)
    assert [(passed, data.tolist(), tag) for passed, data, tag in steps] == [(True, [1.0] * 4, 7)]


def test_a_layers_messages_leave_once_the_device_has_its_own_work(tmp_path):
    """`send` waits for no copy; `collect` sends to all workers before it waits for the answer of any."""
    at = LateGpu()
    pairs, q, k = torch.tensor([[0, 0]], dtype=torch.int32), torch.randn(1, 32), torch.randn(1, 16)
    there, parts, answers = [], [], []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        here, other = local_pair(tmp_path / str(number))
        there.append(other)
        exchange = make_exchange(StagedLink(here, at), 1)
        packet, answer = torch.zeros(64), torch.zeros(1, 32)
        exchange.begin(packet, answer, torch.zeros(1, 32), 1, WAIT_S)
        parts.append(Part(exchange, pairs, packet[:32].view(1, 32), packet[32:48].view(1, 16), packet[48:].view(1, 16), (answer, answer)))
    dispatch = make_dispatch(parts)
    at.late, before = True, len(at.marks)
    dispatch.send(q, k, k)
    copied = at.marks[before:]
    assert len(copied) == 2 and not any(mark.waited for mark in copied)
    collecting = threading.Thread(target=lambda: answers.append(dispatch.collect(torch.zeros(1, 32))))
    collecting.start()
    collecting.join(0.1)
    assert collecting.is_alive() and copied[0].waited == 1
    at.late = False
    at.go_on()
    for link in reversed(there):  # the second worker is told before the first has answered
        link.post_recv(into := torch.zeros(64), 1).wait(WAIT_S)
        assert torch.equal(into, torch.cat([q[0], k[0], k[0]]))
    for link in there:
        link.isend(torch.ones(1, 32), 1)
    collecting.join(WAIT_S)
    assert len(answers) == 1


def test_a_buffer_is_used_again_when_the_copy_to_the_device_is_done(tmp_path):
    """Nobody waits for that copy before."""
    at = LateGpu()
    here, there = local_pair(tmp_path)
    link = StagedLink(there, at)
    into = torch.zeros(4)
    first = link.post_recv(into, 1)
    here.isend(torch.ones(4), 1)
    at.late = True
    first.wait(WAIT_S)
    copied = at.marks[-1]
    assert into.tolist() == [1.0] * 4 and not copied.waited
    posting = threading.Thread(target=link.post_recv, args=(into, 1))
    posting.start()
    posting.join(0.1)
    assert posting.is_alive() and copied.waited == 1
    at.go_on()
    posting.join(WAIT_S)
    assert not posting.is_alive() and len(at.made) == 1


def test_what_is_on_the_host_passes_through(tmp_path):
    class OnGpu(CpuAccelerator):
        device = torch.device("cuda", 0)

        def host(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
            raise AssertionError("nothing is to be copied")

    here, there = local_pair(tmp_path)
    into = torch.zeros(3, dtype=torch.int32)
    receiving = StagedLink(there, OnGpu()).post_recv(into, 2)
    StagedLink(here, OnGpu()).isend(torch.tensor([1, 2, 3], dtype=torch.int32), 2).wait(WAIT_S)
    receiving.wait(WAIT_S)
    assert into.tolist() == [1, 2, 3]


def test_a_lost_peer_is_lost_and_its_buffers_are_not_used_again(pair):
    at = LateGpu()
    link = StagedLink(pair[0], at)
    receiving = link.post_recv(torch.zeros(4), 1)
    with pytest.raises(PeerLost):
        receiving.wait(0.2)
    assert link._buffers.free_bytes == 0
    with pytest.raises(PeerLost):
        link.isend(torch.zeros(4), 1)
    with pytest.raises(PeerLost):
        link.post_recv(torch.zeros(4), 1)
    assert link._buffers.free_bytes == 0


def test_unused_buffers_are_bounded_and_sizes_do_not_mix(monkeypatch):
    monkeypatch.setattr(staged_module, "KEPT_BYTES", 3 * 8192)
    at = LateGpu()
    buffers = Buffers(at)
    taken = [buffers.take(5000) for _ in range(5)]
    assert {one.nbytes for one in taken} == {8192} and len({one.data_ptr() for one in taken}) == 5
    for one in taken:
        buffers.give(one, at.mark())
    assert buffers.free_bytes == 3 * 8192
    assert buffers.take(100).nbytes == buffers.take(0).nbytes == 4096
    assert [buffers.take(8192).data_ptr() for _ in range(3)] == [one.data_ptr() for one in taken[:3]]
    assert buffers.free_bytes == 0 and len(at.made) == 7
