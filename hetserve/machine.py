"""What machine this is: the facts every result carries and `hetserve doctor` prints, and how fast its memory can be read.

Reads /proc, /sys and a few tools' answers; a fact that cannot be found is null (or empty), never guessed. Linux only, as hetserve is.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetserve.spec.cluster import isa_levels
from hetserve.spec.host import nvidia_gpus

PACKAGES = ("hetserve", "torch", "numpy", "transformers", "tokenizers")
TOOL_S = 10.0  # how long nvcc or git may take to answer


def describe() -> dict[str, Any]:
    """All facts about this machine, ready for JSON. Sizes in bytes. A few milliseconds plus nvidia-smi where there is one."""
    cpuinfo = _read("/proc/cpuinfo")
    return {
        "name": machine_name(cpu_model(cpuinfo), len(usable_cores())),
        "cpu": cpu_model(cpuinfo),
        "arch": platform.machine(),
        "cores": len(usable_cores()),
        "cores_total": os.cpu_count(),
        "cpu_quota": cpu_quota(_read("/sys/fs/cgroup/cpu.max")),
        "isa": isa_levels(cpuinfo),
        "memory_bytes": memory_limit_bytes(),
        "memory_free_bytes": _meminfo_bytes("MemAvailable"),
        "caches": caches(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "gpus": gpus(),
        **source_state(),
    }


def usable_cores() -> list[int]:
    """The cores this process may run on, which in a container or under taskset are fewer than the machine's."""
    return sorted(os.sched_getaffinity(0))


def cpu_model(cpuinfo: str) -> str:
    """The CPU's own name for itself, from the text of /proc/cpuinfo."""
    found = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or "unknown"


def machine_name(cpu: str, cores: int) -> str:
    """A short name that two machines of one kind share, fit for a file: `amd-epyc-9b14-2c`."""
    words = re.sub(r"\(R\)|\(TM\)|\bCPU\b|\bProcessor\b|@.*|\d+-Core", " ", cpu)
    return "-".join(re.findall(r"[a-z0-9]+", words.lower())) + f"-{cores}c"


def cpu_quota(cpu_max: str) -> float | None:
    """Cores' worth of time a cgroup grants, from the text of its cpu.max; None when it does not limit."""
    parts = cpu_max.split()
    return int(parts[0]) / int(parts[1]) if len(parts) == 2 and parts[0].isdigit() else None


def memory_limit_bytes() -> int | None:
    """What this process may use at most: the machine's memory, or its cgroup's limit if that is lower."""
    limits = [_meminfo_bytes("MemTotal"), _digits(_read("/sys/fs/cgroup/memory.max"))]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def clock_mhz() -> float:
    """The mean clock of the cores at this moment as /proc/cpuinfo tells it, 0 where it does not; a virtual machine's is often only nominal."""
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo"), re.MULTILINE)]
    return sum(clocks) / len(clocks) if clocks else 0.0


def caches() -> dict[str, int]:
    """Bytes of each data cache as one core sees it: `{"l1d": ..., "l2": ..., "l3": ...}`."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (_read(str(folder / name)).strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"l{level}" + ("d" if kind == "Data" else "")] = int(size[:-1]) * 1024
    return sizes


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs of this machine; empty when there is none, or no driver."""
    return [dict(zip(("name", "memory_bytes", "compute_capability", "driver"), gpu, strict=True)) for gpu in nvidia_gpus()]


def nvcc() -> dict[str, str] | None:
    """Where the CUDA compiler is and its release; None when there is none."""
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if path is None:
        return None
    found = re.search(r"release ([\d.]+)", _ask([path, "--version"]))
    return {"path": path, "release": found.group(1) if found else ""}


def package_version(name: str) -> str | None:
    """The installed version of a Python package, without importing it; None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def source_state() -> dict[str, Any]:
    """`{"commit": hash, "dirty": bool}` of the checkout this code runs from; both null when it runs from an installed wheel."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _ask(["git", "-C", str(root), "rev-parse", "HEAD"]).strip()
    changed = _ask(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]).strip()
    return {"commit": commit or None, "dirty": bool(changed) if commit else None}


def read_bandwidth(cores: Sequence[int], size_bytes: int, rounds: int = 3, done: Callable[[], None] = lambda: None) -> float:
    """Bytes per second these cores read from memory together: the best of `rounds`, each thread pinned and reading its own part.

    A round takes the CPU time of its slowest thread: reading keeps a thread on its core, and what other processes did there meanwhile does not count.

    Args:
        cores: one reading thread each.
        size_bytes: what is read in one round; several times the last-level cache, or the cache is what gets measured.
        done: called after each round.
    """
    words = np.ones(size_bytes // 8, np.int64)
    parts = np.array_split(words, len(cores))
    best_s = float("inf")
    for _ in range(rounds):
        taken_s: list[float] = []
        threads = [threading.Thread(target=_read_all, args=(part, core, taken_s)) for part, core in zip(parts, cores, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best_s = min(best_s, max(taken_s))
        done()
    return words.nbytes / best_s


def _read_all(words: NDArray[np.int64], core: int, taken_s: list[float]) -> None:
    os.sched_setaffinity(0, {core})  # of this thread alone
    began_s = time.thread_time()
    np.bitwise_or.reduce(words)  # numpy lets go of the GIL, and this loop is far faster than memory
    taken_s.append(time.thread_time() - began_s)


def _meminfo_bytes(field: str) -> int | None:
    found = re.search(rf"^{field}:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _digits(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _ask(command: list[str]) -> str:
    """A tool's answer, empty when it is absent, fails or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
