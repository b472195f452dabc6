"""Samples to a profile's numbers: the fits, in the units of `spec.profile`."""

from __future__ import annotations

import math
from statistics import median

import numpy as np

from hetserve.cost.fit import every_fourth, fit_line
from hetserve.profile.tasks import PHASES, REST, ContentionSamples, DeviceSamples, DeviceTask, LinkSamples, LinkTask
from hetserve.spec.cluster import Device, Stretch
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import WORKS, AttentionLine, Contention, DensePoint, DenseTimes, DeviceProfile, LinkProfile, Slowed


def device_profile(device: Device, task: DeviceTask, samples: DeviceSamples) -> DeviceProfile:
    """The device as it will behave: a stretched one has each of its times multiplied, as its worker's sleeping does."""
    stretch = device.stretch or Stretch()
    line, slower = attention_line(samples, task.effort.grid), stretch.attention
    return DeviceProfile(
        name=device.name,
        kind=device.kind,
        isa=samples.isa,
        cores=len(device.cores),
        read_bytes=samples.read_bytes,
        attention=AttentionLine(slower * line.a_s, slower * line.b_s, slower * line.c_s, line.held_out_error),
        prefill_pair_s=slower * pair_s(samples),
        dense=tuple(_slower(times, stretch.dense) for times in samples.dense),
        cap=device.isa,
        cpu_share=samples.cpu_share,
        stretch=device.stretch,
    )


def _slower(times: DenseTimes, factor: float) -> DenseTimes:
    layer, lm_head = (tuple(DensePoint(one.tokens, factor * one.layer_s) for one in points) for points in (times.layer, times.lm_head))
    return DenseTimes(times.weights, layer, lm_head)


def attention_line(samples: DeviceSamples, grid: int) -> AttentionLine:
    """Hetis, Eq. 3, fitted on three quarters of the grid and judged by the rest."""
    features = np.array([(point.heads, point.vectors, 1.0) for point in samples.attention])
    seconds = np.array([point.seconds for point in samples.attention])
    fit = fit_line(features, seconds, every_fourth(grid, grid))
    a_s, b_s, c_s = fit.coefficients_s
    return AttentionLine(a_s, b_s, c_s, fit.held_out_error)


def pair_s(samples: DeviceSamples) -> float:
    """Seconds per pair with the smallest relative errors over all chunks."""
    rates = np.array([point.seconds / point.pairs for point in samples.chunks])
    return float((1 / rates).sum() / (1 / rates**2).sum())


def contentions(pair: tuple[Device, Device], samples: ContentionSamples) -> list[Contention]:
    """Of each device by the other: the median over rounds of its time beside the other over that alone in the same round. Less than 1 is chance."""
    found = []
    for number, (device, other) in enumerate((pair, pair[::-1])):
        factors = (Slowed(*(_factor(samples, number, mine, others) for others in WORKS)) for mine in WORKS)
        found.append(Contention(device.name, other.name, *factors))
    return found


def _factor(samples: ContentionSamples, number: int, mine: str, others: str) -> float:
    """Of the first or the second device's work `mine`, while the other does `others`."""
    beside, alone = (PHASES.index((mine, what) if number == 0 else (what, mine)) for what in (others, REST))
    return max(1.0, median(_times_slower(phases[beside][number], phases[alone][number]) for phases in samples.rounds))


def _times_slower(beside_s: tuple[float, ...], alone_s: tuple[float, ...]) -> float:
    """The geometric mean over a phase's points."""
    return math.exp(sum(math.log(slow_s / quick_s) for slow_s, quick_s in zip(beside_s, alone_s, strict=True)) / len(alone_s))


def link_profiles(task: LinkTask, samples: LinkSamples, model: ModelSpec, dtype: str) -> list[LinkProfile]:
    """Both directions, from the first device's times. A round trip cannot tell its halves apart: gamma and beta are the same for both."""
    effort = task.effort
    trips = len(effort.link_bytes)
    vectors = np.array(effort.link_bytes) / (model.head_dim * DTYPE_BYTES[dtype])
    one_way_s = np.array(samples.seconds[:trips]) / 2
    fit = fit_line(np.stack([vectors, np.ones(trips)], axis=1), one_way_s, np.arange(trips) % 3 == 1)
    gamma_s, beta_s = fit.coefficients_s
    return [LinkProfile(source, target, gamma_s, beta_s, rate, fit.held_out_error) for (source, target), rate in bulk_rates(task, samples).items()]


def bulk_rates(task: LinkTask, samples: LinkSamples) -> dict[tuple[str, str], float]:
    """Bytes per second of large messages, by (source, target); the other way goes an acknowledgement."""
    trips, bulk = len(task.effort.link_bytes), len(task.effort.bulk_bytes)
    taken = {
        (task.device.name, task.peer.name): samples.seconds[trips : trips + bulk],
        (task.peer.name, task.device.name): samples.seconds[trips + bulk :],
    }
    ack_s = least_latency_s(samples)
    return {
        ends: math.exp(
            float(np.mean([math.log(size / max(took_s - ack_s, took_s / 2)) for size, took_s in zip(task.effort.bulk_bytes, times, strict=True)]))
        )
        for ends, times in taken.items()
    }


def least_latency_s(samples: LinkSamples) -> float:
    """One way, of the smallest message."""
    return samples.seconds[0] / 2
