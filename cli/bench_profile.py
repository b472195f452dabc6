"""The profile `hetserve bench` plans its systems with: the one that was given, one measured now and kept beside the results, or none."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Screen

if TYPE_CHECKING:
    from hetserve.spec.cluster import Cluster
    from hetserve.spec.model import ModelSpec
    from hetserve.spec.profile import Profile

    from .bench_setup import Flags

NONE = Path("none")  # what --profile takes to plan by what such devices usually do


def profile_for(flags: Flags, cluster: Cluster, spec: ModelSpec, dtype: str, screen: Screen) -> tuple[Flags, Profile | None]:
    """The profile, and the flags with its file; several devices of this machine are measured if nobody has said what they can do.

    Raises:
        SpecError: the profile's file cannot be read or written. WorkerError: a measuring process failed.
    """
    from hetserve.spec.load import load_profile

    if flags.profile is None and len(cluster.devices) > 1 and not any(device.node for device in cluster.devices):
        flags = replace(flags, profile=_measured(flags.result_folder, cluster, spec, dtype, screen))
    return flags, None if flags.profile in (None, NONE) else load_profile(flags.profile)


def _measured(folder: Path, cluster: Cluster, spec: ModelSpec, dtype: str, screen: Screen) -> Path:
    from hetserve import machine
    from hetserve.profile.run import measure, ticks
    from hetserve.profile.tasks import FULL
    from hetserve.spec.load import save_profile

    path = folder / f"{machine.describe()['name']}-profile-{datetime.now():%H%M%S}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    screen.note("what the devices can do is measured first, in under two minutes; --profile FILE takes an earlier profile, --profile none none")
    with screen.progress(f"measuring {cluster.name} for {spec.name}", ticks(cluster, FULL)) as advance:
        save_profile(measure(cluster, spec, dtype, FULL, advance), path)
    screen.note(f"profile: {path}")
    return path
