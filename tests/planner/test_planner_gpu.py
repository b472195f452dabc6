"""Planners where a device is a GPU: who gets what, with a profile and without, and nothing that only a CPU has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_cases import GIB, model, profile

from hetserve.control.config import config_from_plan
from hetserve.cost.costs import Costs
from hetserve.cost.rates import device_rates
from hetserve.planner.case import KV_BYTES, kind_of, open_case
from hetserve.planner.options import Options
from hetserve.spec.cluster import CUDA, EMULATED, Cluster, Device, Host
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Plan, decode_plan, encode_plan
from hetserve.spec.workload import Workload
from hetserve.systems import SYSTEMS, system

MODEL = model()
LONG = Workload(1100.0, 400.0)
CPU = Device("cpu", "cpu", tuple(range(16)), "avx2", 8 * GIB)


def gpu_and_cpu(kind: str = CUDA, kv_mib: int = 100) -> Cluster:
    """A GPU with room for so much KV beside the weights and what a step needs by default."""
    over = Cluster("mixed", (0,), (Device("gpu", kind, (0,), "", 40 * GIB), CPU))
    left = open_case(over, MODEL, LONG, Options()).primary_room("gpu", (0, MODEL.layers), "bfloat16")
    return Cluster("mixed", (0,), (Device("gpu", kind, (0,), "", 40 * GIB - left + kv_mib * 2**20), CPU))


def measured(over: Cluster):
    """The GPU's products a hundred times faster, its attention two and a half times: a CPU's memory is not as far behind."""
    known = profile(MODEL, over, {"": 1e-7, "avx2": 1e-5}, float32=0.5)  # as if products with float32 were faster
    lines = [replace(one.attention, b_s=one.attention.b_s / faster) for one, faster in zip(known.devices, (50, 20), strict=True)]
    gpu, cpu = (replace(one, attention=line) for one, line in zip(known.devices, lines, strict=True))
    return replace(known, devices=(replace(gpu, kind=over.devices[0].kind, cap=""), replace(cpu, cores=len(CPU.cores))))


def plan(name: str, on: Cluster, **options) -> Plan:
    return system(name).planner(on, MODEL, LONG, Options(**options))


@pytest.mark.parametrize("with_profile", [False, True])
@pytest.mark.parametrize("kind", [CUDA, EMULATED])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_plans_for_a_gpu(name, kind, with_profile) -> None:
    over = gpu_and_cpu(kind)
    made = plan(name, over, profile=measured(over) if with_profile else None)
    assert decode_plan(encode_plan(made), "plan") == made and config_from_plan(made).groups
    stages = {stage.primary[0]: stage for group in made.groups for stage in group.stages}
    assert stages["gpu"].weights == "bfloat16", "a GPU never gains by float32"
    costs = Costs(MODEL, "bfloat16", over)
    for stage in stages.values():
        what = (stage.primary[0], stage.layers, stage.weights)
        used = costs.weight_bytes(*what) + costs.workspace_bytes(*what, made.limits.max_step_tokens, made.limits.max_seqs)
        assert used + stage.pools[0].pages * stage.pools[0].page_bytes <= over.device(stage.primary[0]).memory_bytes


@pytest.mark.parametrize("with_profile", [False, True])
@pytest.mark.parametrize("kind", [CUDA, EMULATED])
def test_the_cpu_beside_a_full_gpu_becomes_its_attention_worker(kind, with_profile) -> None:
    """The GPU's memory holds a fraction of the sequences that could run; the CPU brings more."""
    over = gpu_and_cpu(kind)
    made = plan("hetis", over, profile=measured(over) if with_profile else None)
    ((stage,),) = (group.stages for group in made.groups)
    assert (stage.primary, stage.attention, stage.weights) == (("gpu",), ("cpu",), "bfloat16")
    assert any("cpu: attention worker" in note for note in made.notes)
    assert plan("uniform", over).groups[0].stages[0].primary == ("gpu",)


def test_a_gpu_as_attention_worker_has_room_for_its_plan() -> None:
    over = gpu_and_cpu()
    case = open_case(over, MODEL, LONG, Options())
    assert 0 < case.attention_room("gpu") < over.devices[0].memory_bytes - 2**26 and case.attention_room("cpu") > 8 * GIB - 2**26


def test_kv_takes_what_a_gpu_has_left_and_a_share_of_the_machines_memory() -> None:
    case = open_case(gpu_and_cpu(), MODEL, LONG, Options())
    assert case.kv_bytes("gpu", 30 * GIB) == 30 * GIB and case.kv_bytes("cpu", 30 * GIB) == KV_BYTES
    told = open_case(gpu_and_cpu(), MODEL, LONG, Options(kv_memory_bytes=GIB))
    assert told.kv_bytes("gpu", 30 * GIB) == told.kv_bytes("cpu", 30 * GIB) == GIB


def test_weights_are_stored_in_what_can_pay() -> None:
    both = open_case(gpu_and_cpu(), MODEL, LONG, Options())
    assert both.weights("gpu") == ("bfloat16",) and both.weights("cpu") == ("bfloat16", "float32")
    exact = open_case(gpu_and_cpu(), MODEL, LONG, Options(dtype="float32"))
    assert exact.weights("gpu") == exact.weights("cpu") == ("float32",)


def test_two_gpus_are_of_one_type_whichever_cores_wait_for_them() -> None:
    one, other = Device("a", CUDA, (0,), "", GIB), Device("b", CUDA, (1, 2), "", GIB, index=1)
    assert kind_of(one) == kind_of(other) != kind_of(replace(other, kind=EMULATED)) != kind_of(CPU)


def test_two_gpus_are_two_instances_or_one() -> None:
    pair = Cluster("pair", (0,), (Device("a", CUDA, (0,), "", 2 * GIB), Device("b", CUDA, (1, 2), "", 2 * GIB, index=1)))
    made = plan("hetis", pair)
    assert {stage.primary[0] for group in made.groups for stage in group.stages} == {"a", "b"}


def test_rates_of_an_unmeasured_gpu_say_where_they_come_from() -> None:
    gpu, cpu = (device_rates(device, "bfloat16") for device in gpu_and_cpu().devices)
    assert gpu.dense_flops > 10 * cpu.dense_flops and gpu.read_bytes > 2 * cpu.read_bytes and "RTX 3090" in gpu.source
    assert device_rates(gpu_and_cpu().devices[0], "float32").dense_flops < gpu.dense_flops / 2
    assert device_rates(gpu_and_cpu(EMULATED).devices[0], "bfloat16") == gpu


def test_the_packaged_twin_can_be_planned_for() -> None:
    from hetserve.engine.model.recipes import RECIPES
    from hetserve.spec.model import ModelSpec

    tiny = ModelSpec.from_hf(RECIPES["tiny"].config, None, "tiny")
    twin = load_cluster("gpu-emulated-plus-cpu", Host((0, 1), 2**34, "avx2"))
    made = system("hetis").planner(twin, tiny, None, Options())
    ((stage,),) = (group.stages for group in made.groups)
    assert stage.primary == ("gpu",) and stage.attention == ("cpu",)
