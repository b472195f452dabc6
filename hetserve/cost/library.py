"""The committed fits: coefficients of the GPUs that somebody measured, and of one known by its data sheet only."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from hetserve.catalog import rows as catalog
from hetserve.cost.kernels import AllReduce, Chip, Decode, Gemm, Link, Overhead, Prefill, Small
from hetserve.cost.step import Kernels, Wire
from hetserve.errors import SpecError, UnsupportedError
from hetserve.spec.strict import build

FORMAT = 1
SHEET = "data-sheet"  # the file of devices that nobody measured
KINDS = {field.name: field.type for field in fields(Kernels)}
BY_LINK = ("custom", "nccl", "link")  # kinds that belong to the link between GPUs rather than to the chip
COMMON = ("pcie", "overhead")  # kinds that are no device's own
FIT, SAME_CHIP, SAME_LINK, ACROSS, DATA_SHEET = "fit", "fit of the same chip", "fit of the same link", "fit across devices", "data sheet"


@dataclass(frozen=True)
class Source:
    """One raw file a fit was made from."""

    file: str
    licence: str
    sha256: str  # of its contents, uncompressed


@dataclass(frozen=True)
class LowPower:
    """What boards of few watts keep of their tensor peak."""

    watts: float  # boards below it
    share: float


@dataclass(frozen=True)
class FitFile:
    """One file of coefficients.

    Attributes:
        device: a name of the catalog; of SHEET: empty.
        sources: collections and rows behind each kind, for people.
    """

    format: int
    device: str
    command: str
    sources: dict[str, str]
    input: tuple[Source, ...]
    gemm: Gemm | None = None
    decode: Decode | None = None
    prefill: Prefill | None = None
    small: Small | None = None
    custom: AllReduce | None = None
    nccl: AllReduce | None = None
    pcie: AllReduce | None = None
    link: Link | None = None
    overhead: Overhead | None = None
    low_power: LowPower | None = None


@dataclass(frozen=True)
class Known:
    """What is known of one device.

    Attributes:
        grounds: of each kind of kernel: FIT, SAME_CHIP, SAME_LINK, ACROSS or DATA_SHEET, and of what.
    """

    device: str
    chip: Chip
    kernels: Kernels
    grounds: dict[str, str]

    def source(self, kinds: Collection[str] = ()) -> str:
        """The grounds of some kinds (default: of all), each named once with what it is of."""
        found: dict[str, list[str]] = {}
        for kind, ground in self.grounds.items():
            if not kinds or kind in kinds:
                found.setdefault(ground, []).append(kind)
        if len(found) == 1:
            return next(iter(found))
        return "; ".join(f"{', '.join(names)}: {ground}" for ground, names in found.items())


@cache
def known(device: str) -> Known:
    """What the committed fits say of a device: its own, else those of a device with the same chip, else the data-sheet model.

    Collectives belong to a link rather than to a chip: those of a device with the same link between GPUs come before the data-sheet model.

    Raises:
        SpecError: the catalog has no such device.
    """
    row, sheet = catalog.device(device), fit_file(SHEET)
    assert sheet is not None, "the data-sheet fit is committed"
    own, relatives = fit_file(row.name), [other for other in catalog.devices() if other.name != row.name and fit_file(other.name)]
    chosen: dict[str, Any] = {}
    grounds = {}
    for kind in KINDS:
        same = [other.name for other in relatives if alike(kind, row, other) and getattr(fit_file(other.name), kind)]
        if own is not None and getattr(own, kind):
            chosen[kind], grounds[kind] = getattr(own, kind), FIT
        elif same:
            chosen[kind], grounds[kind] = getattr(fit_file(same[0]), kind), f"{SAME_LINK if kind in BY_LINK else SAME_CHIP}, {same[0]}"
        else:
            chosen[kind], grounds[kind] = getattr(sheet, kind), ACROSS if kind in COMMON else DATA_SHEET
    return Known(row.name, chip_of(row.name, sheet.low_power), Kernels(**chosen), grounds)


def across() -> Link:
    """A message over a link that no device's fit is of."""
    sheet = fit_file(SHEET)
    assert sheet is not None and sheet.link is not None, "the data-sheet fit is committed"
    return sheet.link


def alike(kind: str, one: catalog.DeviceRow, other: catalog.DeviceRow) -> bool:
    """Whether a kind's coefficients of one device hold for the other too: the same link, or the same chip with perhaps another memory."""
    if kind in BY_LINK:
        return one.peer == other.peer
    return (one.arch, one.sms, one.half_rate) == (other.arch, other.sms, other.half_rate)


def chip_of(device: str, low_power: LowPower | None = None) -> Chip:
    """A device of the catalog as the formulas know it."""
    row = catalog.device(device)
    share = low_power.share if low_power is not None and row.watts < low_power.watts else 1.0
    return Chip(row.tensor_flops * share, row.read_bytes, row.sms, row.half_rate)


def wire_of(device: str, link: str = "") -> Wire:
    """Between GPUs of a device's host, or a named link."""
    row = catalog.link(link or catalog.device(device).peer)
    return Wire(row.bytes_per_s, row.kind == "nvlink")


@cache
def fit_file(name: str) -> FitFile | None:
    """The committed file of a device or of SHEET; None: there is none."""
    text = catalog.fit_text(name)
    return None if text is None else parse_fit(text, f"fits/{name}.toml")


def parse_fit(text: str, where: str) -> FitFile:
    """The coefficients in a fit file.

    Raises:
        SpecError: not TOML, unknown or missing keys, coefficients that are not positive.
        UnsupportedError: a format this version does not know.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where}: not TOML: {error}") from None
    if data.get("format") != FORMAT:
        raise UnsupportedError(f"{where}: this version reads fits of format {FORMAT} only", "`hetserve cost fit` makes them")
    found = build(FitFile, data, where)
    for kind in KINDS:
        for name, value in (asdict(getattr(found, kind)) if getattr(found, kind) else {}).items():
            if not 0 < value < float("inf"):
                raise SpecError(f"{where}: {name} of {kind} must be positive, got {value:g}")
    return found


def encode_fit(file: FitFile) -> str:
    """The text of a fit file; the same coefficients are the same bytes."""
    lines = [f"format = {file.format}", f'device = "{file.device}"', f'command = "{file.command}"', "", "[sources]"]
    lines += [f'{kind} = "{said}"' for kind, said in file.sources.items()]
    for kind in (*KINDS, "low_power"):
        values = getattr(file, kind)
        if values is not None:
            lines += ["", f"[{kind}]", *(f"{name} = {value:.5g}" for name, value in asdict(values).items())]
    for source in file.input:
        lines += ["", "[[input]]", f'file = "{source.file}"', f'licence = "{source.licence}"', f'sha256 = "{source.sha256}"']
    return "\n".join(lines) + "\n"
