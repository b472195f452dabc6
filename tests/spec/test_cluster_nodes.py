"""What a cluster file says of whole nodes and of several devices at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib import resources

import pytest

from hetserve.errors import HetserveError, SpecError
from hetserve.spec.cluster import Cluster, Host, Link
from hetserve.spec.fingerprint import fingerprint
from hetserve.spec.load import load_cluster

HOST = Host((0, 1), 2**33, "avx2")
TWO = """
[cluster]
name = "two nodes"
control_cores = "first"
[[node]]
name = "a"
inside = {latency_s = 1e-6, bytes_per_s = 3e11}
outside = {latency_s = 3e-5, bytes_per_s = 1.25e10}
[[node]]
name = "b"
outside = {latency_s = 1e-5, bytes_per_s = 1.25e9}
[[node]]
name = "c"
[[device]]
name = "big"
kind = "cuda"
gpu = "A100-SXM-80GB"
count = 3
index = 1
memory = "72 GiB"
node = "a"
[[device]]
name = "small"
kind = "cuda"
memory = "10 GiB"
node = "b"
[[device]]
name = "alone"
kind = "cuda"
memory = "10 GiB"
node = "c"
[[link]]
source = "big-0"
target = "big-1"
latency_s = 2e-6
bytes_per_s = 5e10
"""


def load(tmp_path, text: str) -> Cluster:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_cluster(path, HOST)


def test_one_declaration_stands_for_several_devices(tmp_path) -> None:
    cluster = load(tmp_path, TWO)
    assert [device.name for device in cluster.devices] == ["big-0", "big-1", "big-2", "small", "alone"]
    assert [device.index for device in cluster.devices[:3]] == [1, 2, 3]
    assert {(device.gpu, device.memory_bytes, device.node) for device in cluster.devices[:3]} == {("A100-SXM-80GB", 72 * 2**30, "a")}
    assert cluster.device("small").gpu == ""


def test_nodes_answer_for_links_that_nobody_declared(tmp_path) -> None:
    cluster = load(tmp_path, TWO)
    assert cluster.link("big-0", "big-1") is cluster.links[0]
    assert cluster.link("big-1", "big-0") == Link("big-1", "big-0", 1e-6, 3e11)
    assert cluster.link("big-2", "small") == Link("big-2", "small", 3e-5, 1.25e9)  # the slower of both
    assert cluster.link("big-0", "alone") == Link("big-0", "alone", 3e-5, 1.25e10)  # only one says something
    assert cluster.link("small", "small") is None and load(tmp_path, TWO.replace("outside", "#outside")).link("small", "alone") is None


def test_what_transfers_between_nodes_share(tmp_path) -> None:
    cluster = load(tmp_path, TWO)
    assert cluster.shared("big-2", "small") == {"out of a": 1.25e10, "into b": 1.25e9}
    assert cluster.shared("small", "big-0") == {"out of b": 1.25e9, "into a": 1.25e10}
    assert cluster.shared("big-0", "alone") == {"out of a": 1.25e10}
    assert cluster.shared("big-0", "big-1") == cluster.shared("big-1", "big-2") == {}
    declared = replace(cluster, links=(Link("big-0", "small", 1e-6, 1e9),))
    assert declared.shared("big-0", "small") == {} and declared.shared("small", "big-0")


def test_looking_links_up_changes_nothing(tmp_path) -> None:
    cluster, other = load(tmp_path, TWO), load(tmp_path, TWO)
    cluster.link("big-0", "small")
    assert cluster == other and fingerprint(cluster) == fingerprint(other)
    assert replace(cluster, links=()).link("big-0", "big-1") == Link("big-0", "big-1", 1e-6, 3e11)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bytes_per_s = 3e11", "bytes_per_s = 0", "node 'a' says of its links inside must carry more than 0"),
        ("latency_s = 1e-5", "latency_s = -1", "node 'b' says of its links outside must have a latency"),
        ("inside = {latency_s = 1e-6, ", "inside = {", "latency_s"),
        ("inside", "insde", "did you mean 'inside'"),
        ("count = 3", "count = 0", "at least once, got count 0"),
        ("count = 3", "count = 3\nprice_per_hour = 0", "device 'big-0' must cost more than 0 US dollars an hour, got 0"),
        ("count = 3", "count = 3\nprice_per_hour = -1.5", "must cost more than 0 US dollars an hour, got -1.5"),
        ("count = 3", "count = 3\nprice_per_hour = inf", "must cost more than 0 US dollars an hour, got inf"),
        ("count = 3", "count = 3\nprice_per_hour = nan", "must cost more than 0 US dollars an hour, got nan"),
        ("count = 3", 'count = 3\nprice_per_hour = "1.5 $"', "price_per_hour"),
        ("count = 3", "count = 3\nprice_an_hour = 1.5", "did you mean 'price_per_hour'"),
        ('name = "small"', 'name = "big-2"', "two devices are called 'big-2'"),
        ('kind = "cuda"\ngpu = "A100-SXM-80GB"\ncount = 3\nindex = 1', 'kind = "cpu"\ncores = [0]\ngpu = "A100"', "is a CPU and names a GPU"),
        (
            'kind = "cuda"\ngpu = "A100-SXM-80GB"\ncount = 3\nindex = 1',
            'kind = "cpu"\ncores = [0]\ncount = 2',
            "core 0 belongs to both 'big-0' and 'big-1'",
        ),
    ],
)
def test_what_makes_no_sense_is_told(tmp_path, old, new, said) -> None:
    assert old in TWO
    with pytest.raises(HetserveError) as caught:
        load(tmp_path, TWO.replace(old, new))
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_price_is_each_devices_own(tmp_path) -> None:
    text = TWO.replace("count = 3", "count = 3\nprice_per_hour = 2").replace('kind = "cuda"\nmemory = "10 GiB"\nnode = "b"', CPU)
    cluster = load(tmp_path, text)
    assert [device.price_per_hour for device in cluster.devices] == [2.0, 2.0, 2.0, 0.25, None]


CPU = 'kind = "cpu"\ncores = [0]\nmemory = "10 GiB"\nnode = "b"\nprice_per_hour = 0.25'
PAPERS = {
    "hetis-testbed": {"A100-SXM-80GB": 4, "RTX-3090-24GB": 4, "P100-PCIe-12GB": 4},
    "h100x8": {"H100-SXM-80GB": 8},
    "hexgen2-het1": {"H100-SXM-80GB": 2, "A100-SXM-80GB": 6, "L40-48GB": 4, "RTX-A6000-48GB": 8},
    "hexgen2-het2": {"H100-SXM-80GB": 4, "A100-SXM-80GB": 4, "L40-48GB": 4, "RTX-A6000-48GB": 2},
    "hexgen2-het3": {"A100-SXM-80GB": 8, "L40-48GB": 8, "RTX-A6000-48GB": 8},
    "hexgen2-het4": {"H100-SXM-80GB": 2, "L40-48GB": 12, "RTX-A6000-48GB": 12},
    "hexgen2-het5": {"A100-SXM-80GB": 6, "L40-48GB": 4, "RTX-A6000-48GB": 8},
    "helix-24": {"A100-SXM-40GB": 4, "L4-24GB": 8, "T4-16GB": 12},
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_clusters(name) -> None:
    """The counts, every pair joined, and the head of the file says whose is what."""
    cluster = load_cluster(name, HOST)
    assert cluster.name == name and Counter(device.gpu for device in cluster.devices) == PAPERS[name]
    for source in cluster.devices:
        assert all(cluster.link(source.name, target.name) is not None for target in cluster.devices if target is not source)
    folder = resources.files("hetserve.workloads").joinpath("clusters")
    head = folder.joinpath(f"{name}.toml").read_text().partition("[cluster]")[0]
    assert "paper's" in head and "Ours:" in head and f"| `{name}` |" in folder.joinpath("README.md").read_text()


def test_a_node_that_no_device_may_be_on(tmp_path) -> None:
    with pytest.raises(SpecError, match="no \\[\\[node\\]\\] declares"):
        load(tmp_path, TWO.replace('node = "c"', 'node = "d"'))
