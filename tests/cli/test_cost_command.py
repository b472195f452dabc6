"""hetserve cost as a user meets it."""

from __future__ import annotations

import json

import pytest


def test_devices_and_their_grounds(run) -> None:
    listed = {one["name"]: one for one in json.loads(run("cost", "devices", "--json").stdout)["devices"]}
    assert listed["A100-SXM-80GB"]["grounds"]["gemm"] == "fit" and listed["P100-PCIe-12GB"]["grounds"]["gemm"] == "data sheet"
    assert listed["A100-SXM-80GB"]["price"]["source"]
    assert "fit of the same chip, H100-SXM-80GB" in run("cost", "devices").stdout


def test_a_step_part_by_part(run) -> None:
    done = run("cost", "step", "A100", "Llama-2-70B", "--tp", "4", "--batch", "32")
    assert done.returncode == 0 and "Llama-2-70B on 4 x A100-SXM-80GB" in done.stdout and "allreduce" in done.stdout and "source: " in done.stdout
    said = json.loads(run("cost", "step", "L40S", "Llama-3-8B", "--prompt", "512", "--json").stdout)
    assert said["seconds"] == pytest.approx(sum(said["parts"].values())) and "data sheet" in said["source"] and said["prompt"] == 512


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["step", "A1000", "Llama-2-7B"], 3, "did you mean 'A100-SXM-80GB'"),
        (["step", "A100", "Lama-2-7B"], 4, "did you mean 'Llama-2-7B'"),
        (["step", "A100", "Llama-2-7B", "--tp", "3"], 3, "3 tensor-parallel parts"),
        (["step", "A100", "Llama-2-7B", "--tp", "2", "--link", "string"], 3, "no link called 'string'"),
        (["check", "--data", "/nowhere"], 3, "no such folder"),
        (["check"], 2, "HETSERVE_DATA"),
    ],
)
def test_what_it_will_not_do(run, args, code, expected) -> None:
    done = run("cost", *args, HETSERVE_DATA="")
    assert done.returncode == code and expected in done.stderr and not done.stdout


def test_fit_and_check_of_a_folder(run, tmp_path) -> None:
    """A folder with one table: its device gets a file, and the check judges it."""
    table = tmp_path / "aiconfigurator" / "a100_sxm" / "gemm_perf.csv"
    table.parent.mkdir(parents=True)
    lines = [f"{m},{n},{k},{5e-3 + 2e-9 * n * k / 2 + 1e-11 * m * n * k}" for m in (1, 64, 512) for n in (1024, 4096) for k in (1024, 4096)]
    table.write_text("m,n,k,latency\n" + "\n".join(lines) + "\n")
    done = run("cost", "fit", "--data", str(tmp_path), "-o", str(tmp_path / "fits"))
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "fits").iterdir()} == {"data-sheet.toml", "A100-SXM-80GB.toml"}
    done = run("cost", "check", "--data", str(tmp_path), "--json", "-o", str(tmp_path / "report.json"))
    said = json.loads(done.stdout)
    assert said == json.loads((tmp_path / "report.json").read_text())
    assert {one["ground"] for one in said["operators"]} == {"fit", "data sheet"} and said["inputs"][0][
        "file"
    ] == "aiconfigurator/a100_sxm/gemm_perf.csv"
    table.write_text(table.read_text()[:-20])
    broken = run("cost", "check", "--data", str(tmp_path))
    assert broken.returncode == 3 and "is damaged" in broken.stderr
