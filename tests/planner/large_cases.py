"""A cluster of five types of GPU, 32 of each in hosts of eight: what Hetis' paper plans for in 15 s (7.4)."""

from __future__ import annotations

from hetserve.spec.cluster import CUDA, Cluster, Device
from hetserve.spec.links import Node, Wire

GIB = 2**30
TYPES = {  # name of the catalog -> (budget, kind of link inside a host, its latency, its bytes per second)
    "H100-SXM-80GB": (72, "nvlink4", 5e-6, 450e9),
    "A100-SXM-80GB": (72, "nvlink3", 5e-6, 300e9),
    "L40-48GB": (42, "pcie4", 10e-6, 25e9),
    "RTX-A6000-48GB": (42, "pcie4", 10e-6, 25e9),
    "RTX-3090-24GB": (21, "pcie3", 15e-6, 12.5e9),
}


def large(of_each: int = 32, per_host: int = 8) -> Cluster:
    """Joined by 100 Gbit/s."""
    nodes, devices = [], []
    for gpu, (gib, kind, latency_s, bytes_per_s) in TYPES.items():
        for host in range(of_each // per_host):
            nodes.append(Node(f"{gpu}-host-{host}", Wire(latency_s, bytes_per_s, kind), Wire(30e-6, 12.5e9)))
            names = [f"{gpu}-{host * per_host + number}" for number in range(per_host)]
            devices += [Device(name, CUDA, (0,), "", gib * GIB, None, nodes[-1].name, number, gpu) for number, name in enumerate(names)]
    return Cluster("large", (0,), tuple(devices), tuple(nodes))
