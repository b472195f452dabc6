"""Runs of the real engine for experiments of kind "measured": `hetserve bench` as a user types it, on this machine's cores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetserve.engine.model.make import make_checkpoint
from hetserve.errors import BenchError
from hetserve.profile.run import measure
from hetserve.profile.tasks import FULL
from hetserve.reproduce.setup import Setup
from hetserve.spec.cluster import Cluster, require_cores
from hetserve.spec.load import load_cluster, load_model, load_profile, save_profile, this_host

MODEL = "llama-250m"


def checkpoint(folder: Path, name: str = MODEL) -> Path:
    """A model with random weights, made below the folder."""
    return make_checkpoint(name, folder / name)


def cluster_here(name: str) -> Cluster:
    """A cluster of this machine's cores.

    Raises:
        ResourceError: it has too few.
    """
    cluster = load_cluster(name)
    require_cores(cluster, this_host())
    return cluster


def profile_of(setup: Setup, cluster: Cluster, model: Path, folder: Path) -> Path:
    """The profile that was given, or one measured now, before anything is run with it.

    Raises:
        SpecError: the one given is of something else.
    """
    path = setup.profile or folder / f"profile-{cluster.name}.toml"
    if setup.profile is None:
        spec = load_model(model)
        save_profile(measure(cluster, spec, spec.dtype, FULL, lambda: None), path)
    load_profile(path)
    return path


def bench(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """What `hetserve bench --json` says.

    Args:
        arguments: its flags.
        folder: for its own result files and logs.

    Raises:
        BenchError: it failed; the last it said.
    """
    command = [sys.executable, "-m", "hetserve.cli.main", "bench", *arguments, "--result-dir", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"`hetserve bench {' '.join(arguments)}` ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
