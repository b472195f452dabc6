"""Step costs from measured times."""

from __future__ import annotations

from hetserve.cost.curve import NOTHING, Curve, measured
from hetserve.cost.rates import STEP_S
from hetserve.cost.roofline import StepCost
from hetserve.errors import SpecError
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import DensePoint, DenseTimes, DeviceProfile, Profile


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
    line = device.attention
    return StepCost(
        fixed_s=STEP_S * count / model.layers,  # launching, sampling, small operations of a whole step: no profile measures them
        layers=_curve(dense.layer) * count,
        head=_curve(dense.lm_head) if last else NOTHING,
        attend_s=count * line.c_s,
        context_s=count * 2 * model.kv_heads * line.b_s,
        pair_s=count * device.prefill_pair_s,
        source=f"profile of {profile.date}, {device.name}, {weights} weights",
    )


def _curve(points: tuple[DensePoint, ...]) -> Curve:
    return measured((point.tokens, point.layer_s) for point in points)
