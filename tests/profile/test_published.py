"""Published tables: read whole or not at all, fitted to what made them, and judged on what the fit has not seen."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import published_files
import pytest
from published_files import A100, A100_40, GEMM

from hetserve.catalog import rows
from hetserve.cost import library
from hetserve.cost.fits import errors
from hetserve.errors import SpecError
from hetserve.profile.published import check, fitting
from hetserve.profile.published.files import spread
from hetserve.profile.published.gather import Published, gather

DATA = Path(os.environ.get("HETSERVE_DATA", "/nowhere"))
real_data = pytest.mark.skipif(not (DATA / "profiles").is_dir(), reason="HETSERVE_DATA names no folder with published profiles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return published_files.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def published(folder) -> Published:
    return gather(folder)


# -------------------------------------------------------------------------------------------------------------- reading


def test_every_collection_is_read(published) -> None:
    kinds = {(table.device, table.source, table.kind) for table in published.tables}
    assert {(A100, "aiconfigurator", kind) for kind in ("gemm", "decode", "prefill", "nccl")} <= kinds
    assert {(A100, "vidur", kind) for kind in ("gemm", "small", "link")} <= kinds
    assert {("RTX-3090-24GB", "llmservingsim", kind) for kind in ("gemm", "prefill")} <= kinds
    assert {(step.device, step.source) for step in published.steps} == {
        *((A100, "vidur"), ("RTX-3090-24GB", "llmservingsim"), (A100_40, "helix"), (A100, "distserve, own engine")),
        (A100, "vidur + aiconfigurator"),
    }
    assert len(published.inputs) == 10 and all(len(one.sha256) == 64 for one in published.inputs)


def test_a_profiles_folder_below_is_found(folder, tmp_path) -> None:
    (tmp_path / "profiles").symlink_to(folder)
    assert len(gather(tmp_path).tables) == len(gather(folder).tables)


def test_times_are_seconds_of_what_the_formula_was_asked(published) -> None:
    """Units, shapes and columns of every reader: the formula that made the tables tells them without error."""
    for table in published.of("gemm"):
        assert np.abs(errors(GEMM, table)).max() < 1e-6, table.source
    for kind, kernel in (("decode", published_files.DECODE), ("prefill", published_files.PREFILL), ("small", published_files.SMALL)):
        for table in published.of(kind):
            assert np.abs(errors(kernel, table)).max() < 1e-6, (kind, table.source)
    for kind, formula in (("nccl", published_files.REDUCE), ("link", published_files.LINK)):
        assert all(np.abs(errors(formula, table)).max() < 1e-6 for table in published.of(kind))


def test_layers_of_two_collections_are_their_sum(published) -> None:
    """Where both have measured: 1 and 64 decoding sequences, prompts of 1,024 tokens between the 512 and the 2,048 of the dense part."""
    decode, prefill = (step for step in published.steps if step.source == "vidur + aiconfigurator")
    rank, chip = published_files.Rank(rows.model("Llama-2-70B")), library.chip_of(A100)

    def dense_s(tokens: float) -> float:
        small = sum(count * published_files.SMALL.seconds(chip, index, rank.moved(kind, tokens)) for index, kind, count in KINDS)
        return float(small + sum(GEMM.seconds(chip, tokens, *product) for product in rank.products.values()))

    for count in (1, 64):
        mine = decode.sequences == count
        context = decode.before[mine] + 1
        attention_s = published_files.DECODE.seconds(chip, count, count * context, context, 64, 8)
        assert mine.sum() == 3 and decode.seconds[mine] == pytest.approx(dense_s(count) + attention_s)
    assert list(prefill.sequences * prefill.new) == [1024, 1024] and list(prefill.new) == [1024, 256]
    assert (dense_s(512) < prefill.seconds).all() and "prefill" in prefill.parts


KINDS = ((0, "norm", 2), (1, "rope", 1), (2, "act", 1))


def test_many_tokens_weigh_no_more_than_few() -> None:
    kept = spread(np.arange(1.0, 2049.0)) + 1
    assert list(kept[:16]) == list(range(1, 17)) and len(kept) < 140
    assert 10 <= ((kept >= 1024) & (kept < 2048)).sum() <= 16


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("aiconfigurator/a100_sxm/gemm_perf.vllm-1.csv.gz", lambda raw: raw[: len(raw) // 2], "cannot be read"),
        ("aiconfigurator/a100_sxm/gemm_perf.vllm-1.csv.gz", lambda raw: gzip.compress(gzip.decompress(raw)[:-30]), "lacks a value"),
        ("aiconfigurator/a100_sxm/gemm_perf.vllm-1.csv.gz", lambda raw: gzip.compress(b"device,m,n,k\n1,2,3,4\n"), "no column 'latency'"),
        ("aiconfigurator/a100_sxm/gemm_perf.vllm-1.csv.gz", lambda raw: gzip.compress(b""), "no CSV table"),
        ("vidur/compute/a100/Llama-2-70b-hf/mlp.csv", lambda raw: raw.replace(b"mlp_act", b"mlp_akt"), "no column 'time_stats.mlp_act.median'"),
        ("vidur/compute/a100/Llama-2-70b-hf/mlp.csv", lambda raw: raw[:-40], "is damaged"),
        ("helix/llama2_70b/a100/decode_bs2time.csv", lambda raw: b"0,0\n2,\n", "lacks a value"),
        ("distserve/profiler-a100-80g.distserve.json", lambda raw: raw[:-30], "does not hold DistServe's coefficients"),
        (
            "llmservingsim/v0/RTX3090/Llama-3.1-8B/tp1/layers.csv.gz",
            lambda raw: gzip.compress(gzip.decompress(raw).replace(b",0,1,", b",,1,", 1)),
            "row 1 ",
        ),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, file, damage, said) -> None:
    path = published_files.write(tmp_path) / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SpecError) as error:
        gather(tmp_path)
    assert said in error.value.message and path.name.removesuffix(".gz") in error.value.message


def test_a_file_that_is_not_the_one_listed(tmp_path) -> None:
    """A number that lost its last digits is still a number; the list's sha256 knows."""
    data = published_files.write(tmp_path)
    name = "helix/llama2_70b/a100/decode_bs2time.csv"
    listed = hashlib.sha256((data / name).read_bytes()).hexdigest()
    (data / "MANIFEST.csv").write_text(f"file,sha256_uncompressed\n{name},{listed}\n")
    assert gather(data).tables
    (data / name).write_bytes((data / name).read_bytes()[:-2])
    with pytest.raises(SpecError, match="is not the file that MANIFEST"):
        gather(data)


def test_a_folder_without_profiles(tmp_path) -> None:
    with pytest.raises(SpecError, match="no published profiles") as error:
        gather(tmp_path)
    assert "aiconfigurator" in error.value.hint
    with pytest.raises(SpecError, match="no such folder"):
        gather(tmp_path / "elsewhere")
    (tmp_path / "vidur").mkdir()
    with pytest.raises(SpecError, match="hold no table"):
        gather(tmp_path)


# -------------------------------------------------------------------------------------------------------------- fitting


def test_fits_tell_what_made_the_tables(published) -> None:
    files = {file.device: file for file in fitting.fit_files(published, "a command")}
    assert set(files) == {"", A100, "RTX-3090-24GB"} and files[""].low_power is None
    assert {kind for kind in library.KINDS if getattr(files[A100], kind)} == {"gemm", "decode", "prefill", "small", "nccl", "link"}
    for table in published.of("gemm", A100):
        assert np.median(np.abs(errors(files[A100].gemm, table))) < 0.02
    for file in files.values():
        assert library.parse_fit(library.encode_fit(file), "here").device == file.device
        assert all(one.file.startswith(("aiconfigurator/", "vidur/", "llmservingsim/", "helix/")) for one in file.input)
    assert {one.file.split("/")[0] for one in files["RTX-3090-24GB"].input} == {"llmservingsim"}


def test_leaving_a_device_out_leaves_out_its_relatives() -> None:
    assert {A100, A100_40, "A100-PCIe-80GB"} <= fitting.relatives(A100_40, "gemm")
    assert fitting.relatives("H200", "nccl") == {"H200-SXM-141GB", "H100-SXM-80GB"}
    assert "RTX-A6000-48GB" in fitting.relatives("A40", "gemm") and "RTX-3090-24GB" not in fitting.relatives("A40", "gemm")


def test_what_a_board_of_few_watts_keeps(folder, tmp_path) -> None:
    """Prompt steps on an L4 that take twice what its peak would: half of it is kept."""
    data = published_files.write(tmp_path)
    chip, rank = library.chip_of("L4"), published_files.Rank(rows.model("Llama-2-70B"))
    slow = library.Chip(chip.flops / 2, chip.read_bytes, chip.sms)
    lines = [f"{n},{sum(1e3 * float(GEMM.seconds(slow, n, *product)) for product in rank.products.values()):.0f}" for n in (1000, 2000, 4000, 8000)]
    published_files.put(data / "helix/llama2_70b/l4/prompt_bs2time.csv", "", lines)
    published = gather(data)
    power = fitting.low_power(published, fitting.sheet_kernels(published))
    assert power is not None and power.share == pytest.approx(0.5, rel=0.1)
    assert fitting.low_power(published, fitting.sheet_kernels(published), without={"L4-24GB"}) is None


# ------------------------------------------------------------------------------------------------------------- checking


def test_a_check_judges_shapes_and_devices_apart(published) -> None:
    report = check.check(published)
    grounds = {(error.device, error.operator, error.ground) for error in report.operators}
    assert {(A100, "gemm", "fit"), (A100, "gemm", "data sheet"), ("RTX-3090-24GB", "gemm", "data sheet")} <= grounds
    steps = {(error.device, error.ground) for error in report.steps}
    assert steps == {
        *((A100, "fit"), (A100, "data sheet"), ("RTX-3090-24GB", "fit"), ("RTX-3090-24GB", "data sheet")),
        *((A100_40, "fit of the same chip"), (A100_40, "data sheet")),
    }
    products = [error for error in report.operators if error.operator == "gemm"]
    assert all(error.median < {"fit": 0.02, "data sheet": 0.12}[error.ground] for error in products)  # one formula made them all
    assert {(verdict.of, verdict.met) for verdict in report.verdicts if verdict.device == "RTX-3090-24GB" and verdict.ground == "fit"} == {
        *(("dense part", True), ("with attention", True))
    }
    assert any(verdict.of == "engines of 2023" for verdict in report.verdicts)


def test_a_check_does_not_see_what_it_judges(folder, tmp_path) -> None:
    """A device that is four times slower than its data sheet: its own fit knows, the data-sheet model cannot."""
    data = published_files.write(tmp_path)
    path = data / "llmservingsim/v0/RTX3090/Llama-3.1-8B/tp1/layers.csv.gz"
    head, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    slower = [",".join([*line.split(",")[:4], str(4 * float(line.split(",")[4]))]) for line in lines]
    published_files.put(path, head, slower)
    report = check.check(gather(data))
    bias = {error.ground: error.bias for error in report.operators if (error.device, error.operator) == ("RTX-3090-24GB", "gemm")}
    assert bias["data sheet"] == pytest.approx(-0.75, abs=0.05) and abs(bias["fit"]) < 0.3
    assert any(not verdict.met for verdict in report.verdicts if verdict.device == "RTX-3090-24GB")


# ------------------------------------------------------------------------------------------------------------ real data


@real_data
def test_the_committed_fits_are_those_of_the_data() -> None:
    files = fitting.fit_files(gather(DATA), "a command")
    for file in files:
        committed = library.fit_file(file.device or library.SHEET)
        assert committed is not None and committed.input == file.input, file.device
        for kind in library.KINDS:
            told, again = getattr(committed, kind), getattr(file, kind)
            assert (told is None) == (again is None), kind
            if told is not None:
                assert vars(told) == pytest.approx(vars(again), rel=0.02), (file.device, kind)


@real_data
def test_the_targets_on_real_data() -> None:
    """What is reached, and where not: results/cost/README.md says why."""
    missed = {(one.ground, one.phase, one.device, one.of) for one in check.check(gather(DATA)).verdicts if not one.met}
    assert {each for each in missed if each[3] != "engines of 2023"} <= {("fit", "decode", "RTX-3090-24GB", "dense part")}
