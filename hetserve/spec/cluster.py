"""What a cluster file declares: devices, each with cores and a memory budget of its own, and where control runs. Reads no file.

A declaration may say "all cores" or "80 % of memory"; a Cluster never does: it is resolved against the machine it was loaded on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hetserve.errors import ResourceError, SpecError, UnsupportedError
from hetserve.spec.strict import build

KINDS = ("cpu",)
ISAS = ("avx2", "avx512", "avx512bf16", "amx")
SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Host:
    """The machine declarations are resolved against."""

    cores: tuple[int, ...]  # the cores this process may use, ascending
    memory_bytes: int


@dataclass(frozen=True)
class Device:
    """One accelerator or one set of CPU cores."""

    name: str
    kind: str  # one of KINDS
    cores: tuple[int, ...]
    isa: str  # caps every library of its worker; empty: whatever the cores have
    memory_bytes: int  # total budget: weights, workspace and KV pages


@dataclass(frozen=True)
class Cluster:
    name: str
    control_cores: tuple[int, ...]  # controller, HTTP server and load generator run here
    devices: tuple[Device, ...]

    def device(self, name: str) -> Device:
        """The device called `name`; KeyError if there is none."""
        return {device.name: device for device in self.devices}[name]


@dataclass(frozen=True)
class _Cluster:
    name: str
    control_cores: str | tuple[int, ...]


@dataclass(frozen=True)
class _Device:
    name: str
    kind: str
    cores: str | tuple[int, ...]
    memory: str | int
    isa: str = ""


@dataclass(frozen=True)
class _File:
    cluster: _Cluster
    device: tuple[_Device, ...]


def parse_cluster(data: dict[str, Any], host: Host, where: str) -> Cluster:
    """The cluster that the tables of a cluster file declare.

    Raises:
        SpecError: an unknown or missing key, a value that makes no sense, two devices with one name or with a core in common.
        UnsupportedError: a kind of device this version has no engine for.
    """
    file = build(_File, data, where)
    devices = tuple(_device(declared, host, where) for declared in file.device)
    _check_apart(devices, where)
    return Cluster(file.cluster.name, resolve_cores(file.cluster.control_cores, host, where), devices)


def require_cores(cluster: Cluster, host: Host) -> None:
    """Raises ResourceError unless every core the cluster names is one this process may use."""
    named = {"control_cores": cluster.control_cores} | {f"device {device.name!r}": device.cores for device in cluster.devices}
    for what, cores in named.items():
        missing = sorted(set(cores) - set(host.cores))
        if missing:
            raise ResourceError(f"cluster {cluster.name!r} gives {what} the cores {missing}, but this process may use only {list(host.cores)}")


def resolve_cores(declared: str | tuple[int, ...], host: Host, where: str) -> tuple[int, ...]:
    """Core numbers: "all", "first", or the numbers themselves."""
    named = {"all": host.cores, "first": host.cores[:1]}
    if isinstance(declared, str):
        if declared not in named:
            raise SpecError(f"{where}: cores must be a list of numbers or one of {', '.join(map(repr, named))}, got {declared!r}")
        return named[declared]
    if not declared or min(declared) < 0 or len(set(declared)) < len(declared):
        raise SpecError(f"{where}: cores must be different numbers from 0 up, at least one, got {list(declared)}")
    return tuple(sorted(declared))


def parse_bytes(text: str | int, where: str, whole_bytes: int | None = None) -> int:
    """A size in bytes: a number, "1.5 GiB" (B, KiB, MiB, GiB, TiB), or, where there is a whole to share, "80%".

    Raises:
        SpecError: it is none of these, or not positive.
    """
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(text))
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)?", str(text))
    if percent and whole_bytes is not None and float(percent[1]) <= 100:
        size_bytes = int(whole_bytes * float(percent[1]) / 100)
    elif amount:
        size_bytes = int(float(amount[1]) * SIZES[amount[2] or "B"])
    else:
        size_bytes = 0
    if size_bytes <= 0:
        share = " or a share like '80%'" if whole_bytes is not None else ""
        raise SpecError(f"{where}: expected a size like '1.5 GiB' (B, KiB, MiB, GiB, TiB){share}, got {text!r}")
    return size_bytes


def _device(declared: _Device, host: Host, where: str) -> Device:
    if declared.kind not in KINDS:
        raise UnsupportedError(f"{where}: device {declared.name!r} is of kind {declared.kind!r}", f"supported kinds: {', '.join(KINDS)}")
    if declared.isa and declared.isa not in ISAS:
        raise SpecError(f"{where}: device {declared.name!r} has isa {declared.isa!r}", f"leave it out, or one of: {', '.join(ISAS)}")
    memory_bytes = parse_bytes(declared.memory, f"{where}: memory of device {declared.name!r}", host.memory_bytes)
    return Device(declared.name, declared.kind, resolve_cores(declared.cores, host, where), declared.isa, memory_bytes)


def _check_apart(devices: tuple[Device, ...], where: str) -> None:
    if not devices:
        raise SpecError(f"{where}: a cluster needs at least one [[device]]")
    owner: dict[int, str] = {}
    for index, device in enumerate(devices):
        if device.name in {earlier.name for earlier in devices[:index]}:
            raise SpecError(f"{where}: two devices are called {device.name!r}")
        for core in device.cores:
            if core in owner:
                raise SpecError(f"{where}: core {core} belongs to both {owner[core]!r} and {device.name!r}")
            owner[core] = device.name
