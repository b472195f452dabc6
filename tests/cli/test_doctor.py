"""doctor: everything in one JSON object, a table for people, and what to type where something is missing."""

from __future__ import annotations

import json
import os

import pytest

from hetserve import machine
from hetserve.cli import doctor
from hetserve.errors import SpecError

FACTS = {
    "machine": {
        **{"cpu": "Some CPU", "cores": 4, "cores_total": 8, "cpu_quota": 2.0, "isa": ["avx2", "avx512"], "python": "3.12.1"},
        **{"memory_bytes": 16 * 2**30, "memory_free_bytes": 8 * 2**30, "caches": {"l1d": 32768, "l3": 2**25}},
        "gpus": [],
    },
    "cluster": {
        "name": "mine",
        "control_cores": (7,),
        "devices": (
            {"name": "fast", "kind": "cpu", "cores": (0, 1, 2, 5), "memory_bytes": 2**33},
            {"name": "slow", "kind": "cpu", "cores": (6,), "memory_bytes": 2**30},
        ),
    },
    "torch": {"version": "2.11.0", "cuda": None, "gpus": 0},
    "kernels": {"isa": "avx512", "isas": ["ref", "avx2", "avx512"], "cuda": False},
    "kernels_fault": "",
    "net_fault": "HETSERVE_NET is off",
    "nvcc": None,
    "baselines": {"vllm": None},
    "read_bytes_per_s": {"one_core": 10e9, "all_cores": 35.26e9},
}


def test_the_json_names_what_is_here(run) -> None:
    done = run("doctor", "--json", "--quick")
    facts = json.loads(done.stdout)
    assert facts["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["torch"]["version"] and facts["kernels"]["isa"] in facts["kernels"]["isas"]
    assert facts["read_bytes_per_s"] is None
    assert done.returncode == 0


def test_a_forced_instruction_set_is_what_runs(run) -> None:
    assert json.loads(run("doctor", "--json", "--quick", HETSERVE_ISA="ref").stdout)["kernels"]["isa"] == "ref"


def test_an_impossible_instruction_set_is_named_as_the_fault(run) -> None:
    done = run("doctor", "--json", "--quick", HETSERVE_ISA="mmx")
    facts = json.loads(done.stdout)
    assert facts["kernels"] is None and "mmx" in facts["missing"][0]["what"]
    assert done.returncode == 5 and "Traceback" not in done.stderr


def test_who_posts_messages_is_said(run) -> None:
    assert json.loads(run("doctor", "--json", "--quick", HETSERVE_NET="off").stdout)["net_fault"] == "HETSERVE_NET is off"


def test_an_unknown_cluster_is_named(run) -> None:
    done = run("doctor", "--quick", "--cluster", "cpus")
    assert done.returncode == 3 and "'cpus'" in done.stderr and "'cpu'" in done.stderr


def test_the_table_says_what_is_used() -> None:
    table = {name: (has, use) for name, has, use in doctor.rows(FACTS)}
    assert table["cores"] == ("4 of 8, limited to 2 cores' time", "cluster mine: fast on 0-2,5; slow on 6; control on 7")
    assert table["memory"] == ("16.0 GiB, 8.0 GiB free", "weights and KV cache: fast 8.0 GiB; slow 1.0 GiB")
    assert table["instruction sets"][1] == "kernels run avx512; HETSERVE_ISA can force ref, avx2"
    assert table["read bandwidth"][0] == "10.0 GB/s one core, 35.3 GB/s all"
    assert table["GPUs"] == ("none", "") and table["nvcc"] == ("none", "CUDA kernels are not built")
    assert table["Python, torch"][1] == "matrix multiplications; messages posted from Python (hetserve._net: HETSERVE_NET is off)"
    assert table["vLLM"][0] == "not installed"


def test_what_is_missing_comes_with_what_to_type() -> None:
    assert doctor.missing(FACTS) == [{"what": "a real vLLM to compare with", "type": "hetserve baseline install vllm", "needed": False}]
    broken = {**FACTS, "torch": None, "kernels": None, "kernels_fault": "no such file"}
    assert [(fault["type"], fault["needed"]) for fault in doctor.missing(broken)][:2] == [("make install", True)] * 2


GPU = {**FACTS["machine"], "gpus": [{"name": "NVIDIA A40", "memory_bytes": 45 * 2**30}]}
ON_CUDA = {**FACTS, "machine": GPU, "torch": {"version": "2.13.0", "cuda": "13.0", "gpus": 1}, "kernels": {**FACTS["kernels"], "cuda": True}}
ON_GPU = {"name": "gpu-plus-cpu", "control_cores": (0,), "devices": ({**FACTS["cluster"]["devices"][0], "name": "gpu", "kind": "cuda", "index": 0},)}


def gpu_row(facts) -> tuple[str, str]:
    return {name: (has, use) for name, has, use in doctor.rows(facts)}["GPUs"]


def test_a_gpu_is_used_by_clusters_that_have_one() -> None:
    assert gpu_row(ON_CUDA) == ("NVIDIA A40 (45.0 GiB)", "not used by this cluster; --cluster gpu and gpu-plus-cpu do")
    assert gpu_row({**ON_CUDA, "cluster": ON_GPU})[1] == "cluster gpu-plus-cpu: gpu on GPU 0"
    assert all(fault["what"] == "a real vLLM to compare with" for fault in doctor.missing(ON_CUDA))


@pytest.mark.parametrize(
    ("changes", "said", "typed"),
    [
        ({"torch": {"version": "2.13.0+cpu", "cuda": None, "gpus": 0}}, "2.13.0+cpu was built without CUDA", "torch==2.13.0"),
        ({"torch": {"version": "2.13.0", "cuda": "13.0", "gpus": 0}}, "finds none", "nvidia-smi"),
        ({"kernels": FACTS["kernels"]}, "nvcc 12 or newer", "make install"),
        ({"kernels": FACTS["kernels"], "nvcc": {"release": "13.0", "path": "/nvcc"}}, "built without them", "make install"),
    ],
)
def test_why_a_gpu_is_not_used(changes, said, typed) -> None:
    """In one sentence each; it keeps nothing from running but what has a GPU."""
    for cluster in (FACTS["cluster"], ON_GPU):
        facts = {**ON_CUDA, **changes, "cluster": cluster}
        fault = next(fault for fault in doctor.missing(facts) if "vLLM" not in fault["what"])
        assert said in fault["what"] and typed in fault["type"] and fault["needed"] is (cluster is ON_GPU)
        assert gpu_row(facts)[1] == "not used: see what is missing"
        assert not [fault for fault in doctor.missing({**facts, "machine": FACTS["machine"]}) if fault["needed"]]


def test_a_gpu_that_is_not_here_is_said(run) -> None:
    if machine.gpus():
        pytest.skip("there is a GPU")
    for command in (("doctor", "--quick"), ("profile", "tiny")):
        done = run(*command, "--cluster", "gpu-plus-cpu")
        assert done.returncode == 5 and not done.stdout and "Traceback" not in done.stderr
        assert "device 'gpu' is GPU 0, but this machine has 0 NVIDIA GPUs" in done.stderr


@pytest.mark.parametrize("absent", [None, {}])
def test_a_bare_machine_can_be_shown(absent) -> None:
    bare = {**FACTS["machine"], "isa": [], "gpus": [], "caches": {}, "memory_bytes": None, "memory_free_bytes": None}
    facts = {**FACTS, "machine": bare, "torch": absent, "kernels": None, "read_bytes_per_s": None}
    assert all(isinstance(cell, str) for row in doctor.rows(facts) for cell in row)


LINKS = [
    {
        "link": {"source": "fast", "target": "slow", "latency_s": 5e-5, "bytes_per_s": 3e9, "emulate": False},
        "latency_s": 6e-5,
        "bytes_per_s": 2e9,
        "fault": "",
    },
    {
        "link": {"source": "slow", "target": "fast", "latency_s": 1e-2, "bytes_per_s": 1e8, "emulate": True},
        "latency_s": 6e-5,
        "bytes_per_s": 2e9,
        "fault": "",
    },
]


def test_declared_links_stand_beside_what_was_measured() -> None:
    assert doctor.link_rows(LINKS)[0] == ("fast", "slow", "50 us", "60 us", "3.00 GB/s", "2.00 GB/s", "", "")
    assert doctor.link_rows(LINKS)[1][6] == "emulated"
    doctor.refuse_links("mine", LINKS)
    with pytest.raises(SpecError, match="cluster 'mine': the link from 'slow' to 'fast' is too good"):
        doctor.refuse_links("mine", [LINKS[0], {**LINKS[1], "fault": "too good"}])


def test_the_devices_of_a_cluster() -> None:
    device = {"name": "slow", "kind": "cpu", "cores": (6, 7), "isa": "", "memory_bytes": 2**30, "stretch": None}
    emulated = {**device, "isa": "avx2", "stretch": {"dense": 4.0, "attention": 1.5}}
    gpu = {**device, "kind": "cuda", "index": 1}
    assert doctor.device_rows({"devices": (device, emulated, gpu)}) == [
        ("slow", "cpu", "6-7", "native", "1.0 GiB", ""),
        ("slow", "cpu", "6-7", "avx2", "1.0 GiB", "dense 4, attention 1.5: emulated"),
        ("slow", "cuda 1", "6-7", "", "1.0 GiB", ""),
    ]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a link needs two cores")
def test_a_link_that_is_not_what_the_file_declares(run, tmp_path) -> None:
    devices = [
        f'[[device]]\nname = "{name}"\nkind = "cpu"\ncores = "{half}-half"\nmemory = "1%"\n' for name, half in (("a", "first"), ("b", "second"))
    ]
    link = '[[link]]\nsource = "a"\ntarget = "b"\nlatency_s = 1\nbytes_per_s = 1e3\n'
    path = tmp_path / "linked.toml"
    path.write_text('[cluster]\nname = "linked"\ncontrol_cores = "all"\n' + "".join(devices) + link)
    done = run("doctor", "--cluster", str(path), "--json")
    found = json.loads(done.stdout)["links"][0]
    assert done.returncode == 3 and "declared with a latency of 1,000,000 us" in done.stderr
    assert 0 < found["latency_s"] < 0.5 and found["bytes_per_s"] > 1e6
