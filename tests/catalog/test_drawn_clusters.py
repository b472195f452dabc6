"""Drawn clusters: so many devices of such kinds, the same for the same seed, files that load."""

from __future__ import annotations

import pytest

from hetserve.catalog import rows
from hetserve.catalog.drawn import MOST_PER_NODE, cluster_toml, draw
from hetserve.errors import HetserveError, SpecError, UsageError
from hetserve.spec.cluster import Cluster, Host
from hetserve.spec.links import Wire
from hetserve.spec.load import load_cluster

HOST = Host((3, 4), 2**33, "avx2")


def load(tmp_path, text: str) -> Cluster:
    path = tmp_path / "drawn.toml"
    path.write_text(text)
    return load_cluster(path, HOST)


@pytest.mark.parametrize(("devices", "seed", "most"), [(1, 0, 8), (7, 1, 1), (64, 2, 8), (320, 3, 4), (1024, 4, 8)])
def test_what_is_drawn_is_what_loads(tmp_path, devices, seed, most) -> None:
    networks = ("ethernet-100g", "ethernet-10g")
    machines = draw(devices, seed, networks=networks, most=most)
    text = cluster_toml("drawn", machines, "a test")
    assert text == cluster_toml("drawn", draw(devices, seed, networks=networks, most=most), "a test")
    made = load(tmp_path, text)
    assert len(made.devices) == devices and made == load(tmp_path, text)
    first = 0
    for node, machine in zip(made.nodes, machines, strict=True):
        members = made.devices[first : first + machine.count]
        first += machine.count
        assert 1 <= machine.count <= most and {(one.gpu, one.node, one.kind) for one in members} == {(machine.gpu.name, node.name, "cuda")}
        assert [one.index for one in members] == list(range(machine.count))
        assert all(0.8 * machine.gpu.memory_bytes < one.memory_bytes < machine.gpu.memory_bytes for one in members)
        assert node.outside == Wire(machine.network.latency_s, machine.network.bytes_per_s, machine.network.name)
        if machine.count > 1:
            link, peer = made.link(members[0].name, members[1].name), rows.link(machine.gpu.peer)
            assert link is not None and Wire(link.latency_s, link.bytes_per_s, link.kind) == Wire(peer.latency_s, peer.bytes_per_s, peer.name)
    assert first == devices


def test_a_drawing_stays_what_it_was() -> None:
    """Whoever names a seed in a result must get that cluster again."""
    machines = draw(20, 7, ["H100", "A100", "L40", "A6000"])
    assert [(one.gpu.name[:4], one.count) for one in machines] == [("A100", 2), ("H100", 5), ("H100", 5), ("A100", 1), ("A100", 7)]


def test_seeds_and_kinds_matter() -> None:
    assert draw(64, 0) != draw(64, 1)
    assert {one.gpu.name for one in draw(200, 0, ["a100", "3090"])} == {"A100-SXM-80GB", "RTX-3090-24GB"}
    assert {one.gpu.name for one in draw(1000, 0)} == {row.name for row in rows.devices()}
    assert {one.count for one in draw(1000, 0)} == set(range(1, MOST_PER_NODE + 1))
    assert {one.network.name for one in draw(100, 0, networks=["ethernet-10g", "infiniband-hdr"])} == {"ethernet-10g", "infiniband-hdr"}


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"devices": 0}, UsageError, "at least one device"),
        ({"most": 9}, UsageError, "1 to 8 a machine"),
        ({"kinds": ["A1000"]}, SpecError, "did you mean 'A100-SXM-80GB'"),
        ({"networks": ["pcie4"]}, UsageError, "not machines"),
        ({"networks": ["ether"]}, SpecError, "no link called 'ether'"),
    ],
)
def test_what_cannot_be_drawn(changes, kind, said) -> None:
    with pytest.raises(HetserveError) as caught:
        draw(**{"devices": 4, "seed": 0, **changes})
    assert isinstance(caught.value, kind) and said in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("name", ["", 'a"b', "a\nb", "a b"])
def test_a_name_that_would_break_the_file(name) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        cluster_toml(name, draw(1, 0), "a test")
