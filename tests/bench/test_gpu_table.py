"""The table that ends gpu-check: figures beside their floors, and which targets are met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hetserve.bench.gpu.table import Target, table

ATTENTION = {"batch": 64, "length": 4096, "q_heads": 64, "kv_heads": 8, "judged": True, "right": True, "floor_bytes_s": 2.5e-4, "floor_flops_s": 8e-6}
ROWS: dict[str, list[dict[str, Any]]] = {
    "decode": [
        {"what": "copy", "gbs": 4000.0, "seconds": 1e-3},
        {"what": "page_copy", "right": True, "gbs": 3600.0, "share_of_copy": 0.9},
        {"what": "page_gather into pinned memory", "right": True, "share_of_copy": 0.01, "share_of_transfer": 0.95},
        ATTENTION | {"pages": "in order", "ours_s": 2.75e-4, "gbs": 3700.0, "share_of_copy": 0.91, "times_flashinfer": 0.97, "torch_s": 2.5},
        ATTENTION | {"pages": "scattered", "ours_s": 3e-4, "share_of_copy": 0.83},
        ATTENTION | {"pages": "every second head", "ours_s": 3e-4, "share_of_copy": 0.88, "times_the_whole": 1.02},
        ATTENTION | {"batch": 1, "judged": False, "pages": "in order", "share_of_copy": 0.1},
        ATTENTION | {"batch": 256, "pages": "in order", "skipped": "out of memory: so much"},
    ],
    "engine": [{"model": "tiny", "layout": "one GPU", "dtype": "float32", "identical": 7, "right": True}],
    "step": [
        {"launched": "graphs", "batch": 64, "step_s": 5e-3, "times_the_floor": 1.2, "tokens_per_s": 12800.0},
        {"launched": "pieces", "batch": 64, "step_s": 6e-3, "times_the_floor": 1.3},
        {"launched": "eager", "right": False, "fault": "no\nmemory"},
    ],
    "prefill": [
        {"what": "prefill", "rows": 2048, "length": 2048, "q_heads": 32, "kv_heads": 32, "ours_tflops": 400.0},
        {"what": "rope", "rows": 64, "seconds": 1e-5},
    ],
    "serving": [{"system": "hetserve", "asked": "all at once", "requests": 48, "duration": 3.0, "output_throughput": 5000.0, "mean_ttft_ms": 80.0}],
}
SUMMARY: dict[str, Any] = {
    "stages": {
        "build": {"ok": True, "seconds": 90.0, "output": ""},
        "ops": {"ok": False, "seconds": 30.0, "exit": 1},
        "profile": {"ok": True, "seconds": 71.0, "exit": 0},
    }
}


def write(folder: Path) -> None:
    for stem, rows in ROWS.items():
        (folder / f"{stem}.json").write_text(json.dumps({"rows": rows}))
    (folder / "profile.toml").write_text("took_s = 60.5\n")


def lines(folder: Path) -> dict[str, list[str]]:
    """First cell -> the others."""
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(folder, SUMMARY).splitlines() if line]
    return {cells[0]: cells[1:] for cells in split}


def test_targets_are_met_or_missed_by_the_worst_figure(tmp_path: Path) -> None:
    write(tmp_path)
    found = {name: (cells[0].split(" (")[0], cells[-1]) for name, cells in lines(tmp_path).items() if len(cells) == 3}
    assert found == {
        "target": ("found", "verdict"),
        **{name: cells for name, cells in found.items() if set(name) == {"-"}},
        "stage build": ("90 s", "met"),
        "stage ops": ("30 s", "MISSED: exit 1"),
        "stage profile": ("71 s", "met"),
        "engine tokens, 1 where they are right": ("1.000", "met"),
        "decode attention over 256 MB, share of copy": ("0.830", "MISSED"),
        "the same, times FlashInfer's time": ("0.970", "met"),
        "scattered heads, times the whole layout's time": ("1.020", "met"),
        "page moves within the GPU, share of copy": ("0.900", "met"),
        "pages to and from elsewhere, share of one transfer": ("0.950", "met"),
        "decode step at batch 64, graphs, times the floor": ("1.200", "met"),
        "decode step at batch 64, pieces, times the floor": ("1.300", "MISSED"),
        "profile of the GPU, s": ("60.500", "MISSED"),
    }
    assert "scattered; 3 in all" in table(tmp_path, SUMMARY)


def test_every_figure_has_its_line(tmp_path: Path) -> None:
    write(tmp_path)
    found = lines(tmp_path)
    assert found["64 x 4096, 64/8 heads, pages in order"] == [
        "275 us",
        "3,700.0 GB/s",
        "250 us",
        "8 us",
        "0.91 of copy; 0.97 x FlashInfer; torch 2.5 s",
    ]
    assert found["256 x 4096, 64/8 heads, pages in order"][-1] == "skipped: out of memory: so much"
    assert found["step, eager"][-1] == "WRONG; no memory" and found["rope of 64"][0] == "10 us"
    assert found["prefill of 2048 over 2048, 32/32 heads"][1] == "400 TFLOP/s"
    assert found["hetserve, all at once, 48"][:2] == ["3.00 s", "5,000 tokens/s"]
    assert sum(len(rows) for rows in ROWS.values()) == len([cells for cells in found.values() if len(cells) == 5]) - 2  # heads and the line below


def test_nothing_measured_is_said_so(tmp_path: Path) -> None:
    found = lines(tmp_path)
    assert found["decode attention over 256 MB, share of copy"] == ["not measured", "at least 0.85", "-"]


@pytest.mark.parametrize(("value", "most", "said"), [(1.0, True, "met"), (1.01, True, "MISSED"), (1.0, False, "met"), (0.99, False, "MISSED")])
def test_a_target_that_is_just_reached_is_met(value: float, most: bool, said: str) -> None:
    assert Target("x", {"one": value}, 1.0, most).cells()[-1] == said
