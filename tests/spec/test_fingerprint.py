"""Fingerprints are in plans and profiles that people keep: what they are made of is, byte for byte, what msgspec writes."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve.planner.options import Options
from hetserve.planner.uniform import plan_uniform
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.fingerprint import canonical, fingerprint
from hetserve.spec.model import ModelSpec

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXT
DATA = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))


def by_msgspec(data: object) -> str:
    return msgspec.json.encode(data, order="sorted").decode()


@given(DATA)
def test_any_data(data: object) -> None:
    assert canonical(data) == by_msgspec(data)


@given(st.floats(1e-9, 1e-3) | st.floats(1e14, 1e18) | st.integers(-330, 308).map(lambda power: float(f"1e{power}")))
def test_numbers_where_their_form_changes(value: float) -> None:
    assert (canonical(value), canonical(-value)) == (by_msgspec(value), by_msgspec(-value))


@dataclass(frozen=True)
class Thing:
    later: tuple[int, ...] = (1, 2)
    earlier: dict[str, float] = field(default_factory=lambda: {"b": 1e-5, "a": 2.0})


def test_dataclasses_and_whole_plans() -> None:
    assert canonical(Thing()) == by_msgspec(Thing()) == '{"earlier":{"a":2.0,"b":0.00001},"later":[1,2]}'
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 512}
    spec = ModelSpec.from_hf({**config, "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 128, "rms_norm_eps": 1e-5})
    plan = plan_uniform(Cluster("c", (0,), (Device("d", "cpu", (0,), "", 2**30),)), spec, None, Options(dtype="float32"))
    assert canonical(plan) == by_msgspec(plan)
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2d"


def test_what_json_cannot_say_is_an_error() -> None:
    with pytest.raises(TypeError):
        canonical({"a": object()})
