"""doctor: everything in one JSON object, a table for people, and what to type where something is missing."""

from __future__ import annotations

import json
import os

import pytest

from hetserve.cli import doctor
from hetserve.errors import SpecError

FACTS = {
    "machine": {
        **{"cpu": "Some CPU", "cores": 4, "cores_total": 8, "cpu_quota": 2.0, "isa": ["avx2", "avx512"], "python": "3.12.1"},
        **{"memory_bytes": 16 * 2**30, "memory_free_bytes": 8 * 2**30, "caches": {"l1d": 32768, "l3": 2**25}},
        "gpus": [{"name": "NVIDIA P100", "memory_bytes": 16 * 2**30}],
    },
    "cluster": {
        "name": "mine",
        "control_cores": (7,),
        "devices": ({"name": "fast", "cores": (0, 1, 2, 5), "memory_bytes": 2**33}, {"name": "slow", "cores": (6,), "memory_bytes": 2**30}),
    },
    "torch": {"version": "2.11.0"},
    "kernels": {"isa": "avx512", "isas": ["ref", "avx2", "avx512"]},
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
    assert table["GPUs"] == ("NVIDIA P100 (16.0 GiB)", "not used: this version computes on CPUs")
    assert table["Python, torch"][1] == "matrix multiplications; messages posted from Python (hetserve._net: HETSERVE_NET is off)"
    assert table["vLLM"][0] == "not installed"


def test_what_is_missing_comes_with_what_to_type() -> None:
    assert doctor.missing(FACTS) == [{"what": "a real vLLM to compare with", "type": "hetserve baseline install vllm", "needed": False}]
    broken = {**FACTS, "torch": None, "kernels": None, "kernels_fault": "no such file"}
    assert [(fault["type"], fault["needed"]) for fault in doctor.missing(broken)][:2] == [("make install", True)] * 2


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
    assert doctor.device_rows({"devices": (device, emulated)}) == [
        ("slow", "cpu", "6-7", "native", "1.0 GiB", ""),
        ("slow", "cpu", "6-7", "avx2", "1.0 GiB", "dense 4, attention 1.5: emulated"),
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
