"""The simulator's speed: the hour's requests, one small part timed, and what is made of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetserve.reproduce.claims import claims_of
from hetserve.reproduce.setup import Setup
from hetserve.reproduce.simulator_speed import HETIS, HEXGEN2, HOUR_S, REQUESTS, WINDOW, Case, Timed, growth, hour, time_part, told


def test_the_hour_without_data_is_as_long_and_fits() -> None:
    arrivals = hour(None)
    assert len(arrivals) == REQUESTS and arrivals == hour(None)
    assert arrivals == sorted(arrivals, key=lambda one: one.at_s) and 0.99 * HOUR_S < arrivals[-1].at_s < HOUR_S
    assert all(one.prompt_tokens >= 1 and one.output_tokens >= 1 and one.prompt_tokens + one.output_tokens <= WINDOW for one in arrivals)
    assert 3.8e6 < sum(one.output_tokens for one in arrivals) < 4.4e6  # of the trace: 4.1 million


def test_the_hour_with_data_keeps_its_times_and_answers(tmp_path: Path) -> None:
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:00:00.0,9000,100", "2023-11-16 18:00:02.5,10,0"]
    (tmp_path / "AzureLLMInferenceTrace_conv.csv").write_text("\n".join(rows) + "\n")
    first, second = hour(tmp_path)
    assert (first.at_s, first.prompt_tokens, first.output_tokens) == (0.0, WINDOW - 100, 100)
    assert (second.at_s, second.prompt_tokens, second.output_tokens) == (2.5, 10, 1)


def test_a_part_is_timed() -> None:
    timed = time_part(Case("uniform", "Llama-2-13B", "h100x8"), None, 600)
    assert timed.requests == REQUESTS // 600 and timed.tokens > 0 and timed.events > timed.requests
    assert timed.cpu_s > 0 and timed.simulated_s > 0.5 * HOUR_S / 600 and timed.peak_bytes > 2**25


@pytest.mark.parametrize(("case", "experiment"), [(HEXGEN2, "simulator-speed"), (HETIS, "simulator-speed-hetis")])
def test_the_whole_is_judged_and_the_parts_say_how_it_grows(case: Case, experiment: str) -> None:
    parts = [Timed(1000 * size, 2000 * size, 3000 * size, 400.0 * size, 10.0 * size**1.5, 2**30) for size in (1, 2, 4)]
    report = told(case, parts, Setup())
    numbers = [report.found[claim.name].number for claim in claims_of(experiment)]
    assert numbers == pytest.approx([400 * 4 / 80, 1.0, 1.5]) and "ours" in report.tables[0].inputs[0]["arrivals"]
    assert growth([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx(1.0)
