"""Profile files: what is written is read back; what no measurement can say, and what is of something else, is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import SpecError, UnsupportedError
from hetserve.spec.cluster import Cluster, Device, Stretch, scaled
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.load import load_profile, save_profile
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import AttentionLine, Contention, DensePoint, DenseTimes, DeviceProfile, LinkProfile, Profile, Slowed, require

TINY, OTHER = (ModelSpec.from_hf(RECIPES[name].config, None, name) for name in ("tiny", "tiny-mha"))
CLUSTER = Cluster("pair", (1,), (Device("fast", "cpu", (0,), "", 2**30), Device("slow", "cpu", (1,), "avx2", 2**29)))
DENSE = DenseTimes("bfloat16", (DensePoint(1, 1e-3), DensePoint(2, 1.1e-3)), (DensePoint(1, 2e-3),))


def device(name: str, cap: str) -> DeviceProfile:
    return DeviceProfile(
        name, "cpu", "avx2", 1, 2.9e10, AttentionLine(4e-7, 6.1e-9, 0.0, 0.047), 3e-8, (DENSE, replace(DENSE, weights="float32")), cap
    )


PROFILE = Profile(
    "tiny",
    model_fingerprint(TINY),
    "bfloat16",
    'AMD "EPYC", 2 cores',
    2596.1,
    "torch 2.13",
    "2026-11-21",
    (device("fast", ""), device("slow", "avx2")),
    (LinkProfile("fast", "slow", 2e-8, 5e-5, 3e9, 0.11), LinkProfile("slow", "fast", 2e-8, 5e-5, 3.1e9, 0.11)),
    "abc",
    (Contention("fast", "slow", Slowed(1.43, 1.0, 1.2), Slowed(1.1, 1.5, 1.3), Slowed()), Contention("slow", "fast", decode=Slowed(1.2, 1.1, 1.6))),
)


def test_a_profile_from_before_contention_was_measured_has_none(tmp_path) -> None:
    save_profile(replace(PROFILE, contention=()), tmp_path / "p.toml")
    assert "contention" not in (tmp_path / "p.toml").read_text()
    old = load_profile(tmp_path / "p.toml")
    assert old.contention == () and old.beside("fast", "slow") is None
    require(old, CLUSTER, TINY, "bfloat16")


def test_how_devices_slow_each_other_is_known_of_all_pairs_of_a_node_or_of_none() -> None:
    known = PROFILE.beside("fast", "slow")
    assert known is not None and known.factors["decode by decode"] == 1.5
    half = replace(PROFILE, contention=PROFILE.contention[:1])
    with pytest.raises(SpecError, match="not how 'fast' slows 'slow'"):
        require(half, CLUSTER, TINY, "bfloat16")
    apart = replace(CLUSTER, devices=(CLUSTER.devices[0], replace(CLUSTER.devices[1], node="b")))
    require(half, apart, TINY, "bfloat16")


def test_what_is_written_is_read_back(tmp_path) -> None:
    stretched = replace(PROFILE.devices[1], stretch=Stretch(2.0, 3.0))
    for profile in (PROFILE, replace(PROFILE, links=(), devices=(stretched,))):
        save_profile(profile, tmp_path / "p.toml")
        assert load_profile(tmp_path / "p.toml") == profile


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("format = 2", "format = 1", UnsupportedError, "format 2 only"),
        ("gamma_s", "gama_s", SpecError, "did you mean 'gamma_s'"),
        ("prefill_pair_s = 3e-08", "prefill_pair_s = 0", SpecError, "device 'fast' has a time or a rate that none can be"),
        ("a_s = 4e-07", "a_s = -4e-07", SpecError, "none can be"),
        ("a_s = 4e-07", "a_s = nan", SpecError, "none can be"),
        ("bytes_per_s = 3000000000.0", "bytes_per_s = 0", SpecError, "the link from 'fast' to 'slow'"),
        ("{ tokens = 2,", "{ tokens = 1,", SpecError, "must ascend"),
        ("attention = 1.43", "attention = inf", SpecError, "attention by attention: inf times slower"),
        ("decode = 1.5", "decode = 0.9", SpecError, "'fast' beside 'slow', decode by decode: 0.9 times slower"),
        ("decode = {", "decodes = {", SpecError, "did you mean 'decode'"),
        ("layer_s = 0.", "layer_s = 0.0e", SpecError, "none can be"),
        ("[[devices]]", "[[devices]", SpecError, "not TOML"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, old, new, kind, said) -> None:
    path = tmp_path / "p.toml"
    save_profile(PROFILE, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(kind) as caught:
        load_profile(path)
    assert said in f"{caught.value.message} {caught.value.hint}" and "p.toml" in caught.value.message


def test_a_profile_of_these_devices_and_this_model_is_taken() -> None:
    require(PROFILE, CLUSTER, TINY, "bfloat16")
    require(PROFILE, scaled(CLUSTER, 4), replace(TINY, name="renamed"), "bfloat16")
    require(PROFILE, replace(CLUSTER, devices=CLUSTER.devices[:1]), TINY, "bfloat16")


def change(number: int, **changes) -> Cluster:
    devices = list(CLUSTER.devices)
    devices[number] = replace(devices[number], **changes)
    return replace(CLUSTER, devices=tuple(devices))


@pytest.mark.parametrize(
    ("profile", "cluster", "model", "dtype", "said"),
    [
        (PROFILE, CLUSTER, OTHER, "bfloat16", "another shape than 'tiny-mha'"),
        (PROFILE, CLUSTER, TINY, "float32", "not with float32"),
        (PROFILE, change(0, name="third"), TINY, "bfloat16", "only of fast, slow"),
        (PROFILE, change(0, cores=(0, 2)), TINY, "bfloat16", "has 2 cpu cores"),
        (PROFILE, change(1, stretch=Stretch(2.0)), TINY, "bfloat16", "stretched 2 and 1 times"),
        (PROFILE, change(1, isa=""), TINY, "bfloat16", "1 cpu cores, isa avx2"),
        (replace(PROFILE, links=PROFILE.links[:1]), CLUSTER, TINY, "bfloat16", "no link from 'slow' to 'fast'"),
    ],
)
def test_a_profile_of_something_else_is_refused(profile, cluster, model, dtype, said) -> None:
    with pytest.raises(SpecError) as caught:
        require(profile, cluster, model, dtype)
    assert said in caught.value.message and caught.value.hint
