"""Cluster files: what they may say, and the sentence for everything else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetserve.errors import HetserveError, ResourceError, SpecError, UnsupportedError
from hetserve.spec import host as host_module
from hetserve.spec.cluster import Cluster, Host, Link, Stretch, parse_bytes, require_cores, scaled
from hetserve.spec.load import cluster_names, load_cluster, this_host

HOST = Host((0, 1, 4, 5), 1000 * 2**20, "avx512bf16")

GOOD = """
[cluster]
name = "two"
control_cores = [0]
[[device]]
name = "fast"
kind = "cpu"
cores = [4, 1]
memory = "1.5 GiB"
[[device]]
name = "slow"
kind = "cpu"
cores = "first"
isa = "avx2"
memory = "25%"
"""


def load(tmp_path, text: str) -> Cluster:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_cluster(path, HOST)


def test_a_declaration_is_resolved_against_the_host(tmp_path) -> None:
    cluster = load(tmp_path, GOOD)
    fast, slow = cluster.devices
    assert (cluster.name, cluster.control_cores) == ("two", (0,))
    assert (fast.cores, fast.isa, fast.memory_bytes) == ((1, 4), "", 3 * 2**29)
    assert (slow.cores, slow.isa, slow.memory_bytes) == ((0,), "avx2", 250 * 2**20)
    assert cluster.device("slow") is slow


def test_the_packaged_clusters() -> None:
    host = replace(this_host(), gpus=(2**34,))
    assert {"cpu", "cpu-1", "cpu-hetero", "cpu-hetero-wide", "gpu", "gpu-plus-cpu", "gpu-emulated-plus-cpu"} <= set(cluster_names())
    assert load_cluster("cpu").devices[0].cores == host.cores
    one = load_cluster("cpu-1")
    assert one.devices[0].cores == one.control_cores == host.cores[:1]
    if len(host.cores) > 1:
        for name in cluster_names():
            require_cores(load_cluster(name, host), host)


def test_a_gpu_and_the_cpu_beside_it() -> None:
    host = Host((2, 3, 5, 7, 8), 2**36, "amx", (2**35, 2**34))
    gpu, cpu = load_cluster("gpu-plus-cpu", host).devices
    assert (gpu.kind, gpu.index, gpu.cores, gpu.memory_bytes) == ("cuda", 0, (2, 3, 5), int(0.8 * 2**35))
    assert (cpu.kind, cpu.cores, cpu.memory_bytes) == ("cpu", (7, 8), 2**35)
    (alone,) = load_cluster("gpu", host).devices
    assert alone == gpu
    twin = load_cluster("gpu-emulated-plus-cpu", replace(host, gpus=()))
    assert [(one.name, one.cores) for one in twin.devices] == [(one.name, one.cores) for one in (gpu, cpu)]
    assert twin.devices[0].is_gpu and twin.emulated and not load_cluster("gpu-plus-cpu", host).emulated


@pytest.mark.parametrize("name", ["gpu", "gpu-plus-cpu"])
def test_a_gpu_that_is_not_there(name) -> None:
    with pytest.raises(ResourceError, match="'gpu' is GPU 0, but this machine has 0 NVIDIA GPUs"):
        load_cluster(name, Host((0, 1), 2**36, "amx"))


def test_only_a_cluster_with_a_gpu_of_this_machine_asks_what_gpus_there_are(monkeypatch, tmp_path) -> None:
    asked: list[str] = []

    def gpus() -> tuple[tuple[str, int, str, str], ...]:
        asked.append("nvidia-smi")
        return (("NVIDIA H200", 2**37, "9.0", "570.1"),)

    monkeypatch.setattr(host_module, "nvidia_gpus", gpus)
    require_cores(load_cluster("cpu"), this_host())
    load_cluster("h100x8")
    assert not asked
    (gpu,) = load_cluster("gpu").devices
    assert gpu.memory_bytes == int(0.8 * 2**37) and asked
    assert list(this_host().gpus) == [2**37] and this_host().gpus


GPU = """
[cluster]
name = "one"
control_cores = [0]
[[device]]
name = "gpu"
kind = "cuda"
memory = "50%"
index = 1
"""


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("index = 1", "index = 2", ResourceError, "GPU 2, but this machine has 2"),
        ("index = 1", "index = -1", ResourceError, "GPU -1"),
        ("index = 1", 'isa = "avx2"', SpecError, "is a GPU and has isa"),
        ("index = 1", "stretch = {dense = 2}", SpecError, "is a GPU and has stretch"),
        ('"50%"', '"9 GiB"', ResourceError, "9.0 GiB of a GPU with 8.0"),
        ('kind = "cuda"', 'kind = "cuda-emulated"', SpecError, "expected a size"),
        ('kind = "cuda"', 'kind = "rocm"', UnsupportedError, "supported kinds: cpu, cuda"),
    ],
)
def test_gpus_as_declared(tmp_path, old, new, kind, said) -> None:
    path, host = tmp_path / "mine.toml", Host((3, 4), 2**30, "avx2", (2**34, 2**33))
    path.write_text(GPU)
    (gpu,) = load_cluster(path, host).devices
    assert (gpu.kind, gpu.index, gpu.cores, gpu.memory_bytes) == ("cuda", 1, (3,), 2**32)
    path.write_text(GPU.replace(old, new))
    with pytest.raises(kind) as caught:
        load_cluster(path, host)
    assert said in caught.value.message + caught.value.hint


@pytest.mark.parametrize(("best", "slow_isa"), [("amx", "avx512bf16"), ("avx512bf16", "avx2"), ("avx512", "avx2")])
def test_the_unlike_halves_of_one_machine(best, slow_isa) -> None:
    host = Host((2, 3, 5, 7, 8), 2**36, best)
    cluster = load_cluster("cpu-hetero", host)
    fast, slow = cluster.devices
    assert (fast.name, fast.cores, fast.isa, fast.memory_bytes) == ("fast", (2, 3, 5), "", 2**30)
    assert (slow.name, slow.cores, slow.isa, slow.memory_bytes) == ("slow", (7, 8), slow_isa, 3 * 2**28)
    assert cluster.control_cores == slow.cores and not cluster.emulated
    wide = load_cluster("cpu-hetero-wide", host)
    assert (wide.device("slow").isa, wide.device("fast")) == ("avx2", fast)


@pytest.mark.parametrize(("host", "said"), [(Host((0,), 2**36, "amx"), "two cores"), (Host((0, 1), 2**36, "avx2"), "AVX-512")])
def test_a_machine_that_cannot_be_split_into_unlike_halves(host, said) -> None:
    with pytest.raises(ResourceError, match=said):
        load_cluster("cpu-hetero", host)


def test_a_cap_that_weakens_nothing_is_no_cap(tmp_path) -> None:
    assert load(tmp_path, GOOD.replace('"avx2"', '"amx"')).device("slow").isa == ""
    assert load(tmp_path, GOOD.replace('"avx2"', '"avx512"')).device("slow").isa == "avx512"


LINK = """
[[link]]
source = "fast"
target = "slow"
latency_s = 0.01
bytes_per_s = 1000000
emulate = true
"""


def test_links_nodes_and_stretch(tmp_path) -> None:
    elsewhere = GOOD.replace('cores = "first"', "cores = [4]").replace('memory = "25%"', 'memory = "1 GiB"')  # [4] is another node's core
    cluster = load(tmp_path, elsewhere + 'stretch = {dense = 4}\nnode = "b"\n' + LINK + '[[node]]\nname = "b"\n')
    assert cluster.links == (Link("fast", "slow", 0.01, 1e6, True),) and cluster.emulated
    assert cluster.link("fast", "slow") is cluster.links[0] and cluster.link("slow", "fast") is None
    assert cluster.device("slow").stretch == Stretch(4.0, 1.0) and cluster.device("slow").node == "b"


def test_this_machine_says_nothing_of_another_nodes_devices(tmp_path) -> None:
    for whole in ('memory = "25%"', 'cores = "first"'):
        elsewhere = GOOD.replace('cores = "first"', "cores = [4]") if "memory" in whole else GOOD.replace('memory = "25%"', 'memory = "1 GiB"')
        with pytest.raises(SpecError, match="on another node"):
            load(tmp_path, elsewhere + 'node = "b"\n[[node]]\nname = "b"\n')


def test_stretched_devices_may_share_a_core(tmp_path) -> None:
    shared = GOOD.replace('memory = "1.5 GiB"', 'memory = "1.5 GiB"\nstretch = {dense = 2}').replace('cores = "first"', "cores = [4]")
    with pytest.raises(SpecError, match="core 4 belongs to both"):
        load(tmp_path, shared)
    assert load(tmp_path, shared + "stretch = {attention = 2}").device("slow").cores == (4,)


def test_budgets_are_scaled_together(tmp_path) -> None:
    cluster = load(tmp_path, GOOD)
    assert [device.memory_bytes for device in scaled(cluster, 2).devices] == [3 * 2**30, 500 * 2**20]
    assert scaled(cluster, 1) == cluster
    with pytest.raises(SpecError, match="positive"):
        scaled(cluster, 0)


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ('memory = "25%"', 'memry = "25%"', SpecError, "did you mean 'memory'"),
        ("[[device]]", "[[devices]]", SpecError, "did you mean 'device'"),
        ('memory = "25%"', "", SpecError, "memory"),
        ('memory = "25%"', 'memory = "250%"', SpecError, "'80%'"),
        ('memory = "25%"', 'memory = "1.5 GB"', SpecError, "GiB"),
        ('memory = "25%"', "memory = 0", SpecError, "size"),
        ('memory = "25%"', "memory = true", SpecError, "memory"),
        ('cores = "first"', 'cores = "fist"', SpecError, "'all', 'first'"),
        ('cores = "first"', "cores = []", SpecError, "at least one"),
        ('cores = "first"', "cores = [-1]", SpecError, "from 0 up"),
        ('cores = "first"', "cores = [7, 7]", SpecError, "different"),
        ('cores = "first"', "cores = [4]", SpecError, "core 4 belongs to both 'fast' and 'slow'"),
        ('cores = "first"', "cores = 1.5", SpecError, "cores"),
        ('name = "slow"', 'name = "fast"', SpecError, "two devices are called 'fast'"),
        ('isa = "avx2"', 'isa = "avx1024"', SpecError, "avx512bf16"),
        ('kind = "cpu"', 'kind = "tpu"', UnsupportedError, "supported kinds: cpu"),
        ("control_cores = [0]", "", SpecError, "control_cores"),
        ("[cluster]", "[cluster", SpecError, "not TOML"),
        ('isa = "avx2"', "index = 0", SpecError, "index is a GPU's"),
        ('isa = "avx2"', "stretch = {dense = 0.5}", SpecError, "at least 1"),
        ('isa = "avx2"', "stretch = {prefill = 2}", SpecError, "unknown key 'prefill'"),
        ('isa = "avx2"', 'node = "far"', SpecError, "no [[node]] declares"),
        ("latency_s = 0.01", "latency_s = -1", SpecError, "at least 0 seconds"),
        ("bytes_per_s = 1000000", "bytes_per_s = 0", SpecError, "more than 0 bytes"),
        ("bytes_per_s = 1000000", "bytes_per_s = nan", SpecError, "more than 0 bytes"),
        ('target = "slow"', 'target = "far"', SpecError, "devices: fast, slow"),
        ('target = "slow"', 'target = "fast"', SpecError, "nowhere"),
        ("emulate = true", "emulate = true" + LINK, SpecError, "twice"),
    ],
)
def test_what_makes_no_sense_is_told(tmp_path, old, new, kind, said) -> None:
    whole = GOOD + LINK
    assert old in whole
    with pytest.raises(kind) as caught:
        load(tmp_path, whole.replace(old, new))
    assert said in f"{caught.value.message} {caught.value.hint}"
    assert "mine.toml" in caught.value.message


def test_names_and_paths_that_lead_nowhere(tmp_path) -> None:
    for name, said in (("cpu-l", "did you mean 'cpu-1'"), ("elephant", "known: cpu"), (tmp_path / "no.toml", "cannot be read"), (f"{tmp_path}/", "")):
        with pytest.raises(SpecError) as caught:
            load_cluster(name)
        assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_file_that_is_no_text(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not text"):
        load_cluster(path)


def test_cores_this_process_may_not_use(tmp_path) -> None:
    cluster = load(tmp_path, GOOD.replace("cores = [4, 1]", "cores = [4, 9]"))
    with pytest.raises(ResourceError, match=r"device 'fast' the cores \[9\]"):
        require_cores(cluster, HOST)


def test_sizes() -> None:
    assert [parse_bytes(text, "x") for text in (7, "7", "7B", "1.5 KiB", "2MiB", "1 TiB")] == [7, 7, 7, 1536, 2**21, 2**40]
    assert parse_bytes("12.5 %", "x", 800) == 100
    for wrong in ("", "-1", "1 kb", "12%", "GiB", "0", "1e3"):
        with pytest.raises(HetserveError):
            parse_bytes(wrong, "x")
