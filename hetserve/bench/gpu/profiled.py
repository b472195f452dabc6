"""python -m hetserve.bench.gpu.profiled FILE: what `hetserve profile --cluster gpu` measures of an 8-billion-parameter model, as a profile file; then
the links between the GPU and the CPU beside it, and between two GPUs where there are two.

The command itself reads its cluster from a file, which needs msgspec; the clusters made here are those files'.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from hetserve.bench.gpu.engines import LLAMA_8B, device
from hetserve.errors import HetserveError
from hetserve.profile.run import measure, measure_links
from hetserve.profile.tasks import FULL, Effort
from hetserve.spec.cluster import CPU, CUDA, Cluster
from hetserve.spec.host import this_host
from hetserve.spec.load import save_profile
from hetserve.spec.model import ModelSpec

DTYPE = "bfloat16"


def profile(path: Path, model: ModelSpec, kind: str = CUDA, effort: Effort = FULL) -> int:
    """Measures the device called "gpu" and writes its profile; then its links, and writes it again. Returns an exit code."""
    began_s = time.monotonic()
    alone = device("gpu", kind)
    beside = [device("cpu", CPU), *([replace(device("gpu-1", kind), index=1)] if kind == CUDA and len(this_host().gpus) > 1 else [])]
    try:
        found = measure(Cluster("gpu", alone.cores, (alone,)), model, DTYPE, effort, lambda: None)
        found = replace(found, took_s=time.monotonic() - began_s)
        save_profile(found, path)  # whatever becomes of the links
        (measured,) = found.devices
        print(f"reads {measured.read_bytes * 1e-9:.0f} GB/s; attention: {measured.attention}; {found.took_s:.0f} s", flush=True)
        links = measure_links(Cluster("gpu-plus-cpu", alone.cores, (alone, *beside)), model, DTYPE, effort, lambda: None)
        save_profile(replace(found, links=links), path)
    except HetserveError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    for link in links:
        print(f"{link.source} to {link.target}: {link.bytes_per_s * 1e-9:.2f} GB/s, {link.beta_s * 1e6:.0f} us")
    return 0


if __name__ == "__main__":
    sys.exit(profile(Path(sys.argv[1]), ModelSpec.from_hf(LLAMA_8B, name="llama-8b")))
