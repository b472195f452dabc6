"""Measures a cluster: one process after another for the devices, then two at a time for how they slow each other and for the links between them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from hetserve import machine
from hetserve.errors import UnsupportedError, WorkerError
from hetserve.profile.child import TICK
from hetserve.profile.fitted import contentions, device_profile, link_profiles
from hetserve.profile.tasks import (
    PHASES,
    REST,
    ContentionSamples,
    ContentionTask,
    DeviceSamples,
    DeviceTask,
    Effort,
    LinkSamples,
    LinkTask,
    decode,
    device_ticks,
    effort_on,
    encode,
)
from hetserve.spec.cluster import CUDA, Cluster, Device
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import Contention, DeviceProfile, LinkProfile, Profile

T = TypeVar("T", DeviceSamples, LinkSamples)


def ticks(cluster: Cluster, effort: Effort) -> int:
    """How often `measure` calls its `tick`."""
    pairs = len(list(combinations(cluster.devices, 2)))
    return sum(device_ticks(effort_on(device.kind, effort)) for device in cluster.devices) + pairs * (effort.mixed_rounds + effort.rounds)


def measure(cluster: Cluster, model: ModelSpec, dtype: str, effort: Effort, tick: Callable[[], None]) -> Profile:
    """The profile of every device, link and pair of devices.

    Raises:
        UnsupportedError: a device is on another node.
        WorkerError: a measuring process failed.
    """
    require_here(cluster)
    devices = tuple(measure_device(device, model, dtype, effort, tick) for device in cluster.devices)
    contention: list[Contention] = []
    for pair in combinations(cluster.devices, 2):
        known = {one.name: one for one in devices}
        contention += contentions(pair, measure_contention(pair, known, model, dtype, effort, tick))
    links = measure_links(cluster, model, dtype, effort, tick)
    facts = machine.describe()
    used = {device.index for device in cluster.devices if device.kind == CUDA}
    gpus = [gpu["name"] for index, gpu in enumerate(facts["gpus"]) if index in used]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    return Profile(
        model=model.name,
        model_fingerprint=model_fingerprint(model),
        dtype=dtype,
        machine=", ".join([facts["cpu"], f"{facts['cores']} cores", *gpus]),
        clocks_mhz=machine.clock_mhz(),
        versions=f"{packages}, Python {facts['python']}, Linux {facts['kernel']}",
        date=date.today().isoformat(),
        devices=devices,
        links=links,
        commit=(facts["commit"] or "") + (" with changes" if facts["dirty"] else ""),
        contention=tuple(contention),
    )


def require_here(cluster: Cluster) -> None:
    """Raises UnsupportedError unless every device is this machine's."""
    away = [device.name for device in cluster.devices if device.node]
    if away:
        raise UnsupportedError(f"devices {', '.join(away)} of cluster {cluster.name!r} are on other nodes, and only this machine can be measured")


def measure_device(device: Device, model: ModelSpec, dtype: str, effort: Effort, tick: Callable[[], None]) -> DeviceProfile:
    task = DeviceTask(device, model, dtype, effort_on(device.kind, effort))
    with _child("device", task, device.name) as child:
        return device_profile(device, task, child.samples(DeviceSamples, tick))


def measure_contention(
    pair: tuple[Device, Device], known: Mapping[str, DeviceProfile], model: ModelSpec, dtype: str, effort: Effort, tick: Callable[[], None]
) -> ContentionSamples:
    """Two devices that work alone and together in turn, with weights stored as each is fastest with.

    Raises:
        WorkerError: one of the two processes failed.
    """
    with ExitStack() as stack:
        both = []
        for device in pair:
            weights = min(known[device.name].dense, key=lambda times: times.layer[-1].layer_s).weights
            task = ContentionTask(device, model, dtype, effort_on(device.kind, effort), weights)
            both.append(stack.enter_context(_child("contention", task, device.name)))
        for one in both:
            one.answer()
        rounds = []
        for _ in range(effort.mixed_rounds):
            rounds.append(tuple(_phase(both[0], both[1], what) for what in PHASES))
            tick()
    return ContentionSamples(tuple(rounds))


def _phase(first: _Child, second: _Child, what: tuple[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What both measure meanwhile. Neither stops before both have: whoever is quicker goes on."""
    both = (first, second)
    for child, order in zip(both, what, strict=True):
        child.order(order)
    found = first.answer(), second.answer()
    for child in both:
        child.order(REST)
    for child in both:
        child.answer()
    return found


def measure_links(cluster: Cluster, model: ModelSpec, dtype: str, effort: Effort, tick: Callable[[], None]) -> tuple[LinkProfile, ...]:
    """Both directions between every two devices, pair by pair."""
    links: list[LinkProfile] = []
    for pair in combinations(cluster.devices, 2):
        links += link_profiles(*measure_pair(pair, effort, tick), model, dtype)
    return tuple(links)


def measure_pair(pair: tuple[Device, Device], effort: Effort, tick: Callable[[], None]) -> tuple[LinkTask, LinkSamples]:
    """Messages between two devices: what was exchanged, and how long it took.

    Raises:
        WorkerError: one of the two processes failed; the other, which would wait for it, is ended.
    """
    with tempfile.TemporaryDirectory(prefix="hetserve-profile-") as meeting, ThreadPoolExecutor(1) as aside, ExitStack() as stack:
        tasks = [_link_task(pair, number, meeting, effort) for number in (0, 1)]
        first, second = (stack.enter_context(_child("link", task, task.device.name)) for task in tasks)
        answering = aside.submit(second.samples, LinkSamples, lambda: None)
        answering.add_done_callback(lambda done: first.end() if done.exception() else None)
        try:
            samples = first.samples(LinkSamples, tick)
        except WorkerError:
            if answering.done():
                answering.result()  # it failed before
            raise
        answering.result()
    return tasks[0], samples


def _link_task(pair: tuple[Device, Device], number: int, meeting: str, effort: Effort) -> LinkTask:
    return LinkTask(pair[number], pair[1 - number], number == 0, meeting, effort)


class _Child:
    """A measuring process under way."""

    def __init__(self, process: subprocess.Popen[str], said: Path, device: str) -> None:
        self._process, self._said, self._device = process, said, device

    def end(self) -> None:
        self._process.kill()

    def order(self, what: str) -> None:
        """Tells it a line; one that has ended says why when it should answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{what}\n")
            self._process.stdin.flush()

    def answer(self) -> tuple[float, ...]:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise self._failed()
        return tuple(json.loads(line))

    def samples(self, kind: type[T], tick: Callable[[], None]) -> T:
        """What it measured, once it is done."""
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            last = line.strip()
            if last == TICK:
                tick()
        if self._process.wait() != 0:
            raise self._failed()
        return decode(kind, last)

    def _failed(self) -> WorkerError:
        lines = self._said.read_text().strip().splitlines() or ["it said nothing"]
        return WorkerError(f"the process that measured {self._device!r} failed: {lines[-1]}", "`hetserve doctor` shows what is missing here")


@contextmanager
def _child(what: str, task: DeviceTask | LinkTask | ContentionTask, device: str) -> Any:
    """A measuring process with its task; ended when the block is left."""
    with tempfile.NamedTemporaryFile("w+", prefix="hetserve-profile-") as said:
        command = [sys.executable, "-m", "hetserve.profile.child", what]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            child = _Child(process, Path(said.name), device)
            child.order(encode(task))
            yield child
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # what a process that ended early has not read
                    if pipe is not None:
                        pipe.close()
