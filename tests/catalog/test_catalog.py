"""The catalog: every row refers to rows that are there, shapes give the published counts, and a wrong name meets a right one."""

from __future__ import annotations

import pytest

from hetserve.catalog import rows
from hetserve.cost import library
from hetserve.errors import SpecError, UnsupportedError


def test_rows_refer_to_rows_that_are_there() -> None:
    assert len(rows.devices()) >= 20 and len(rows.models()) >= 13
    for device in rows.devices():
        for link in (device.peer, device.host, *([device.bridge] if device.bridge else [])):
            assert rows.link(link).bytes_per_s > 0, (device.name, link)
    names = [device.name for device in rows.devices()]
    assert len(set(names)) == len(names)
    assert {price.device for price in rows.prices()} <= set(names)
    assert {price.kind for price in rows.prices()} <= set(rows.PRICE_KINDS)


def test_every_row_has_a_source() -> None:
    for row in (*rows.devices(), *rows.links(), *rows.models(), *rows.prices()):
        assert row.source.strip(), row


def test_an_alias_means_one_device() -> None:
    known = [name.lower() for device in rows.devices() for name in (device.name, *device.aliases)]
    assert len(set(known)) == len(known)
    assert rows.device("a100").name == "A100-SXM-80GB" and rows.device("3090").half_rate


@pytest.mark.parametrize("row", rows.models(), ids=lambda row: row.name)
def test_shapes_give_the_published_counts(row: rows.ModelRow) -> None:
    assert rows.model(row.name).parameters == row.parameters


def test_peaks_are_dense() -> None:
    """The sparse figures that data sheets print larger are twice these."""
    assert rows.device("H100").tensor_flops == pytest.approx(989e12) and rows.device("A6000").tensor_flops < 160e12
    assert rows.device("L40S").tensor_flops == pytest.approx(2 * rows.device("L40").tensor_flops, rel=0.01)


@pytest.mark.parametrize(
    ("find", "wrong", "meant"),
    [(rows.device, "A100-SXM-80G", "A100-SXM-80GB"), (rows.model, "llama-2-7", "Llama-2-7B"), (rows.link, "nvlnk4", "nvlink4")],
)
def test_a_wrong_name_meets_a_right_one(find, wrong, meant) -> None:
    with pytest.raises(SpecError, match=wrong) as error:
        find(wrong)
    assert f"did you mean {meant!r}" in error.value.hint


def test_prices_by_kind() -> None:
    paid = rows.price("A100")
    assert paid is not None and paid.kind == "market" and 0.5 < paid.usd_per_hour < 5
    assert rows.price("P100-12GB") is None


# ---------------------------------------------------------------------------------------------------------------- fits


def test_every_device_has_grounds() -> None:
    for device in rows.devices():
        known = library.known(device.name)
        assert set(known.grounds) == set(library.KINDS) and known.source()


def test_grounds_go_from_own_fits_to_the_chip_to_the_data_sheet() -> None:
    assert library.known("A100").grounds["gemm"] == "fit"
    assert library.known("H200").grounds["gemm"] == "fit of the same chip, H100-SXM-80GB"
    assert library.known("A100-PCIe-80GB").grounds["nccl"] == "data sheet"  # the chip is measured, its link is another
    assert library.known("L40S").grounds["gemm"] == "data sheet" and library.known("L40S").source({"gemm", "decode"}) == "data sheet"


def test_fits_name_their_inputs() -> None:
    for name in (library.SHEET, *(device.name for device in rows.devices())):
        file = library.fit_file(name)
        if file is not None:
            assert file.input and all(len(one.sha256) == 64 and one.licence in ("MIT", "Apache-2.0") for one in file.input), name
            assert set(file.sources) == {kind for kind in library.KINDS if getattr(file, kind)}, name


def test_a_fit_file_survives_being_written_and_read() -> None:
    text = rows.fit_text(library.SHEET)
    assert text is not None and library.encode_fit(library.parse_fit(text, "here")) == text


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (("format = 1", "format = 9"), UnsupportedError, "format 1"),
        (("read_share", "red_share"), SpecError, "red_share"),
        (("[gemm]\nfixed_s = ", "[gemm]\nfixed_s = -"), SpecError, "fixed_s of gemm must be positive"),
        (("[gemm]", "[gemm"), SpecError, "not TOML"),
    ],
)
def test_a_damaged_fit_file_is_refused(change, kind, said) -> None:
    text = rows.fit_text(library.SHEET)
    assert text is not None and change[0] in text
    with pytest.raises(kind, match="here") as error:
        library.parse_fit(text.replace(*change, 1), "here")
    assert said in error.value.message


def test_boards_of_few_watts_keep_less_of_their_peak() -> None:
    row, known = rows.device("L4"), library.known("L4")
    assert 0.3 * row.tensor_flops < known.chip.flops < 0.9 * row.tensor_flops
    assert library.known("L40S").chip.flops == rows.device("L40S").tensor_flops
