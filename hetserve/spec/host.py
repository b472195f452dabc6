"""What this machine has that declarations are resolved against."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hetserve.spec.cluster import Host, isa_levels

TOOL_S = 10.0  # how long nvidia-smi may take to answer


def this_host() -> Host:
    """The cores and the memory this process may use (its cgroup's limit where that is lower than the machine's), the CPU's best ISA, GPUs."""
    limits_bytes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if cgroup.is_file() and cgroup.read_text().strip().isdigit():
        limits_bytes.append(int(cgroup.read_text()))
    levels = isa_levels(Path("/proc/cpuinfo").read_text())
    return Host(tuple(sorted(os.sched_getaffinity(0))), min(limits_bytes), levels[-1] if levels else "", _Gpus())


class _Gpus(Sequence[int]):
    """Bytes of each GPU. nvidia-smi, which may take a second, is asked when somebody looks: most clusters name no GPU of this machine."""

    def __getitem__(self, index: Any) -> Any:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    @property
    def _found(self) -> tuple[int, ...]:
        return tuple(memory_bytes for _, memory_bytes, _, _ in nvidia_gpus())


@cache
def nvidia_gpus() -> tuple[tuple[str, int, str, str], ...]:
    """(name, bytes of memory, compute capability, driver) of each GPU that nvidia-smi lists; none where it is absent, fails or takes too long."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(said)


def parse_gpus(said: str) -> tuple[tuple[str, int, str, str], ...]:
    """What nvidia-smi says of the same four things, line by line; other lines are not looked at."""
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return tuple((row[0], int(row[1]) * 2**20, row[2], row[3]) for row in rows if len(row) == 4 and row[1].isdigit())
