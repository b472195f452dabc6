"""The other end of an NcclLink, in a process of its own, for `test_nccl.py`."""

from __future__ import annotations

import os
import time

import torch
from devices_stand_in import PlainGpu
from groups_stand_in import StreamGroups
from net_peer import answer_steps
from test_connect import make_config, make_device, stage

from hetserve.engine.transport.gloo import GlooLinks
from hetserve.engine.transport.link import HEADS, STEPS, make_tag
from hetserve.engine.transport.nccl import NcclLinks
from hetserve.engine.wire import GroupLayout
from hetserve.spec.cluster import CUDA

GPUS = tuple(make_device(name, CUDA, index) for index, name in enumerate("ab"))


def one_stage(folder: str, device: str, layers: int) -> NcclLinks:
    """The links of one end of a stage with its primary on a and an attention worker on b."""
    config = make_config(device, GPUS, (), (GroupLayout((stage((0, layers), "ab"),), False),))
    return NcclLinks(config, PlainGpu(), GlooLinks(folder, device, "127.0.0.1").connect, StreamGroups(folder, device))


def serve_over_groups(folder: str, shape: tuple[int, int], layers: int, steps: list[int]) -> None:
    """b, as `net_peer.serve`."""
    torch.set_num_threads(1)
    answer_steps(one_stage(folder, "b", layers).connect("a", STEPS), make_tag(HEADS), shape, torch.float32, layers, steps)


def vanish(folder: str, device: str, after_s: float) -> None:
    """Connects to a, and is gone a little later."""
    GlooLinks(folder, device, "127.0.0.1").connect("a", STEPS)
    time.sleep(after_s)
    os._exit(0)
