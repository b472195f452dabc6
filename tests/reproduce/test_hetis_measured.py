"""Hetis' measured claims against an engine that is a stand-in: what bench is asked, what is simulated beside it, what is made of the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import ResourceError
from hetserve.reproduce import hetis_measured, hetis_pages
from hetserve.reproduce.claims import claims_of, everything
from hetserve.reproduce.hetis_measured import off
from hetserve.reproduce.setup import Requests, Setup
from hetserve.spec.load import load_profile

PROFILE = Path(__file__).parents[2] / "results" / "profile" / "20261121" / "amd-epyc-2c-llama-250m.toml"
SETUP = Setup(profile=PROFILE)
Asked = list[dict[str, str]]


def numbers(tokens_per_s: float, latency_ms: float, kv: float) -> dict[str, Any]:
    said = {"output_throughput": tokens_per_s, "mean_e2el_ms": latency_ms, "peak_kv_tokens": kv, "preemptions": 0.0, "moves": 3.0}
    return {**said, "layout": []}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Asked, dict[str, dict[str, Any]]]:
    """Flags that `bench` got, and what it answers by baseline; its own system has 100 tokens/s, 1 s and 2,000 tokens of KV."""
    asked: Asked = []
    answers: dict[str, dict[str, Any]] = {}
    folder = tmp_path / "llama-250m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RECIPES["llama-250m"].config))

    def bench(arguments: list[str], folder: Path) -> dict[str, Any]:
        asked.append(dict(zip(arguments[::2], arguments[1::2], strict=True)))
        return {"systems": {"hetis": numbers(100.0, 1000.0, 2000.0), **answers}, "inputs": {"dataset": "azure-conv"}}

    monkeypatch.setattr(hetis_measured, "bench", bench)
    monkeypatch.setattr(hetis_measured, "checkpoint", lambda where: folder)
    return asked, answers


def test_throughput_is_that_of_pairs_with_each_baseline(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = engine
    monkeypatch.setattr(hetis_measured.Bench, "simulated", lambda self, name: {"output_throughput": 50.0 if name == "hetis" else 40.0})
    answers |= {
        "hexgen-policy": numbers(80.0, 1.0, 1600.0),
        "splitwise-policy": numbers(40.0, 1.0, 1500.0),
        "uniform-policy": numbers(90.0, 1.0, 1000.0),
    }
    report = hetis_measured.throughput(SETUP)
    assert {claim.name for claim in claims_of("hetis-measured-throughput")} == report.found.keys()
    found = {name: one.number for name, one in report.found.items()}
    assert found == pytest.approx({"hetis-measured-hexgen": 1.25, "hetis-measured-splitwise": 2.5, "hetis-measured-kv": 2.0})
    (flags,) = asked
    assert (flags["--system"], flags["--baseline"], flags["--cluster"]) == ("hetis", "hexgen,splitwise,uniform", "cpu-hetero")
    assert (flags["--class"], flags["--num-prompts"], flags["--request-rate"]) == ("HPHD", "16", "inf") and "--data-dir" not in flags
    assert [row["simulated hetis / it"] for row in report.tables[0].rows] == [1.0, 1.25, 1.25, 1.25]


def test_the_simulator_gets_the_same_requests(engine) -> None:
    with hetis_measured.ready(SETUP) as here:
        simulated = here.simulated("uniform")
        asked = Requests("azure-conv", hetis_measured.COUNT, hetis_measured.MOST_TOKENS, None, hetis_measured.ONLY).drawn().lengths
    assert simulated["total_input_tokens"] == sum(asked.input_tokens) and simulated["total_output_tokens"] == sum(asked.output_tokens)


def test_the_default_threshold_is_held_against_the_best(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = engine
    monkeypatch.setattr(hetis_measured.Bench, "simulated", lambda self, name, **planning: {"mean_e2el_ms": 7000.0})
    for text, latency_ms in (("none", 1500.0), ("0.1", 1200.0), ("0.25", 800.0), ("1", 1100.0)):
        answers[f"hetis-policy theta={text}"] = numbers(100.0, latency_ms, 1.0)
    report = hetis_measured.theta(SETUP)
    assert report.found["hetis-measured-theta"].number == pytest.approx(0.8) and "0.25" in report.found["hetis-measured-theta"].how
    assert asked[0]["--baseline"] == "hetis theta=none,hetis theta=0.1,hetis theta=0.25,hetis theta=1"
    assert [row["theta"] for row in report.tables[0].rows] == [0.1, 0.25, 0.5, 1.0, "off"]


def test_the_worse_of_two_wrong_profiles_is_judged(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []

    def bench(arguments: list[str], folder: Path) -> dict[str, Any]:
        names = dict(zip(arguments[::2], arguments[1::2], strict=True))["--baseline"].split(",")
        read.extend(load_profile(name.partition("=")[2]).devices[1].attention.b_s for name in names)
        wrong = {f"hetis-policy {name.partition(' ')[2]}": numbers(100.0, latency, 1.0) for name, latency in zip(names, (900.0, 1100.0), strict=True)}
        return {"systems": {"hetis": numbers(100.0, 1000.0, 2000.0), **wrong}, "inputs": {}}

    monkeypatch.setattr(hetis_measured, "bench", bench)
    report = hetis_measured.error(SETUP)
    assert report.found["hetis-measured-error"].number == pytest.approx(0.1)
    right = load_profile(PROFILE).devices[1].attention.b_s
    assert read == pytest.approx([0.8 * right, 1.2 * right])


def test_a_wrong_profile_is_wrong_of_attention_and_links_alone() -> None:
    right = load_profile(PROFILE)
    wrong = off(right, 1.2)
    assert wrong.devices[0] == right.devices[0] and wrong.devices[1].dense == right.devices[1].dense
    before, after = right.devices[1].attention, wrong.devices[1].attention
    assert (after.a_s, after.b_s, after.c_s) == pytest.approx((1.2 * before.a_s, 1.2 * before.b_s, 1.2 * before.c_s))
    assert [one.gamma_s for one in wrong.links] == pytest.approx([1.2 * one.gamma_s for one in right.links])


def test_accuracies_are_those_of_the_profile(engine) -> None:
    report = hetis_measured.linearity(SETUP)
    profile = load_profile(PROFILE)
    found = {name: one.number for name, one in report.found.items()}
    attention = 1 - min(one.attention.held_out_error for one in profile.devices)
    transfer = 1 - max(one.held_out_error for one in profile.links)
    assert found == pytest.approx({"hetis-measured-attention": attention, "hetis-measured-transfer": transfer})


def test_too_few_cores_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_few(name: str) -> None:
        raise ResourceError("too few cores")

    monkeypatch.setattr(hetis_measured, "cluster_here", too_few)
    monkeypatch.setattr(hetis_measured, "checkpoint", lambda where: pytest.fail("a model was made"))
    with pytest.raises(ResourceError, match="too few cores"):
        hetis_measured.throughput(Setup())


def test_pages_of_either_kind_hold_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching after storing gives the stored tokens back, head-wise and whole; and both are timed."""
    copies: list[Any] = []
    gather = hetis_pages._C.page_gather
    monkeypatch.setattr(hetis_pages._C, "page_gather", lambda *given: (gather(*given), copies.append(given[-1])))
    for heads in (hetis_pages.KV_HEADS, 1):
        store, fetch = hetis_pages.Pages(heads, requests=3, tokens=32).works()
        fetch()
        assert not copies[-1].any()
        store()
        fetch()
        per_page = (copies[-1].reshape(len(copies[-1]), 2, hetis_pages.PAGE_TOKENS, -1) != 0).any(-1)
        assert per_page.sum() == 3 * heads * 2 and per_page[..., -1].sum() == 3 * heads * 2  # the last token of each request, K and V
    report = hetis_pages.run(Setup(), requests=2, tokens=32, rounds=3)
    assert report.found.keys() == {claim.name for claim in claims_of("hetis-measured-store-fetch")}
    assert all(one.number > -1 for one in report.found.values())


def test_what_is_measured_is_no_part_of_what_runs_by_itself() -> None:
    kinds = {one.name: one.kind for one in everything()[0] if one.name.startswith("hetis-measured")}
    assert len(kinds) == 5 and set(kinds.values()) == {"measured"}
