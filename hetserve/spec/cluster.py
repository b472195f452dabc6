"""What a cluster file declares: nodes, devices with cores and a memory budget each, links, and where control runs. Reads no file.

A declaration may say "all cores", "80 % of memory" or "one instruction set below the best"; a Cluster never does: it is resolved against the
machine it was loaded on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hetserve.errors import ResourceError, SpecError, UnsupportedError
from hetserve.spec.links import Link, Node, between, check_links, check_nodes
from hetserve.spec.strict import build

CPU, CUDA, EMULATED = "cpu", "cuda", "cuda-emulated"
KINDS = (CPU, CUDA, EMULATED)  # EMULATED: a GPU whose kernels run on the CPU, far slower, so that its worker can be tested anywhere
SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

# The levels csrc is built for, weakest first, and the CPU flags each needs beside those of the level before.
ISA_FLAGS = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512bf16": ("avx512_bf16",),
    "amx": ("amx_tile", "amx_bf16"),
}
ISAS = tuple(ISA_FLAGS)
BELOW_NATIVE = "below-native"  # the strongest cap that makes a device really weaker: AVX512-BF16 under AMX, else AVX2


@dataclass(frozen=True)
class Host:
    """The machine declarations are resolved against."""

    cores: tuple[int, ...]  # the cores this process may use, ascending
    memory_bytes: int
    isa: str  # the best of ISAS its cores have; empty: not even the first
    gpus: Sequence[int] = ()  # bytes of each NVIDIA GPU, by index


@dataclass(frozen=True)
class Stretch:
    """How many times slower a device is made by sleeping, so that more devices than cores can be run. Results are emulated, not measured."""

    dense: float = 1.0
    attention: float = 1.0


@dataclass(frozen=True)
class Device:
    """One accelerator or one set of CPU cores."""

    name: str
    kind: str  # one of KINDS
    cores: tuple[int, ...]
    isa: str  # caps every library of its worker; empty: whatever the cores have
    memory_bytes: int  # total budget: weights as they are stored, workspace and KV pages; not the code of the libraries
    stretch: Stretch | None = None
    node: str = ""  # empty: the node the controller runs on
    index: int = 0  # which GPU of its node; of a CPU nothing
    gpu: str = ""  # which GPU it is, as the catalog calls it; empty: nobody said
    price_per_hour: float | None = None  # US dollars; None: the catalog's, where it has one

    @property
    def is_gpu(self) -> bool:
        return self.kind != CPU


@dataclass(frozen=True)
class Cluster:
    name: str
    control_cores: tuple[int, ...]  # controller, HTTP server and load generator run here
    devices: tuple[Device, ...]  # in the order of the file
    nodes: tuple[Node, ...] = ()
    links: tuple[Link, ...] = ()

    def device(self, name: str) -> Device:
        """The device called `name`; KeyError if there is none."""
        return {device.name: device for device in self.devices}[name]

    def link(self, source: str, target: str) -> Link | None:
        """The declared link from one device to another, if there is one, or what their nodes say of it: within a node its inside, between two the
        slower of what they say of their outsides."""
        links, nodes = self._lookup
        known = links.get((source, target))
        if known is not None or source == target:
            return known
        wire = between(nodes.get(source), nodes.get(target))
        return Link(source, target, wire.latency_s, wire.bytes_per_s, kind=wire.kind) if wire is not None else None

    def shared(self, source: str, target: str) -> dict[str, float]:
        """Bytes per second of what a transfer between nodes shares with others: what its node sends, and what the other one receives, by name.
        Nothing within a node, of a pair declared one by one, or where nobody said."""
        links, nodes = self._lookup
        here, there = nodes.get(source), nodes.get(target)
        if (source, target) in links or here is there:
            return {}
        ends = (("out of", here), ("into", there))
        return {f"{way} {node.name}": node.outside.bytes_per_s for way, node in ends if node is not None and node.outside is not None}

    @cached_property
    def _lookup(self) -> tuple[dict[tuple[str, str], Link], dict[str, Node]]:
        """Links by their ends; the nodes of devices whose node says anything."""
        nodes = {node.name: node for node in self.nodes if node.inside or node.outside}
        return {(link.source, link.target): link for link in self.links}, {one.name: nodes[one.node] for one in self.devices if one.node in nodes}

    @property
    def emulated(self) -> bool:
        """Whether any of it is made slower than it is, or is no GPU; such results never share a table with measured ones."""
        return any(device.stretch or device.kind == EMULATED for device in self.devices) or any(link.emulate for link in self.links)


@dataclass(frozen=True)
class _Cluster:
    name: str
    control_cores: str | tuple[int, ...]


@dataclass(frozen=True)
class _Device:
    name: str
    kind: str
    memory: str | int
    cores: str | tuple[int, ...] = ()
    index: int | None = None  # of a GPU
    isa: str = ""
    stretch: Stretch | None = None
    node: str = ""
    gpu: str = ""
    price_per_hour: float | None = None
    count: int = 1  # so many alike; with more than one they are called NAME-0, NAME-1 and so on, GPUs by their index


@dataclass(frozen=True)
class _File:
    cluster: _Cluster
    device: tuple[_Device, ...]
    node: tuple[Node, ...] = ()
    link: tuple[Link, ...] = ()


def isa_levels(cpuinfo: str) -> list[str]:
    """The instruction-set levels this CPU has, weakest first, from the text of /proc/cpuinfo; a level needs those before it."""
    found = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    levels = []
    for level, needed in ISA_FLAGS.items():
        if not flags.issuperset(needed):
            break
        levels.append(level)
    return levels


def parse_cluster(data: dict[str, Any], host: Host, where: str) -> Cluster:
    """The cluster that the tables of a cluster file declare.

    Raises:
        SpecError: an unknown or missing key, a value that makes no sense, two devices with one name or with a core in common.
        ResourceError: the machine has too few cores, or no weaker instruction set, for what is declared.
        UnsupportedError: a kind of device this version has no engine for.
    """
    file = build(_File, data, where)
    _check_nodes(file.node, file.device, where)
    devices = tuple(_device(one, host, where) for declared in file.device for one in _each(declared, where))
    _check_apart(devices, where)
    check_links(file.link, {device.name for device in devices}, where)
    return Cluster(file.cluster.name, resolve_cores(file.cluster.control_cores, host, where), devices, file.node, file.link)


def scaled(cluster: Cluster, factor: float) -> Cluster:
    """The same cluster with every memory budget multiplied by `factor`.

    Raises:
        SpecError: the factor is not positive.
    """
    if not factor > 0:
        raise SpecError(f"memory budgets are multiplied by a positive number, got {factor:g}")
    return replace(cluster, devices=tuple(replace(device, memory_bytes=int(device.memory_bytes * factor)) for device in cluster.devices))


def require_cores(cluster: Cluster, host: Host) -> None:
    """Raises ResourceError unless every core the cluster names is one this process may use; other nodes know their own."""
    here = {f"device {device.name!r}": device.cores for device in cluster.devices if not device.node}
    named = {"control_cores": cluster.control_cores} | here
    for what, cores in named.items():
        missing = sorted(set(cores) - set(host.cores))
        if missing:
            said = f"cluster {cluster.name!r} gives {what} the cores {missing}, but this process may use only {list(host.cores)}"
            raise ResourceError(said, "name others in the cluster file; --cluster cpu takes all of this machine's")


def resolve_cores(declared: str | tuple[int, ...], host: Host, where: str) -> tuple[int, ...]:
    """Core numbers: "all", "first", "first-half", "second-half", or the numbers themselves. The halves share no core."""
    half = (len(host.cores) + 1) // 2
    named = {"all": host.cores, "first": host.cores[:1], "first-half": host.cores[:half], "second-half": host.cores[half:]}
    if isinstance(declared, str):
        if declared not in named:
            raise SpecError(f"{where}: cores must be a list of numbers or one of {', '.join(map(repr, named))}, got {declared!r}")
        if not named[declared]:
            raise ResourceError(f"{where}: {declared!r} needs at least two cores, but this process may use only {list(host.cores)}")
        return named[declared]
    if not declared or min(declared) < 0 or len(set(declared)) < len(declared):
        raise SpecError(f"{where}: cores must be different numbers from 0 up, at least one, got {list(declared)}")
    return tuple(sorted(declared))


def resolve_isa(declared: str, host: Host, where: str) -> str:
    """The cap a worker is started with: empty where what is declared is no weaker than what the machine has."""
    if declared not in ("", BELOW_NATIVE, *ISAS):
        raise SpecError(f"{where}: isa {declared!r} is unknown", f"leave it out, or one of: {', '.join((*ISAS, BELOW_NATIVE))}")
    if declared == BELOW_NATIVE:
        if host.isa in ("", ISAS[0]):
            raise ResourceError(f"{where}: isa {BELOW_NATIVE!r} needs a CPU with AVX-512, this one has {host.isa or 'not even AVX2'}")
        return "avx512bf16" if host.isa == "amx" else "avx2"
    native = ISAS.index(host.isa) if host.isa else -1
    return declared if declared and ISAS.index(declared) < native else ""


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


def _each(declared: _Device, where: str) -> list[_Device]:
    """The devices that one [[device]] stands for."""
    if declared.count < 1:
        raise SpecError(f"{where}: device {declared.name!r} must be there at least once, got count {declared.count}")
    if declared.count == 1:
        return [declared]
    first = declared.index or 0
    indices = [first + number if declared.kind != CPU else declared.index for number in range(declared.count)]
    return [replace(declared, name=f"{declared.name}-{number}", index=index, count=1) for number, index in enumerate(indices)]


def _device(declared: _Device, host: Host, where: str) -> Device:
    device, price = f"{where}: device {declared.name!r}", declared.price_per_hour
    if price is not None and not 0 < price < float("inf"):
        raise SpecError(f"{device} must cost more than 0 US dollars an hour, got {price:g}", "leave price_per_hour out where nobody knows it")
    if declared.kind not in KINDS:
        raise UnsupportedError(f"{device} is of kind {declared.kind!r}", f"supported kinds: {', '.join(KINDS)}")
    if declared.kind == CPU and declared.index is not None:
        raise SpecError(f"{device} is a CPU and has an index", "cores says which part of the CPU it is; index is a GPU's")
    if declared.kind == CPU and declared.gpu:
        raise SpecError(f"{device} is a CPU and names a GPU, {declared.gpu!r}")
    if declared.kind != CPU:
        return _gpu(declared, host, device)
    if declared.stretch and not (declared.stretch.dense >= 1 and declared.stretch.attention >= 1):
        got = f"dense {declared.stretch.dense:g} and attention {declared.stretch.attention:g}"
        raise SpecError(f"{device}: stretch makes a device slower, its factors are at least 1, got {got}")
    if declared.node and (isinstance(declared.cores, str) or declared.isa == BELOW_NATIVE or str(declared.memory).strip().endswith("%")):
        what = f"{device} is on another node, whose cores and isa must be given by numbers and name, its memory as a size"
        raise SpecError(what, "what this machine has says nothing of it")
    memory_bytes = parse_bytes(declared.memory, f"{where}: memory of device {declared.name!r}", host.memory_bytes)
    cores, isa = resolve_cores(declared.cores, host, device), declared.isa if declared.node else resolve_isa(declared.isa, host, device)
    return Device(declared.name, declared.kind, cores, isa, memory_bytes, declared.stretch, declared.node, price_per_hour=price)


def _gpu(declared: _Device, host: Host, device: str) -> Device:
    """A GPU. Its cores are those that its worker process runs on, which waits most of the time and may share them."""
    index = declared.index or 0
    for given, what in ((declared.isa, "isa"), (declared.stretch, "stretch")):
        if given:
            raise SpecError(f"{device} is a GPU and has {what}", "that is for CPUs")
    whole_bytes = None
    if declared.kind == CUDA and not declared.node:
        if not 0 <= index < len(host.gpus):
            raise ResourceError(f"{device} is GPU {index}, but this machine has {len(host.gpus)} NVIDIA GPUs", "`hetserve doctor` lists them")
        whole_bytes = host.gpus[index]
    memory_bytes = parse_bytes(declared.memory, f"{device}: memory", whole_bytes)
    if whole_bytes is not None and memory_bytes > whole_bytes:
        raise ResourceError(f"{device} is to have {memory_bytes / 2**30:.1f} GiB of a GPU with {whole_bytes / 2**30:.1f}")
    cores = resolve_cores(declared.cores or "first", host, device)
    return Device(declared.name, declared.kind, cores, "", memory_bytes, None, declared.node, index, declared.gpu, declared.price_per_hour)


def _check_apart(devices: tuple[Device, ...], where: str) -> None:
    """Two CPU devices may share a core only where both are stretched, and so leave it idle for a known part of the time."""
    if not devices:
        raise SpecError(f"{where}: a cluster needs at least one [[device]]")
    owner: dict[tuple[str, int], Device] = {}
    for index, device in enumerate(devices):
        if device.name in {earlier.name for earlier in devices[:index]}:
            raise SpecError(f"{where}: two devices are called {device.name!r}", "every device needs a name of its own")
        for core in device.cores if not device.is_gpu else ():
            other = owner.setdefault((device.node, core), device)
            if other is not device and not (other.stretch and device.stretch):
                raise SpecError(f"{where}: core {core} belongs to both {other.name!r} and {device.name!r}", "only stretched devices share cores")


def _check_nodes(nodes: tuple[Node, ...], devices: tuple[_Device, ...], where: str) -> None:
    check_nodes(nodes, where)
    names = {node.name for node in nodes}
    for device in devices:
        if device.node and device.node not in names:
            raise SpecError(f"{where}: device {device.name!r} is on node {device.node!r}, which no [[node]] declares")
