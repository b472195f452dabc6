"""Samples to numbers: known machines come back from the times they would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hetserve.engine.model.recipes import RECIPES
from hetserve.profile.fitted import bulk_rates, contentions, device_profile, link_profiles, pair_s
from hetserve.profile.links import MeasuredLink
from hetserve.profile.tasks import (
    ATTENTION,
    DECODE,
    FULL,
    PHASES,
    PROMPT,
    REST,
    AttentionPoint,
    ChunkPoint,
    ContentionSamples,
    DeviceSamples,
    DeviceTask,
    LinkSamples,
    LinkTask,
)
from hetserve.spec.cluster import Device, Link, Stretch
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import DensePoint, DenseTimes

TINY = ModelSpec.from_hf(RECIPES["tiny"].config, None, "tiny")
DENSE = DenseTimes("bfloat16", (DensePoint(1, 1e-3),), (DensePoint(1, 2e-3),))
DEVICE = Device("d", "cpu", (0,), "avx2", 2**30)
TASK = DeviceTask(DEVICE, TINY, "bfloat16", FULL)
LINK = LinkTask(replace(DEVICE, name="fast"), replace(DEVICE, name="slow"), True, "", FULL)


def device_samples() -> DeviceSamples:
    grid = [(round(heads), round(vectors)) for heads in np.geomspace(4, 256, 8) for vectors in np.geomspace(1e4, 1e6, 8)]
    points = tuple(AttentionPoint(heads, vectors, 4e-7 * heads + 6e-9 * vectors + 5e-5) for heads, vectors in grid)
    return DeviceSamples("avx2", 3e10, points, (ChunkPoint(1000, 3e-5), ChunkPoint(9000, 27e-5)), (DENSE,), 0.97)


def link_samples(gamma_s: float, beta_s: float, there_rate: float, back_rate: float) -> LinkSamples:
    trips = [2 * (gamma_s * size / (2 * TINY.head_dim) + beta_s) for size in FULL.link_bytes]
    ack_s = trips[0] / 2
    there = [size / there_rate + ack_s for size in FULL.bulk_bytes]
    back = [size / back_rate + ack_s for size in FULL.bulk_bytes]
    return LinkSamples((*trips, *there, *back))


def test_a_device() -> None:
    found = device_profile(DEVICE, TASK, device_samples())
    line = found.attention
    assert (line.a_s, line.b_s, line.c_s) == pytest.approx((4e-7, 6e-9, 5e-5), rel=1e-3)
    assert line.held_out_error < 1e-4 and found.prefill_pair_s == pytest.approx(3e-8)
    assert (found.cap, found.cores, found.isa, found.cpu_share, found.dense) == ("avx2", 1, "avx2", 0.97, (DENSE,))


def test_a_stretched_device() -> None:
    plain = device_profile(DEVICE, TASK, device_samples())
    slower = device_profile(replace(DEVICE, stretch=Stretch(3.0, 2.0)), TASK, device_samples())
    assert slower.dense[0].layer[0].layer_s == pytest.approx(3e-3) and slower.dense[0].lm_head[0].layer_s == pytest.approx(6e-3)
    assert slower.attention.b_s == pytest.approx(2 * plain.attention.b_s) and slower.prefill_pair_s == pytest.approx(6e-8)
    assert slower.attention.held_out_error == plain.attention.held_out_error and slower.stretch == Stretch(3.0, 2.0)


def test_one_slow_chunk_does_not_decide() -> None:
    sound = [ChunkPoint(pairs, pairs * 3e-8) for pairs in (10, 1000, 10**6)]
    assert 3e-8 < pair_s(replace(device_samples(), chunks=(*sound, ChunkPoint(10, 3e-6)))) < 4e-8


def test_two_devices_that_slow_each_other() -> None:
    """Every round is slower than the one before by another disturbance, and one is far off: ratios within a round and their median do not see it."""
    times = {
        ("fast", ATTENTION): (3e-3,),
        ("fast", DECODE): (2e-3,),
        ("fast", PROMPT): (9e-3, 8e-3),
        ("slow", ATTENTION): (4e-3,),
        ("slow", DECODE): (5e-3,),
        ("slow", PROMPT): (7e-3,),
    }
    slower = {
        ("fast", ATTENTION, ATTENTION): 1.43,
        ("fast", ATTENTION, DECODE): 0.98,
        ("fast", DECODE, ATTENTION): 1.1,
        ("fast", DECODE, DECODE): 1.5,
        ("fast", PROMPT, DECODE): 1.05,
        ("slow", ATTENTION, ATTENTION): 1.4,
        ("slow", ATTENTION, PROMPT): 1.2,
        ("slow", DECODE, PROMPT): 1.7,
        ("slow", PROMPT, PROMPT): 1.3,
    }

    def seconds(name: str, mine: str, others: str, disturbed: float) -> tuple[float, ...]:
        return tuple(one * disturbed * slower.get((name, mine, others), 1.0) for one in times.get((name, mine), ()))

    def phases(disturbed: float, beside: float = 1.0):
        both = beside * disturbed
        for first, second in PHASES:
            each = disturbed if REST in (first, second) else both
            yield seconds("fast", first, second, each), seconds("slow", second, first, each)

    rounds = tuple(tuple(phases(*disturbance)) for disturbance in ((1.0,), (1.7,), (1.3,), (1.0, 8.0), (1.0, 0.2)))
    found = contentions((DEVICE, replace(DEVICE, name="slow")), ContentionSamples(rounds))
    assert [(one.device, one.other) for one in found] == [("d", "slow"), ("slow", "d")]
    assert list(found[0].factors.values()) == pytest.approx([1.43, 1.0, 1.0, 1.1, 1.5, 1.0, 1.0, 1.05, 1.0])
    assert list(found[1].factors.values()) == pytest.approx([1.4, 1.0, 1.2, 1.0, 1.0, 1.7, 1.0, 1.0, 1.3])


def test_both_directions_of_a_link() -> None:
    there, back = link_profiles(LINK, link_samples(2e-8, 4e-5, 3e9, 1e9), TINY, "bfloat16")
    assert (there.source, there.target, back.source, back.target) == ("fast", "slow", "slow", "fast")
    for link in (there, back):
        assert (link.gamma_s, link.beta_s) == pytest.approx((2e-8, 4e-5), rel=1e-3) and link.held_out_error < 1e-4
    assert (there.bytes_per_s, back.bytes_per_s) == pytest.approx((3e9, 1e9), rel=1e-3)


def test_a_message_faster_than_its_acknowledgement_is_no_infinite_rate() -> None:
    samples = link_samples(2e-8, 4e-3, 3e12, 1e9)
    assert all(0 < rate < 1e13 for rate in bulk_rates(LINK, samples).values())


@pytest.mark.parametrize(
    ("latency_s", "bytes_per_s", "emulate", "said"),
    [
        (5e-5, 3e9, False, ""),
        (9e-5, 1.6e9, False, ""),
        (11e-5, 3e9, False, "latency of 110 us, measured 50 us"),
        (2e-5, 3e9, False, "latency of 20 us"),
        (0.0, 3e9, False, "latency of 0 us"),
        (5e-5, 1.4e9, False, "1.40 GB/s, measured 3.00 GB/s"),
        (5e-5, 6.1e9, False, "6.10 GB/s"),
        (1e-2, 1e6, True, ""),
        (1e-2, 1e10, True, "10.00 GB/s"),
        (1e-6, 1e6, True, "latency of 1 us"),
    ],
)
def test_a_declaration_may_be_off_by_a_factor_of_two(latency_s, bytes_per_s, emulate, said) -> None:
    fault = MeasuredLink(Link("fast", "slow", latency_s, bytes_per_s, emulate), 5e-5, 3e9).fault
    assert (said in fault) if said else not fault
