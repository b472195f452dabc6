"""What no planner can plan for, whatever the system: said once, before anything is searched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

from hetserve.catalog import rows as catalog
from hetserve.errors import ResourceError, SpecError
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.model import ModelSpec

MIB = 2**20


def require_sound(cluster: Cluster, model: ModelSpec, dtype: str, measured: bool = False) -> None:
    """Nothing, if the catalog knows the GPUs and links that the cluster names, links join all of its nodes, and the weights fit into all of it.

    Links between nodes are asked for where the file tells of any between nodes, of nodes' insides or of GPUs of the catalog; elsewhere workers may
    join over whatever there is.

    Args:
        measured: a profile knows the links.

    Raises:
        SpecError: an unknown GPU or kind of link, or two nodes apart. ResourceError: too little memory.
    """
    for device in cluster.devices:
        if device.gpu:
            _known(f"device {device.name!r} of cluster {cluster.name!r} is a GPU that", catalog.device, device.gpu)
    wires = [wire for node in cluster.nodes for wire in (node.inside, node.outside) if wire is not None]
    for kind in dict.fromkeys([wire.kind for wire in wires if wire.kind] + [link.kind for link in cluster.links if link.kind]):
        _known(f"cluster {cluster.name!r} has a kind of link that", catalog.link, kind)
    nodes = {device.name: device.node for device in cluster.devices}
    told = wires or any(nodes[link.source] != nodes[link.target] for link in cluster.links) or any(device.gpu for device in cluster.devices)
    if told and not measured:
        _require_joined(cluster)
    total, weights = sum(device.memory_bytes for device in cluster.devices), model.weight_bytes(dtype)
    if weights > total:
        raise ResourceError(
            f"{model.name} does not fit: its weights are {weights / MIB:,.0f} MiB in {dtype}, the budgets of all {len(cluster.devices)} devices of "
            f"cluster {cluster.name!r} together {total / MIB:,.0f} MiB",
            "give devices more memory in the cluster file, add some, or take a smaller model",
        )


def _known(what: str, find: Callable[[str], object], name: str) -> None:
    """Says whose name it is that the catalog does not have."""
    try:
        find(name)
    except SpecError as error:
        raise SpecError(f"{what} the catalog does not have: {name!r}", error.hint) from None


def _require_joined(cluster: Cluster) -> None:
    """Every two devices on different nodes have a link in both directions."""
    nodes: dict[str, list[Device]] = {}
    for device in cluster.devices:
        nodes.setdefault(device.node, []).append(device)
    single = {(link.source, link.target) for link in cluster.links}
    for here, there in combinations(nodes, 2):
        if cluster.link(nodes[here][0].name, nodes[there][0].name) is not None and not single:
            continue  # by what the nodes say, so all of them
        for one, other in product(nodes[here], nodes[there]):
            if cluster.link(one.name, other.name) is None or cluster.link(other.name, one.name) is None:
                apart = " and ".join(f"node {name!r}" if name else "the controller's node" for name in (here, there))
                raise SpecError(
                    f"{apart} of cluster {cluster.name!r} are not connected: no link joins {one.name!r} and {other.name!r}",
                    "a [[node]] says what joins it to others, outside = { latency_s = 30e-6, bytes_per_s = 12.5e9 }; or give each pair a [[link]]",
                )
