"""Coefficients from the published tables: one set for devices known by their data sheets, and one for each device that somebody measured."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from hetserve.catalog import rows as catalog
from hetserve.cost.fits import Table, fit
from hetserve.cost.kernels import AllReduce, Decode, Gemm, Link, Overhead, Prefill, Small
from hetserve.cost.library import BY_LINK, COMMON, FORMAT, FitFile, LowPower, Source, alike, chip_of, wire_of
from hetserve.cost.step import Kernels, Rank, Work, prompts, step_parts_s
from hetserve.cost.step import decoding as decoding_work
from hetserve.profile.published.files import Input
from hetserve.profile.published.gather import Published
from hetserve.profile.published.steps import StepTable

KERNELS: dict[str, type] = {
    "gemm": Gemm,
    "decode": Decode,
    "prefill": Prefill,
    "small": Small,
    "custom": AllReduce,
    "nccl": AllReduce,
    "pcie": AllReduce,
    "link": Link,
    "overhead": Overhead,
}
# Attention kernels of one GPU differ by factors between collections (FlashAttention 2 and 3, with and without split sequences), products hardly do:
# attention is fitted to the first of these a device has, nearest to what vLLM runs now, and everything else to all.
ATTENTION = ("decode", "prefill")
NEWEST = ("aiconfigurator", "llmservingsim", "vidur")
LOW_POWER_WATTS = 100.0


def used(published: Published, kind: str, device: str = "") -> list[Table]:
    """The tables that a kind's coefficients are fitted to."""
    tables = published.of(kind, device)
    if kind not in ATTENTION:
        return tables
    first = {table.device: min((other.source for other in tables if other.device == table.device), key=NEWEST.index) for table in tables}
    return [table for table in tables if table.source == first[table.device]]


def relatives(device: str, kind: str = "") -> set[str]:
    """The device and all that share coefficients with it, of one kind or of any: what has to be left out to know nothing but its data sheet."""
    row = catalog.device(device)
    kinds = (kind,) if kind else ("gemm", "link")
    return {other.name for other in catalog.devices() if any(alike(each, row, other) for each in kinds)} | {row.name}


def sheet_kernels(published: Published, without: str = "") -> Kernels:
    """Coefficients that hold across devices, from all or from those that are no relatives of one."""
    found: dict[str, Any] = {}
    for kind, kernel in KERNELS.items():
        out = relatives(without, kind) if without else set()
        found[kind] = fit(kernel, [table for table in used(published, kind) if table.device not in out])
    return Kernels(**found)


def device_kernels(published: Published, device: str, near: Kernels) -> dict[str, Any]:
    """Coefficients of every kind of kernel that was measured on a device, drawn towards `near`."""
    tables = {kind: own(published, kind, device) for kind in KERNELS}
    return {kind: fit(KERNELS[kind], of, getattr(near, kind)) for kind, of in tables.items() if of}


def own(published: Published, kind: str, device: str) -> list[Table]:
    """The tables that tell of the device itself: not what is common to all, and of links only the one between its GPUs."""
    if kind in COMMON:
        return []
    tables = used(published, kind, device)
    return [table for table in tables if kind not in BY_LINK or table.where == wire_of(device).bytes_per_s]


def measured_devices(published: Published) -> list[str]:
    """Devices with tables of their own, in the order of the catalog."""
    names = {table.device for table in published.tables if own(published, table.kind, table.device)}
    return [row.name for row in catalog.devices() if row.name in names]


def low_power(published: Published, kernels: Kernels, without: Collection[str] = ()) -> LowPower | None:
    """What boards of few watts keep of their tensor peak: the share at which predicted prompt steps are neither too long nor too short.

    None: nobody measured such a board.
    """
    steps = [
        step
        for step in published.steps
        if step.phase == "prefill" and step.tp == 1 and step.device not in without and catalog.device(step.device).watts < LOW_POWER_WATTS
    ]
    if not steps:
        return None
    shares = np.exp(np.linspace(np.log(0.1), 0.0, 93))
    off = [
        np.median([np.median(np.log(step_s(kernels, step, LowPower(LOW_POWER_WATTS, share)) / step.seconds)) for step in steps]) for share in shares
    ]
    return LowPower(LOW_POWER_WATTS, float(shares[int(np.abs(off).argmin())]))


def step_s(kernels: Kernels, step: StepTable, power: LowPower | None) -> Any:
    """[rows]: what is predicted of the parts that a table of steps holds."""
    parts = step_parts(kernels, step, power)
    return sum(np.broadcast_to(parts[part], step.seconds.shape) for part in step.parts)


def step_parts(kernels: Kernels, step: StepTable, power: LowPower | None) -> dict[str, Any]:
    """Seconds of each part of a table's steps."""
    rank = Rank(catalog.model(step.model), step.tp)
    chip, wire = chip_of(step.device, power), wire_of(step.device, step.link)
    return step_parts_s(kernels, chip, wire, rank, work_of(step), step.layers or rank.model.layers)


def work_of(step: StepTable) -> Work:
    """What the steps of a table have to do."""
    if step.phase == "decode":
        return decoding_work(step.sequences, step.before + step.new)
    return prompts(step.sequences, step.new, step.before)


def fit_files(published: Published, command: str) -> list[FitFile]:
    """The data-sheet model, then every measured device's file."""
    sheet = sheet_kernels(published)
    kinds = {kind: getattr(sheet, kind) for kind in KERNELS}
    everything = [table for kind in KERNELS for table in used(published, kind)]
    power = low_power(published, sheet)
    extra = ("helix",) if power is not None else ()
    files = [_file("", command, published, everything, kinds, extra)]
    files[0] = replace(files[0], low_power=power)
    for device in measured_devices(published):
        found = device_kernels(published, device, sheet_kernels(published, without=device))
        files.append(_file(device, command, published, [table for kind in found for table in own(published, kind, device)], found))
    return files


def _file(device: str, command: str, published: Published, tables: list[Table], kinds: dict[str, Any], extra: Collection[str] = ()) -> FitFile:
    said = {}
    for kind in kinds:
        mine = [table for table in tables if table.kind == kind]
        of = [f"{table.source}{'' if device else f' {table.device}'} ({len(table):,} rows)" for table in mine]
        said[kind] = ", ".join(of)
    names = {table.source for table in tables} | set(extra)
    inputs = [_source(one) for one in published.inputs if one.file.split("/")[0] in names and _is_of(one.file, device)]
    return FitFile(FORMAT, device, command, said, tuple(inputs), **kinds)


FOLDERS = {  # how the collections call the devices, in their files' names
    "A100-SXM-80GB": ("a100",),
    "H100-SXM-80GB": ("h100",),
    "A40-48GB": ("a40",),
    "V100-SXM2-16GB": ("v100",),
    "RTX-A6000-48GB": ("a6000",),
    "RTX-3090-24GB": ("rtx3090",),
    "RTX-4090-24GB": ("rtx4090",),
}


def _is_of(file: str, device: str) -> bool:
    return not device or any(name in file.lower() for name in FOLDERS.get(device, (device.lower(),)))


def _source(one: Input) -> Source:
    return Source(one.file, one.licence, one.sha256)
