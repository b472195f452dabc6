"""python -m hetserve.bench.gpu.profiled FILE: what `hetserve profile --cluster gpu` measures of an 8-billion-parameter model, as a profile file.

The command itself reads its cluster from a file, which needs msgspec; the cluster made here is that file's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hetserve.bench.gpu.engines import LLAMA_8B, device
from hetserve.errors import HetserveError
from hetserve.profile.run import measure
from hetserve.profile.tasks import FULL, Effort
from hetserve.spec.cluster import CUDA, Cluster
from hetserve.spec.load import save_profile
from hetserve.spec.model import ModelSpec


def profile(path: Path, model: ModelSpec, kind: str = CUDA, effort: Effort = FULL) -> int:
    """Measures the device called "gpu" alone and writes its profile."""
    alone = device("gpu", kind)
    try:
        found = measure(Cluster("gpu", alone.cores, (alone,)), model, "bfloat16", effort, lambda: None)
    except HetserveError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    save_profile(found, path)
    (measured,) = found.devices
    print(f"reads {measured.read_bytes * 1e-9:.0f} GB/s; attention: {measured.attention}")
    return 0


if __name__ == "__main__":
    sys.exit(profile(Path(sys.argv[1]), ModelSpec.from_hf(LLAMA_8B, name="llama-8b")))
