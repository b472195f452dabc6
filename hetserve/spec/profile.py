"""What `hetserve profile` measures of devices and links, in the paper's units. Numbers only; `spec.load` reads and writes the file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionLine:
    """Decode attention of one layer on one device: seconds = a_s * query heads + b_s * cached vectors + c_s (Hetis, Eq. 3).

    A vector is one token's key or value of one KV head.
    """

    a_s: float
    b_s: float
    c_s: float
    held_out_error: float  # mean relative error on points the fit has not seen


@dataclass(frozen=True)
class DensePoint:
    """The matrix products of one layer at `tokens` rows."""

    tokens: int
    layer_s: float


@dataclass(frozen=True)
class DenseTimes:
    """Products with weights stored in one dtype, by rows, ascending."""

    weights: str  # "bfloat16" or "float32"
    layer: tuple[DensePoint, ...]
    lm_head: tuple[DensePoint, ...]  # the output matrix, by sampled rows


@dataclass(frozen=True)
class DeviceProfile:
    """One device, for one model shape and one KV dtype."""

    name: str  # the device's in its cluster
    kind: str
    isa: str  # the kernels' instruction set while it was measured
    cores: int
    read_bytes: float  # bytes per second from memory
    attention: AttentionLine
    prefill_pair_s: float  # prefill attention of one layer: seconds per (token, earlier token) pair, all heads
    dense: tuple[DenseTimes, ...]


@dataclass(frozen=True)
class LinkProfile:
    """One direction between two devices: seconds of a message = gamma_s * vectors + beta_s (Hetis, Eq. 4)."""

    source: str
    target: str
    gamma_s: float
    beta_s: float
    bytes_per_s: float  # large transfers
    held_out_error: float


@dataclass(frozen=True)
class Profile:
    """One measurement of a cluster's devices for one model."""

    model: str  # its name, for people
    model_fingerprint: str
    dtype: str
    machine: str  # CPU or GPU names, for people
    clocks_mhz: float
    versions: str
    date: str  # YYYY-MM-DD
    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...]

    def device(self, name: str) -> DeviceProfile | None:
        """The profile of the device called `name`, if it was measured."""
        return next((one for one in self.devices if one.name == name), None)

    def link(self, source: str, target: str) -> LinkProfile | None:
        """The measured link from one device to another."""
        return next((one for one in self.links if (one.source, one.target) == (source, target)), None)
