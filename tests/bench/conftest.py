"""What tests of `hetserve bench` share: a tiny model, a folder of their own, and made-up servers in place of hetserve and vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hetserve.bench import launches
from hetserve.bench.process import Launch, free_port
from hetserve.errors import BenchError

SCRIPT = Path(__file__).with_name("bench_fake_server.py")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hetserve.engine.model.make import make_checkpoint

    return make_checkpoint("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HETSERVE_DATA", raising=False)
    monkeypatch.setattr("hetserve.bench.process.CHILDREN_S", 0.2)


class Faked:
    """Stands in for both servers; `faults` by system's name."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.setups: list[launches.Setup] = []

    def launch(self, setup: launches.Setup, name: str) -> Launch:
        self.setups.append(setup)
        port = free_port()
        command = (sys.executable, str(SCRIPT), str(port), "--fault", self.faults.get(name, "none"), "--model", setup.served_name)
        return Launch(name, command, {}, setup.cores, f"http://127.0.0.1:{port}", setup.log_dir / f"{name}.log", BenchError)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Faked:
    fake = Faked()
    install = launches.VllmInstall("/opt/vllm", "cpu", "0.32.0+cpu", "2.13.0+cpu", "")
    monkeypatch.setattr(launches, "hetserve_launch", lambda setup, where, extra, name="hetserve": fake.launch(setup, name))
    monkeypatch.setattr(launches, "vllm_launch", lambda setup, install, extra, name="vllm": fake.launch(setup, name))
    monkeypatch.setattr("hetserve.bench.vllm_install.require", lambda root, device: install)
    return fake
