"""How much memory this process may still take: what the machine has free, or less where a control group says so."""

from __future__ import annotations

from pathlib import Path

from hetserve.errors import ResourceError

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available_bytes(cgroup: Path = CGROUP) -> int:
    """Bytes that can be allocated without swapping, counting the control group's limit (version 2, then 1) where there is one."""
    free = _meminfo_bytes()
    for limit, used, stat in (("memory.max", "memory.current", "memory.stat"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "")):
        limit_bytes, used_bytes = _number(cgroup / limit), _number(cgroup / used)
        if limit_bytes is not None and used_bytes is not None:
            free = min(free, limit_bytes - used_bytes + _reclaimable(cgroup / stat if stat else None))
    return max(free, 0)


def require(wanted_bytes: int, what: str, hint: str = "") -> None:
    """Raises ResourceError unless `wanted_bytes` can be had."""
    free = available_bytes()
    if wanted_bytes > free:
        raise ResourceError(f"{what} needs {_gib(wanted_bytes)}, but only {_gib(free)} of memory are available.", hint)


def _meminfo_bytes() -> int:
    """MemAvailable: what the kernel expects it can give without swapping."""
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024  # in kB


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" means no limit


def _reclaimable(stat: Path | None) -> int:
    """File pages the kernel gives back when memory is asked for; they count as used in memory.current."""
    try:
        lines = stat.read_text().splitlines() if stat else []
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
