"""Which link a worker gets to a peer: gloo's own between CPUs, through pinned memory where this end is a GPU, NCCL between GPUs of one node."""

from __future__ import annotations

from hetserve.engine.accelerator import Accelerator
from hetserve.engine.transport.link import Connect, Link
from hetserve.engine.transport.nccl import MakeGroup, NcclLinks
from hetserve.engine.transport.paced import PacedLink
from hetserve.engine.transport.staged import StagedLink
from hetserve.engine.wire import WorkerConfig
from hetserve.spec.cluster import CUDA


def make_connect(config: WorkerConfig, at: Accelerator, host: Connect, make_group: MakeGroup | None) -> Connect:
    """What a worker connects to its peers with.

    Args:
        config: the worker's.
        at: its device.
        host: makes links for tensors of the host.
        make_group: makes groups of two GPUs; None: they too exchange through their hosts.
    """
    slowed = {link.target: link for link in config.slowed if link.source == config.device}
    across = None if make_group is None else NcclLinks(config, at, host, make_group)

    def connect(peer: str, plane: str) -> Link:
        if across is not None and by_nccl(config, peer):
            return across.connect(peer, plane)
        link = host(peer, plane)
        if peer in slowed:
            link = PacedLink(link, slowed[peer].latency_s, slowed[peer].bytes_per_s)
        return StagedLink(link, at) if at.is_gpu else link

    return connect


def by_nccl(config: WorkerConfig, peer: str) -> bool:
    """Whether a worker and its peer are on two GPUs of one node. NCCL takes none twice, and slows no link down. Both ends find the same."""
    gpus = {gpu.device: gpu for gpu in config.gpus if gpu.kind == CUDA}
    here, there = gpus.get(config.device), gpus.get(peer)
    if here is None or there is None or any(peer in (link.source, link.target) for link in config.slowed):
        return False
    return here.node == there.node and here.index != there.index
