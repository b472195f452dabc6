"""Links and nodes of a cluster: what is declared of a pair of devices, or of all of a machine's at once."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.errors import SpecError


@dataclass(frozen=True)
class Wire:
    """What every link of a kind carries, in either direction."""

    latency_s: float
    bytes_per_s: float
    kind: str = ""  # which link it is, as the catalog calls it; empty: nobody said


@dataclass(frozen=True)
class Node:
    """One machine of a cluster of several. What it says of its links holds for all that are not declared one by one."""

    name: str
    inside: Wire | None = None  # between any two of its devices
    outside: Wire | None = None  # from its devices to those of other nodes, which share it


@dataclass(frozen=True)
class Link:
    """One direction between two devices, as declared. `emulate`: to be enforced by delay and pacing, whatever the machine could do."""

    source: str
    target: str
    latency_s: float
    bytes_per_s: float
    emulate: bool = False
    kind: str = ""  # as a Wire's


def between(here: Node | None, there: Node | None) -> Wire | None:
    """What two devices' nodes say of a link between them; None: nothing. Between two nodes the slower of what either says."""
    if here is not None and here is there:
        return here.inside
    told = [node.outside for node in (here, there) if node is not None and node.outside is not None]
    if not told:
        return None
    kinds = {wire.kind for wire in told}
    return Wire(max(wire.latency_s for wire in told), min(wire.bytes_per_s for wire in told), kinds.pop() if len(kinds) == 1 else "")


def check_nodes(nodes: tuple[Node, ...], where: str) -> None:
    """Raises SpecError where two nodes have one name, or rates make no sense."""
    names = [node.name for node in nodes]
    for node in nodes:
        if names.count(node.name) > 1:
            raise SpecError(f"{where}: two nodes are called {node.name!r}")
        for side, wire in (("inside", node.inside), ("outside", node.outside)):
            if wire is not None:
                _check_rates(wire, f"{where}: what node {node.name!r} says of its links {side}")


def check_links(links: tuple[Link, ...], names: set[str], where: str) -> None:
    """Raises SpecError where a link's ends or rates make no sense."""
    seen: set[tuple[str, str]] = set()
    for link in links:
        what = f"{where}: the link from {link.source!r} to {link.target!r}"
        for end in (link.source, link.target):
            if end not in names:
                raise SpecError(f"{what} names a device that is not there", f"devices: {', '.join(sorted(names))}")
        if link.source == link.target:
            raise SpecError(f"{what} leads nowhere")
        if (link.source, link.target) in seen:
            raise SpecError(f"{what} is declared twice")
        seen.add((link.source, link.target))
        _check_rates(link, what)


def _check_rates(link: Link | Wire, what: str) -> None:
    if not 0 < link.bytes_per_s < float("inf"):
        raise SpecError(f"{what} must carry more than 0 bytes per second, got {link.bytes_per_s:g}", "leave a device out rather than its link")
    if not 0 <= link.latency_s < float("inf"):
        raise SpecError(f"{what} must have a latency of at least 0 seconds, got {link.latency_s:g}")
