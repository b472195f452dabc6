"""`hetserve baseline`: install, list and remove the real systems this engine is compared with. Only vLLM so far."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hetserve.cli.console import Screen


def cache_folder() -> Path:
    """hetserve's folder for what can be made or fetched again: $XDG_CACHE_HOME/hetserve, by default ~/.cache/hetserve."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hetserve"


def baselines_folder(chosen: Path | None) -> Path:
    """Where the baselines' environments live."""
    return (chosen or cache_folder() / "baselines").absolute()


@click.group()
def baseline() -> None:
    """Install, list and remove the real systems this engine is compared with."""


_NAME = click.argument("name", type=click.Choice(["vllm"]))
_DEVICE = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Which build of it.")
_FOLDER = click.option(
    "--baseline-dir", type=click.Path(file_okay=False, path_type=Path), help="Where baselines are kept  [default: the cache folder]"
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@baseline.command()
@_NAME
@_DEVICE
@_FOLDER
@_JSON
def install(name: str, device: str, baseline_dir: Path | None, as_json: bool) -> None:
    """Put the real vLLM into a virtual environment of its own (3.4 GB); does nothing when it is there already."""
    from dataclasses import asdict

    from hetserve.bench import vllm_install

    screen = Screen(as_json)
    root = baselines_folder(baseline_dir)
    found = vllm_install.find(root, device)
    if found is None:
        with screen.progress(f"installing {name}") as advance:

            def say(line: str) -> None:
                screen.note(line)
                advance(1, line)

            found = vllm_install.install(root, device, say)
    allocator = f", {found.tcmalloc}" if found.tcmalloc else "" if device == "cuda" else ", without tcmalloc"
    screen.say(f"{name} {found.version} ({device} build, torch {found.torch}{allocator}) is in {found.folder}")
    screen.json(asdict(found))


@baseline.command(name="list")
@_FOLDER
@_JSON
def list_(baseline_dir: Path | None, as_json: bool) -> None:
    """Show which baselines are installed, and where."""
    from dataclasses import asdict

    from hetserve.bench import vllm_install

    screen = Screen(as_json)
    found = vllm_install.listed(baselines_folder(baseline_dir))
    if not found:
        screen.say(f"none is installed; `{vllm_install.INSTALL_HINT}` installs the real vLLM")
    else:
        rows = [("vllm", one.version, one.device, one.torch, one.tcmalloc or "none", one.folder) for one in found]
        screen.table("Baselines", ["name", "version", "device", "torch", "tcmalloc", "folder"], rows)
    screen.json({"baselines": [{"name": "vllm", **asdict(one)} for one in found]})


@baseline.command()
@_NAME
@_DEVICE
@_FOLDER
@_JSON
def remove(name: str, device: str, baseline_dir: Path | None, as_json: bool) -> None:
    """Delete an installed baseline's environment."""
    from hetserve.bench import vllm_install

    screen = Screen(as_json)
    root = baselines_folder(baseline_dir)
    gone = vllm_install.remove(root, device)
    folder = vllm_install.folder_of(root, device)
    screen.say(f"{name} is gone from {folder}" if gone else f"{name} was not installed in {folder}")
    screen.json({"removed": gone, "folder": str(folder)})
