"""Plans: the same bytes for the same input, read back as written, and nothing hand-edited slips through."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from hetserve.control.config import config_from_plan
from hetserve.engine.runnable import require_runnable
from hetserve.errors import HetserveError, ResourceError, SpecError, UnsupportedError, UsageError
from hetserve.planner.options import Options
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.load import load_plan, save_plan
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Flow, Group, Plan, decode_plan, encode_plan, plan_schema
from hetserve.spec.workload import Workload
from hetserve.systems import SYSTEMS, system

MODEL = ModelSpec.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 320,
        "max_position_embeddings": 512,
        "dtype": "bfloat16",
    },
    None,
    "small",
)
GIB = 2**30
CLUSTER = Cluster("pair", (0,), (Device("slow", "cpu", (0,), "avx2", 2 * GIB), Device("fast", "cpu", (1,), "amx", 1 * GIB)))
LAYER_PAGE_BYTES = 2 * 16 * 8 * 2  # K and V of 16 tokens of head_dim 8 in bfloat16


def make(**options) -> Plan:
    return system("uniform").planner(CLUSTER, MODEL, None, Options(**options))


def test_uniform_takes_the_fastest_device_and_gives_it_everything() -> None:
    plan = make(kv_memory_bytes=1_000_000)
    (group,) = plan.groups
    (stage,) = group.stages
    assert (group.role, stage.layers, stage.primary, stage.attention) == ("mixed", (0, 3), ("fast",), ())
    (pool,) = stage.pools
    assert pool.page_bytes == 3 * LAYER_PAGE_BYTES
    assert pool.pages == 1_000_000 // pool.page_bytes
    assert (plan.model.dtype, plan.limits.max_model_len) == ("bfloat16", 512)


def test_pages_stop_at_what_all_slots_could_ever_use() -> None:
    plan = make(max_seqs=4)
    assert plan.groups[0].stages[0].pools[0].pages == 4 * 2 * 512 // 16


def test_a_short_memory_shortens_the_longest_sequence_unless_it_was_asked_for() -> None:
    size_bytes = 3 * LAYER_PAGE_BYTES * 2 * 5
    assert make(kv_memory_bytes=size_bytes).limits.max_model_len == 80
    assert make(kv_memory_bytes=size_bytes, max_model_len=64).limits.max_model_len == 64
    for options in (
        {"kv_memory_bytes": size_bytes, "max_model_len": 81},
        {"kv_memory_bytes": 10},
        {"max_model_len": 513},
        {"kv_memory_bytes": 3 * GIB},
    ):
        with pytest.raises(ResourceError):
            make(**options)
    with pytest.raises(UsageError):
        make(max_seqs=100, max_step_tokens=50)


def test_no_memory_for_the_weights() -> None:
    tight = replace(CLUSTER, devices=(Device("fast", "cpu", (1,), "amx", 1000),))
    with pytest.raises(ResourceError, match="weights"):
        SYSTEMS["uniform"].planner(tight, MODEL, None, Options())


def test_the_same_input_gives_the_same_bytes() -> None:
    assert encode_plan(make()) == encode_plan(make())
    assert make().hash == make().hash != make(max_seqs=3).hash


def test_a_plan_is_read_back_as_written(tmp_path) -> None:
    path = tmp_path / "plan.json"
    save_plan(make(), path)
    assert load_plan(path) == make()
    assert path.read_text() == encode_plan(make())
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_fits_its_schema_and_what_does_not_is_refused_by_both() -> None:
    """A tiny validator for what the schema uses; msgspec wrote the types, we the rest."""
    schema = plan_schema()

    def fits(value, kind) -> bool:
        kind = schema["$defs"][kind["$ref"].split("/")[-1]] if "$ref" in kind else kind
        if "const" in kind:
            return value == kind["const"]
        if "anyOf" in kind:
            return any(fits(value, one) for one in kind["anyOf"])
        match kind["type"], value:
            case "null", _:
                return value is None
            case "object", dict():
                known = kind["properties"]
                return set(kind.get("required", ())) <= set(value) <= set(known) and all(fits(value[key], known[key]) for key in value)
            case "array", list():
                each = kind.get("prefixItems") or [kind["items"]] * len(value)
                return all(fits(one, inner) for one, inner in zip(value, each, strict=True))
        kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
        return isinstance(value, kinds.get(kind["type"], ()))

    good = json.loads(encode_plan(make()))
    assert fits(good, schema)
    for spoil in (lambda plan: plan.pop("limits"), lambda plan: plan.update(colour=1), lambda plan: plan["groups"][0].pop("pp")):
        bad = copy.deepcopy(good)
        spoil(bad)
        assert not fits(bad, schema)
        with pytest.raises(SpecError):
            decode_plan(json.dumps(bad), "plan")


def stage_of(plan: dict) -> dict:
    return plan["groups"][0]["stages"][0]


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (lambda plan: plan.update(format=2), UnsupportedError, "format 1"),
        (lambda plan: plan.pop("format"), SpecError, "no plan"),
        (lambda plan: plan.update(sytem="x"), SpecError, "did you mean 'system'"),
        (lambda plan: stage_of(plan)["pools"][0].update(page=1), SpecError, "did you mean 'pages'"),
        (lambda plan: stage_of(plan)["pools"][0].update(pages=0), SpecError, "pool"),
        (lambda plan: stage_of(plan)["pools"][0].update(pages="9"), SpecError, "pages"),
        (lambda plan: stage_of(plan)["pools"][0].update(pages=2**31), SpecError, "pages"),
        (lambda plan: stage_of(plan).update(primary=["nobody"]), SpecError, "fast, slow"),
        (lambda plan: stage_of(plan).update(primary=[]), SpecError, "workers"),
        (lambda plan: stage_of(plan).update(layers=[1, 3]), SpecError, "without a gap"),
        (lambda plan: stage_of(plan).update(tp=2), SpecError, "contradict"),
        (lambda plan: plan["model"]["shape"].update(hidden=7), SpecError, "contradict"),
        (lambda plan: plan["model"]["shape"].update(hiden=7), SpecError, "did you mean 'hidden'"),
        (lambda plan: plan["cluster"]["devices"][0].update(memory_bytes=5), SpecError, "contradict"),
        (lambda plan: plan["groups"][0].update(role="mixd"), SpecError, "role"),
        (lambda plan: plan.update(groups=[]), SpecError, "at least one group"),
        (lambda plan: plan["limits"].update(steps_in_flight=3), SpecError, "steps_in_flight"),
        (lambda plan: plan["limits"].update(max_seqs=0), SpecError, "max_seqs"),
        (lambda plan: plan["limits"].update(max_step_tokens=2), SpecError, "max_step_tokens"),
        (lambda plan: plan["model"].update(dtype="int3"), SpecError, "dtype"),
        (lambda plan: plan.update(flow=[{"source": 0, "target": 1, "share": 1.0}]), SpecError, "flow"),
        (lambda plan: plan.update(page_tokens=0), SpecError, "page_tokens"),
        (lambda plan: plan["groups"][0].update(requests_per_s=-1.0), SpecError, "requests per second"),
        (lambda plan: plan["online"].update(heads="exakt"), SpecError, "exact"),
        (lambda plan: plan["online"].update(theta=0.0), SpecError, "theta"),
    ],
)
def test_a_spoilt_plan_is_told(spoil, kind, said) -> None:
    data = json.loads(encode_plan(make()))
    spoil(data)
    with pytest.raises(kind) as caught:
        decode_plan(json.dumps(data), "plan.json")
    assert said in f"{caught.value.message} {caught.value.hint}"
    assert "plan.json" in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": 1}', '{"format": 1, "groups": [3], "cluster": []}'])
def test_what_is_no_plan(text) -> None:
    with pytest.raises(SpecError):
        decode_plan(text, "plan.json")


def test_files_that_cannot_be_read_or_written(tmp_path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(SpecError):
            load_plan(path)
    with pytest.raises(SpecError):
        save_plan(make(), tmp_path / "no" / "plan.json")


def test_the_controller_takes_its_numbers_from_the_plan() -> None:
    plan = make(max_seqs=7, kv_memory_bytes=1_000_000, steps_in_flight=1)
    config = config_from_plan(plan)
    assert (config.max_seqs, config.depth, config.kv_heads, config.page_tokens, config.plan_hash) == (7, 1, 2, 16, plan.hash)
    (pool,) = config.groups[0].pools
    assert (pool.device, pool.pages) == ("fast", 1_000_000 // (3 * LAYER_PAGE_BYTES))


def test_the_controller_knows_stages_attention_workers_and_roles() -> None:
    plan = make()
    (stage,) = plan.groups[0].stages
    pool = replace(stage.pools[0], device="slow")
    dealt = replace(stage, attention=("slow",), pools=(*stage.pools, pool))
    config = config_from_plan(replace(plan, groups=(Group("mixed", (dealt,)),)))
    (local, remote) = config.groups[0].pools
    assert (remote.device, remote.pages) == ("slow", pool.pages) and remote.heads.fixed_s > local.heads.fixed_s
    split = replace(stage, layers=(0, 1)), replace(stage, layers=(1, 3), primary=("slow",), pools=(pool,))
    stages = config_from_plan(replace(plan, groups=(Group("mixed", split),))).groups[0].stages
    assert [one.layers for one in stages] == [(0, 1), (1, 3)] and stages[0].cost.head.row_s == 0 < stages[1].cost.head.row_s
    elsewhere = replace(stage, primary=("slow",), pools=(pool,))
    roles = replace(plan, groups=(Group("prefill", (stage,)), Group("decode", (elsewhere,))))
    assert [group.role for group in config_from_plan(roles).groups] == ["prefill", "decode"]


def test_plans_for_another_model_or_a_later_version_are_refused() -> None:
    plan = make()
    with pytest.raises(SpecError, match="another shape"):
        plan.require_model(replace(MODEL, layers=4))
    plan.require_model(replace(MODEL, name="the same under another name"))
    (group,) = plan.groups
    (stage,) = group.stages
    pool = replace(stage.pools[0], device="slow")
    with_worker = replace(stage, attention=("slow",), pools=(*stage.pools, pool))
    later = [
        replace(plan, groups=(replace(group, stages=(replace(stage, layers=(0, 1)), replace(stage, layers=(1, 3)))),)),
        replace(plan, groups=(replace(group, role="prefill", stages=(with_worker,)), replace(group, role="decode"))),
    ]
    for one in later:
        assert decode_plan(encode_plan(one), "plan") == one
        with pytest.raises(UnsupportedError, match="this version"):
            config_from_plan(one)
    prefill, decode = replace(group, role="prefill"), replace(group, role="decode")
    for groups, flow in (((prefill,), ()), ((prefill, decode, decode), (Flow(0, 1, 1.0),)), ((prefill, decode), (Flow(1, 0, 1.0),))):
        with pytest.raises(UnsupportedError, match=r"without decode groups|flow leaves out"):
            config_from_plan(replace(plan, groups=groups, flow=flow))


def test_what_is_simulated_and_not_served() -> None:
    """The control plane takes these plans, the engine says which of them it has no workers for."""
    plan = make()
    (group,) = plan.groups
    (stage,) = group.stages
    both = replace(stage, primary=("fast", "slow"), pools=(*stage.pools, replace(stage.pools[0], device="slow")))
    cut = (replace(stage, layers=(0, 1), primary=("slow",), pools=(replace(stage.pools[0], device="slow"),)), replace(stage, layers=(1, 3)))
    prefill, decode = replace(group, role="prefill"), replace(group, role="decode")
    planned = {
        "tensor parallelism over 2 devices": (replace(group, stages=(both,)),),
        "2 prefill and 1 decode groups": (prefill, prefill, decode),
        "unlike stages": (prefill, replace(decode, stages=cut)),
    }
    for what, groups in planned.items():
        one = replace(plan, groups=groups)
        if groups[0].stages != (both,):
            assert len(config_from_plan(one).groups) == len(groups)
        with pytest.raises(UnsupportedError, match=what):
            require_runnable(one)
    require_runnable(plan)
    require_runnable(replace(plan, groups=(prefill, decode), flow=(Flow(0, 1, 1.0),)))


def test_unknown_systems() -> None:
    with pytest.raises(HetserveError) as caught:
        system("unifrom")
    assert "did you mean 'uniform'" in caught.value.hint


def test_a_workload_is_positive() -> None:
    plan = system("uniform").planner(CLUSTER, MODEL, Workload(1000.0, 200.0, 3.0), Options())
    assert plan.groups[0].stages == make().groups[0].stages and plan.groups[0].requests_per_s > 0
    for wrong in ((0.0, 1.0), (1.0, -1.0), (1.0, 1.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(SpecError):
            Workload(*wrong)
