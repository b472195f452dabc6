"""The catalog's rows and how to get one by name. Reads only the files that are installed beside this one."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol, TypeVar

from hetserve.errors import SpecError
from hetserve.spec.model import ModelSpec
from hetserve.spec.strict import build

PRICE_KINDS = ("market", "hyperscaler", "paper")


@dataclass(frozen=True)
class DeviceRow:
    """One GPU, as its data sheet has it."""

    name: str
    arch: str
    compute_capability: str
    tensor_flops: float  # per second: dense, float16 or bfloat16 with float32 accumulation
    bf16: bool
    fp32_flops: float
    memory_bytes: int
    read_bytes: float  # per second, from its memory
    sms: int  # multiprocessors
    watts: float
    peer: str  # link to other GPUs of its host
    host: str  # link to the CPU
    source: str
    half_rate: bool = False  # with float32 accumulation its tensor cores do half of what they do with float16's
    bridge: str = ""  # link between a pair that can be bought for it; empty: none
    aliases: tuple[str, ...] = ()
    doubts: str = ""


@dataclass(frozen=True)
class LinkRow:
    """One kind of link; one direction of it."""

    name: str
    kind: str  # "nvlink", "pcie", "ethernet" or "infiniband"
    bytes_per_s: float  # as printed, before what protocols take
    latency_s: float
    source: str
    doubts: str = ""


@dataclass(frozen=True)
class ModelRow:
    """One model's shape."""

    name: str
    parameters: int
    source: str
    config: dict[str, Any]  # keys of a Hugging Face config.json
    doubts: str = ""


@dataclass(frozen=True)
class PriceRow:
    """What somebody asked for an hour of one GPU."""

    device: str
    usd_per_hour: float
    kind: str  # one of PRICE_KINDS
    status: str  # "verified", "listed", "derived" or "recalled" (from memory)
    source: str
    doubts: str = ""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class _Devices:
    device: tuple[DeviceRow, ...]


@dataclass(frozen=True)
class _Links:
    link: tuple[LinkRow, ...]


@dataclass(frozen=True)
class _Models:
    model: tuple[ModelRow, ...]


@dataclass(frozen=True)
class _Prices:
    price: tuple[PriceRow, ...]


Row = TypeVar("Row", bound=_Named)
Table = TypeVar("Table")


@cache
def devices() -> tuple[DeviceRow, ...]:
    """All devices, in the order of the file."""
    return _table(_Devices, "devices").device


@cache
def links() -> tuple[LinkRow, ...]:
    """All links, in the order of the file."""
    return _table(_Links, "links").link


@cache
def models() -> tuple[ModelRow, ...]:
    """All models, in the order of the file."""
    return _table(_Models, "models").model


@cache
def prices() -> tuple[PriceRow, ...]:
    """All prices, in the order of the file."""
    return _table(_Prices, "prices").price


def device(name: str) -> DeviceRow:
    """The device of that name or alias.

    Raises:
        SpecError: the catalog has none; the hint names the nearest.
    """
    return _find("device", name, devices(), {alias: row.name for row in devices() for alias in row.aliases})


def link(name: str) -> LinkRow:
    """The link of that name. Raises SpecError as `device` does."""
    return _find("link", name, links(), {})


def model(name: str) -> ModelSpec:
    """The shape of the model of that name. Raises SpecError as `device` does."""
    row = _find("model", name, models(), {})
    return ModelSpec.from_hf(row.config, None, row.name)


def price(name: str, kind: str = "market") -> PriceRow | None:
    """What an hour of a device costs: the first row of that kind; None: the catalog has no such price."""
    wanted = device(name).name
    return next((row for row in prices() if (row.device, row.kind) == (wanted, kind)), None)


def fit_text(name: str) -> str | None:
    """The text of a committed fit file, fits/<name>.toml; None: there is none."""
    file = resources.files(__package__).joinpath("fits", f"{name}.toml")
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _table(kind: type[Table], name: str) -> Table:
    text = resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return build(kind, tomllib.loads(text), f"catalog {name}")


def _find(what: str, name: str, rows: tuple[Row, ...], aliases: dict[str, str]) -> Row:
    lowered = {known.lower(): row for row in rows for known in (row.name, *(alias for alias, of in aliases.items() if of == row.name))}
    if found := lowered.get(name.lower()):
        return found
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"did you mean {lowered[near[0]].name!r}? " if near else ""
    raise SpecError(f"the catalog has no {what} called {name!r}", f"{hint}known: {', '.join(row.name for row in rows)}")
