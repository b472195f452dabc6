"""What `hetserve profile` measures of devices and links, in the paper's units. Numbers only; `spec.load` reads and writes the file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from itertools import permutations
from typing import Any

from hetserve.errors import SpecError, UnsupportedError
from hetserve.spec.cluster import CPU, Cluster, Device, Stretch
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.model import ModelSpec
from hetserve.spec.strict import build

FORMAT = 2
BUSY_SHARE = 0.9  # of its core's time that a measuring process should have had
AGAIN = "`hetserve profile` measures it"


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
    """The dense part of one layer at `tokens` rows: its matrix products, with the norms and activations between them."""

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
    isa: str  # the kernels' instruction set while it was measured, or a GPU's architecture
    cores: int  # of a GPU those of its worker's process
    read_bytes: float  # bytes per second from memory
    attention: AttentionLine
    prefill_pair_s: float  # prefill attention of one layer: seconds per (token, earlier token) pair, all heads
    dense: tuple[DenseTimes, ...]
    cap: str = ""  # the isa its cluster capped it to; empty: none
    cpu_share: float = 1.0  # of the time it was measured, how much of its core the process had; far below 1: the machine was busy. A GPU's: 1
    stretch: Stretch | None = None  # what its times of products and of attention have been multiplied by; None: measured, not emulated


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
class Slowed:
    """How many times slower something is while another device does this; 1: not at all."""

    attention: float = 1.0  # decode attention of a large batch
    decode: float = 1.0  # a layer's products for a decoding batch: few rows, memory decides
    prompt: float = 1.0  # for a part of a prompt: many rows, arithmetic decides


WORKS = tuple(field.name for field in fields(Slowed))


@dataclass(frozen=True)
class Contention:
    """How many times slower a device is while another one of its node works too: what it does itself, by what the other does."""

    device: str
    other: str
    attention: Slowed = field(default_factory=Slowed)
    decode: Slowed = field(default_factory=Slowed)
    prompt: Slowed = field(default_factory=Slowed)

    def factor(self, mine: str, others: str) -> float:
        """Of one of WORKS beside another."""
        return float(getattr(getattr(self, mine), others))

    @property
    def factors(self) -> dict[str, float]:
        """By what it is, for people."""
        return {f"{mine} by {others}": self.factor(mine, others) for mine in WORKS for others in WORKS}


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
    commit: str = ""  # of the code that measured; empty: unknown
    contention: tuple[Contention, ...] = ()  # of every two devices of a node, both ways; empty: not measured
    took_s: float | None = None  # measuring the devices; None: unknown

    def device(self, name: str) -> DeviceProfile | None:
        """The profile of the device called `name`, if it was measured."""
        return next((one for one in self.devices if one.name == name), None)

    def link(self, source: str, target: str) -> LinkProfile | None:
        """The measured link from one device to another."""
        return next((one for one in self.links if (one.source, one.target) == (source, target)), None)

    def beside(self, device: str, other: str) -> Contention | None:
        """How much slower the other device makes this one, if that was measured."""
        return next((one for one in self.contention if (one.device, one.other) == (device, other)), None)


def require(profile: Profile, cluster: Cluster, model: ModelSpec, dtype: str) -> None:
    """Raises SpecError unless the profile was measured for this model, this KV dtype and these devices."""
    if profile.model_fingerprint != model_fingerprint(model):
        raise SpecError(f"the profile is of the model {profile.model!r}, which has another shape than {model.name!r}", AGAIN)
    if profile.dtype != dtype:
        raise SpecError(f"the profile was measured with {profile.dtype}, not with {dtype}", f"{AGAIN} with --dtype {dtype}")
    for device in cluster.devices:
        _require_device(profile, device, cluster.name)
    for source, target in permutations((device.name for device in cluster.devices), 2):
        if profile.link(source, target) is None:
            raise SpecError(f"the profile knows no link from {source!r} to {target!r}", AGAIN)
    for one, other in permutations(cluster.devices, 2):
        if profile.contention and one.node == other.node and profile.beside(one.name, other.name) is None:
            raise SpecError(f"the profile knows how devices slow each other, but not how {other.name!r} slows {one.name!r}", AGAIN)


def _require_device(profile: Profile, device: Device, cluster: str) -> None:
    known = profile.device(device.name)
    if known is None:
        measured = ", ".join(one.name for one in profile.devices)
        raise SpecError(f"the profile knows nothing of device {device.name!r} of cluster {cluster!r}, only of {measured}", AGAIN)
    then = _described(known.kind, known.cores, known.cap, known.stretch)
    now = _described(device.kind, len(device.cores), device.isa, device.stretch)
    if then != now:
        raise SpecError(f"the profile is of another device {device.name!r}: {then}; that of cluster {cluster!r} has {now}", AGAIN)


def _described(kind: str, cores: int, cap: str, stretch: Stretch | None) -> str:
    """What a device has to have in common with the one that was measured. Of a GPU, which cores its process runs on does not matter."""
    if kind != CPU:
        return f"a {kind} device"
    slower = f", stretched {stretch.dense:g} and {stretch.attention:g} times" if stretch else ""
    return f"{cores} {kind} cores, isa {cap or 'native'}{slower}"


def encode_profile(profile: Profile) -> str:
    """The profile as the text of its TOML file."""
    return f"format = {FORMAT}\n" + _table(asdict(profile), "")


def parse_profile(data: dict[str, Any], where: str) -> Profile:
    """The profile in the tables of a profile file.

    Raises:
        SpecError: unknown or missing keys, values of a wrong type or that cannot be times.
        UnsupportedError: a format this version does not know.
    """
    if data.get("format") != FORMAT:
        raise UnsupportedError(f"{where}: this version reads profiles of format {FORMAT} only", AGAIN)
    tables = {"links": [], **{key: value for key, value in data.items() if key != "format"}}  # a single device has no links
    profile = build(Profile, tables, where)
    for device in profile.devices:
        line = device.attention
        products = [one.layer_s for dense in device.dense for one in (*dense.layer, *dense.lm_head)]
        _check([line.a_s, line.b_s, line.c_s], [device.read_bytes, device.prefill_pair_s, *products], f"{where}: device {device.name!r}")
        for dense in device.dense:
            for points in (dense.layer, dense.lm_head):
                tokens = [point.tokens for point in points]
                if not tokens or tokens != sorted(set(tokens)) or tokens[0] < 1:
                    raise SpecError(f"{where}: device {device.name!r} has times for {tokens} rows, which must ascend from at least 1")
    for link in profile.links:
        _check([link.gamma_s, link.beta_s], [link.bytes_per_s], f"{where}: the link from {link.source!r} to {link.target!r}")
    for pair in profile.contention:
        for what, factor in pair.factors.items():
            if not 1 <= factor < float("inf"):
                said = f"{where}: {pair.device!r} beside {pair.other!r}, {what}: {factor:g} times slower, where 1 is the least"
                raise SpecError(said, "was the file edited by hand? measure again")
    return profile


def _check(at_least_zero: list[float], positive: list[float], where: str) -> None:
    if not (all(0 <= value < float("inf") for value in at_least_zero) and all(0 < value < float("inf") for value in positive)):
        raise SpecError(f"{where} has a time or a rate that none can be", "was the file edited by hand? measure again")


def _table(body: dict[str, Any], name: str) -> str:
    """A table's own values, then its tables below; deeper down, a list of plain dictionaries takes one line for each."""
    below = {key: value for key, value in body.items() if isinstance(value, tuple) and (not name or any(_holds_list(row) for row in value))}
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in body.items() if key not in below and value is not None)
    for key, rows in below.items():
        path = f"{name}.{key}".lstrip(".")
        text += "".join(f"\n[[{path}]]\n{_table(row, path)}" for row in rows)
    return text


def _holds_list(row: dict[str, Any]) -> bool:
    return any(isinstance(value, tuple) for value in row.values())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, tuple):
        return "[\n" + "".join(f"  {_toml(inner)},\n" for inner in value) + "]" if value else "[]"
    return json.dumps(value, ensure_ascii=False)
