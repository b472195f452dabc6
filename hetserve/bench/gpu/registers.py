"""python -m hetserve.bench.gpu.registers LOG [FILE]: what the compiler says each CUDA kernel takes (`-Xptxas=-v`); as JSON into FILE."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from hetserve import machine

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def main() -> int:
    rows = parse(Path(sys.argv[1]).read_text())
    if not rows:
        print("error: no kernel is named in the log\nhint: it must come from a build with -Xptxas=-v that compiled something", file=sys.stderr)
        return 2
    for row in rows:
        print(f"{row['arch']:7} {row['registers']:4} registers {row['spill_bytes']:4} bytes spilled {row['stack_bytes']:4} of stack  {row['kernel']}")
    if len(sys.argv) > 2:
        compiler = f"nvcc {(machine.nvcc() or {}).get('release', 'unknown')}"
        lines = ",\n  ".join(map(json.dumps, rows))
        Path(sys.argv[2]).write_text(f'{{"compiler": {json.dumps(compiler)}, "kernels": [\n  {lines}\n]}}\n')
    return 0


def parse(log: str) -> list[dict[str, Any]]:
    """One row a kernel and architecture, in the order of architecture and name. Static shared memory only: the rest is asked for at launch."""
    rows: list[dict[str, Any]] = []
    for line in log.splitlines():
        if found := ENTRY.search(line):
            rows.append({"arch": found[2], "kernel": found[1], "registers": 0, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 0})
        elif rows and (found := SPILLS.search(line)):
            rows[-1] |= {"stack_bytes": int(found[1]), "spill_bytes": int(found[2]) + int(found[3])}
        elif rows and (found := USED.search(line)):
            rows[-1] |= {"registers": int(found[1]), "shared_bytes": int(found[2] or 0)}
    names = plain([row["kernel"] for row in rows])
    rows = [{**row, "kernel": names[row["kernel"]]} for row in rows]
    return sorted(rows, key=lambda row: (int(row["arch"].removeprefix("sm_").rstrip("af")), row["kernel"]))


def plain(mangled: list[str]) -> dict[str, str]:
    """Names as they are written: kernel and template arguments."""
    try:
        text = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in mangled}
    bare = [name.replace("(anonymous namespace)::", "") for name in text.splitlines()]
    short = [re.sub(r"^void |hetserve::cuda::|hetserve::|\(.*$", "", name) for name in bare]
    return dict(zip(mangled, short, strict=True))


if __name__ == "__main__":
    sys.exit(main())
