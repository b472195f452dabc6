"""The folder of wheels for a GPU's machine: what is asked of pip, its limit, and how it is installed there. pip itself is a stand-in."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from hetserve.bench.gpu import wheels


class Pip:
    """Puts wheels of these sizes where it is told to: for FlashInfer itself, for what that needs, and for everything else."""

    def __init__(self, plain: dict[str, int], flashinfer: dict[str, int] | None = None) -> None:
        self.plain, self.flashinfer = plain, flashinfer
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        rival = "--no-deps" in command
        sizes = self.flashinfer if rival else {"einops-1-py3-none-any.whl": 5} if "einops" in command else self.plain
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir(exist_ok=True)
        for name, size in (sizes or {}).items():
            (folder / name).write_bytes(b"\0" * size)
        return subprocess.CompletedProcess(command, not sizes, "", "WARNING: slow\nERROR: no matching distribution")


def fetch(folder: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(sys, "argv", ["wheels", str(folder)])
    return wheels.main()


PLAIN = {"a-1-py3-none-any.whl": 1000, "einops-1-py3-none-any.whl": 5}
RIVAL = {"flashinfer_python-1-py3-none-any.whl": 2000}


def test_what_fits_replaces_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old-1-py3-none-any.whl").write_bytes(b"")
    assert fetch(tmp_path, Pip(PLAIN, RIVAL), monkeypatch) == 0
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == PLAIN | RIVAL
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("3 wheels") and line.endswith("FlashInfer among them")


@pytest.mark.parametrize(
    ("rival", "why"), [(None, "ERROR: no matching distribution"), ({"flashinfer_python-1-py3-none-any.whl": 1 << 20}, "1.0 MiB with it")]
)
def test_without_flashinfer_where_it_cannot_be_had_or_does_not_fit(
    rival: dict[str, int] | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheels, "MOST_BYTES", 1 << 20)
    assert fetch(tmp_path, Pip(PLAIN, rival), monkeypatch) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(PLAIN)
    (line,) = capsys.readouterr().out.splitlines()
    assert "without FlashInfer: " in line and why in line


def test_the_folder_stays_as_it_was_where_they_do_not_fit_or_pip_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wheels.MOST_BYTES == 40 * 2**20
    monkeypatch.setattr(wheels, "MOST_BYTES", 1 << 20)
    (tmp_path / "old-1-py3-none-any.whl").write_bytes(b"old")
    for pip, said in ((Pip({"a-1-py3-none-any.whl": 600_000, "b-1-py3-none-any.whl": 600_000}), "1.1 MiB"), (Pip({}), "no matching distribution")):
        assert fetch(tmp_path, pip, monkeypatch) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["old-1-py3-none-any.whl"]
        assert said in capsys.readouterr().err


def test_pip_is_asked_for_what_such_a_machine_lacks_and_decides_itself_where_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(PLAIN, RIVAL)
    fetch(tmp_path, pip, monkeypatch)
    names = {re.split(r"[<>=]", one)[0] for one in pip.commands[0] if ">=" in one}
    assert {"msgspec", "pyzmq", "starlette", "uvicorn", "hypothesis"} <= names and not names & wheels.THERE
    for command in pip.commands:
        assert command[command.index("--python-version") + 1] == "3.12" and "--only-binary=:all:" in command
        assert sum(one == "--platform" for one in command) == len(wheels.PLATFORMS) > 1
        assert not any("://" in one or "index" in one for one in command)


def wheel(folder: Path, name: str) -> None:
    """A wheel of one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_they_are_installed_without_a_network_but_for_what_is_there_already(tmp_path: Path) -> None:
    folder, into = tmp_path / "wheels", tmp_path / "into"
    folder.mkdir()
    assert wheels.unpacked(folder, into, 60.0) == (None, "no wheels in wheels: `make gpu-wheels` fetches them where there is a network")
    wheel(folder, "numpy")
    assert wheels.unpacked(folder, into, 60.0)[0] is None and not into.exists()
    wheel(folder, "only_carried")
    for _ in range(2):  # a second time finds the first's
        assert wheels.unpacked(folder, into, 60.0) == (into, "")
    assert (into / "only_carried.py").exists() and not (into / "numpy.py").exists()
    (folder / "broken-1.0-py3-none-any.whl").write_bytes(b"no zip")
    found, why = wheels.unpacked(folder, into, 60.0)
    assert found is None and why.startswith("the wheels were not installed")
