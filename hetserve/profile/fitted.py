"""Samples to a profile's numbers: the fits, in the units of `spec.profile`."""

from __future__ import annotations

import math

import numpy as np

from hetserve.cost.fit import every_fourth, fit_line
from hetserve.profile.tasks import DeviceSamples, DeviceTask, LinkSamples, LinkTask
from hetserve.spec.cluster import Device
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.profile import AttentionLine, DeviceProfile, LinkProfile


def device_profile(device: Device, task: DeviceTask, samples: DeviceSamples) -> DeviceProfile:
    return DeviceProfile(
        name=device.name,
        kind=device.kind,
        isa=samples.isa,
        cores=len(device.cores),
        read_bytes=samples.read_bytes,
        attention=attention_line(samples, task.effort.grid),
        prefill_pair_s=pair_s(samples),
        dense=samples.dense,
        cap=device.isa,
        cpu_share=samples.cpu_share,
    )


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


def link_profiles(task: LinkTask, samples: LinkSamples, model: ModelSpec, dtype: str) -> list[LinkProfile]:
    """Both directions, from the first device's times. A round trip cannot tell its halves apart: gamma and beta are the same for both."""
    effort = task.effort
    trips, bulk = len(effort.link_bytes), len(effort.bulk_bytes)
    vectors = np.array(effort.link_bytes) / (model.head_dim * DTYPE_BYTES[dtype])
    one_way_s = np.array(samples.seconds[:trips]) / 2
    fit = fit_line(np.stack([vectors, np.ones(trips)], axis=1), one_way_s, np.arange(trips) % 3 == 1)
    gamma_s, beta_s = fit.coefficients_s
    profiles = []
    for source, target, taken_s in (
        (task.device, task.peer, samples.seconds[trips : trips + bulk]),
        (task.peer, task.device, samples.seconds[trips + bulk :]),
    ):
        rates = [size / max(took_s - one_way_s[0], 1e-9) for size, took_s in zip(effort.bulk_bytes, taken_s, strict=True)]
        profiles.append(LinkProfile(source, target, gamma_s, beta_s, math.exp(float(np.log(rates).mean())), fit.held_out_error))
    return profiles
