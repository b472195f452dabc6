"""Step costs from measured times. A profile has times of products at some row counts; a StepCost is a floor and a slope, fitted here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetserve.cost.roofline import StepCost
from hetserve.errors import SpecError
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import DensePoint, DenseTimes, DeviceProfile, Profile

STEP_S = 2e-3  # launching, sampling, small operations of a whole step: no profile measures them


@dataclass(frozen=True)
class Floor:
    """seconds = max(floor_s, rows * row_s)."""

    floor_s: float
    row_s: float
    error: float  # mean relative error on the points it was fitted to


def fit_floor(points: tuple[DensePoint, ...]) -> Floor:
    """The floor and slope with the smallest sum of squared relative errors, over every way to tell small row counts from large ones."""
    rows, times_s = (np.array([getattr(point, name) for point in points], float) for name in ("tokens", "layer_s"))
    if not (times_s > 0).all():
        raise SpecError("a profile has products that take no time", "`hetserve profile` measures it again")
    fits = []
    for split in range(len(points)):
        slope = (rows / times_s)[split:].sum() / ((rows / times_s)[split:] ** 2).sum()
        floor = (1 / times_s)[:split].sum() / ((1 / times_s)[:split] ** 2).sum() if split else 0.0
        wrong = np.maximum(floor, slope * rows) / times_s - 1
        fits.append(((wrong**2).sum(), Floor(float(floor), float(slope), float(np.abs(wrong).mean()))))
    return min(fits, key=lambda fit: fit[0])[1]


def dense_times(device: DeviceProfile, weights: str) -> DenseTimes:
    """The device's products with weights stored as `weights`.

    Raises:
        SpecError: they were not measured.
    """
    for dense in device.dense:
        if dense.weights == weights:
            return dense
    known = ", ".join(dense.weights for dense in device.dense)
    raise SpecError(f"the profile of device {device.name!r} has products with {known} weights, not {weights}", "`hetserve profile` measures them")


def measured_step(model: ModelSpec, profile: Profile, device: DeviceProfile, layers: tuple[int, int], weights: str) -> StepCost:
    """The step-time formula of layers [first, last) on a measured device."""
    dense, count, last = dense_times(device, weights), layers[1] - layers[0], layers[1] == model.layers
    layer, head = fit_floor(dense.layer), fit_floor(dense.lm_head)
    line = device.attention
    return StepCost(
        fixed_s=STEP_S * count / model.layers + count * line.c_s,
        token_s=count * layer.row_s,
        weights_s=count * layer.floor_s + (head.floor_s if last else 0.0),
        context_s=count * 2 * model.kv_heads * line.b_s,
        pair_s=count * device.prefill_pair_s,
        sample_s=head.row_s if last else 0.0,
        source=f"profile of {profile.date}, {device.name}, {weights} weights; floor and slope fit its products within {layer.error:.0%}",
    )
