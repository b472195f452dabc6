"""Clusters drawn at random: machines of like GPUs of the catalog, with links as the catalog prints them, as the text of a cluster file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hetserve.catalog import rows
from hetserve.catalog.rows import DeviceRow, LinkRow
from hetserve.errors import UsageError

MOST_PER_NODE = 8
NETWORK = "ethernet-100g"
NETWORK_KINDS = ("ethernet", "infiniband")
RESERVED = ((40e9, 3e9), (0.0, 1.5e9))  # of cards from this size up, bytes that the driver and every process take by themselves


@dataclass(frozen=True)
class Machine:
    """One drawn node."""

    gpu: DeviceRow
    count: int
    network: LinkRow


def draw(devices: int, seed: int, kinds: Sequence[str] = (), networks: Sequence[str] = (NETWORK,), most: int = MOST_PER_NODE) -> list[Machine]:
    """Machines with so many GPUs in all; kind, number and network of each are drawn evenly. The same arguments give the same machines anywhere.

    Args:
        kinds: names or aliases of the catalog's devices; none: all of them.
        networks: names of the catalog's links between machines.
        most: GPUs of one machine.

    Raises:
        UsageError: no devices, or more in a machine than MOST_PER_NODE; a network that is none. SpecError: a name the catalog does not have.
    """
    if devices < 1 or not 1 <= most <= MOST_PER_NODE:
        raise UsageError(f"a cluster has at least one device and 1 to {MOST_PER_NODE} a machine, got {devices} and {most}")
    gpus = [rows.device(name) for name in kinds] or list(rows.devices())
    wires = [_network(name) for name in networks]
    chance = random.Random(seed)

    def one_of(count: int) -> int:  # only random() is promised to stay the same from one Python to the next
        return int(chance.random() * count)

    machines = []
    while devices:
        gpu, count, wire = gpus[one_of(len(gpus))], min(devices, 1 + one_of(most)), wires[one_of(len(wires))]
        machines.append(Machine(gpu, count, wire))
        devices -= count
    return machines


def cluster_toml(name: str, machines: Sequence[Machine], made_by: str) -> str:
    """The text of a cluster file.

    Args:
        name: the cluster's, letters, digits, dots, dashes and underscores.
        made_by: the command, for the file's head.

    Raises:
        UsageError: another character in the name.
    """
    if not name or not all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in name):
        raise UsageError(f"a drawn cluster's name has letters, digits, dots, dashes and underscores, got {name!r}")
    head = [
        f"# Drawn at random: {made_by}",
        "# Links as the catalog prints them; budgets are the printed sizes less "
        f"{RESERVED[0][1] / 1e9:g} GB ({RESERVED[1][1] / 1e9:g} GB of cards below {RESERVED[0][0] / 1e9:g} GB), in whole GiB.",
        "# To plan and simulate: the devices are on no node of yours.",
        f'[cluster]\nname = "{name}"\ncontrol_cores = "first"\n',
    ]
    return "\n".join([*head, *(_machine(number, machine) for number, machine in enumerate(machines))])


def budget_gib(gpu: DeviceRow) -> int:
    """What a worker may use of a GPU."""
    reserved = next(taken for size, taken in RESERVED if gpu.memory_bytes >= size)
    return int((gpu.memory_bytes - reserved) / 2**30)


def _machine(number: int, machine: Machine) -> str:
    gpu, inside, outside = machine.gpu, rows.link(machine.gpu.peer), machine.network
    short = gpu.name.lower()
    wires = [f"outside = {_wire(outside)}"]
    if machine.count > 1:
        wires.insert(0, f"inside = {_wire(inside)}")
    lines = [
        *("[[node]]", f'name = "host-{number}"', *wires, ""),
        *("[[device]]", f'name = "{short}-{number}"', 'kind = "cuda"', f'gpu = "{gpu.name}"'),
        *([f"count = {machine.count}"] if machine.count > 1 else []),
        *(f'memory = "{budget_gib(gpu)} GiB"', f'node = "host-{number}"', ""),
    ]
    return "\n".join(lines)


def _wire(link: LinkRow) -> str:
    return f'{{ kind = "{link.name}", latency_s = {link.latency_s:g}, bytes_per_s = {link.bytes_per_s:g} }}'


def _network(name: str) -> LinkRow:
    link = rows.link(name)
    if link.kind not in NETWORK_KINDS:
        between = ", ".join(row.name for row in rows.links() if row.kind in NETWORK_KINDS)
        raise UsageError(f"{link.name} joins GPUs of one machine, not machines", f"networks: {between}")
    return link
