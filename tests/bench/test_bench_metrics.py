"""Metrics by hand: vLLM's definitions on numbers small enough to check."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve import metrics
from hetserve.errors import UsageError
from hetserve.metrics import RequestRecord, summarise


def answer(start_s: float, chunks: tuple[float, ...], tokens: int | None = None, ok: bool = True, queue_s: float = 0.0) -> RequestRecord:
    count = tokens if tokens is not None else len(chunks)
    return RequestRecord(ok, 10, count, start_s, queue_s, chunks, tuple(1 for _ in chunks))


TWO = [answer(0.0, (0.5, 0.6, 0.9)), answer(1.0, (0.2, 0.4), queue_s=0.3)]


def test_latencies_by_hand() -> None:
    got = summarise(TWO, 2.0, percentiles=(50, 99.9), queued=True, open_loop=True)
    assert got["mean_ttft_ms"] == pytest.approx(350)
    assert got["mean_tpot_ms"] == pytest.approx((400 / 2 + 200 / 1) / 2)  # per request, then the mean
    assert got["mean_itl_ms"] == pytest.approx((100 + 300 + 200) / 3)  # all gaps pooled
    assert got["median_itl_ms"] == pytest.approx(200)
    assert got["mean_e2el_ms"] == pytest.approx((900 + 400) / 2)
    assert got["std_e2el_ms"] == pytest.approx(250)  # of the population, as numpy has it
    assert got["p50_e2el_ms"] == got["median_e2el_ms"]
    assert got["p99.9_e2el_ms"] == pytest.approx(400 + 0.999 * 500)
    assert got["mean_client_queue_time_ms"] == pytest.approx(150)
    assert got["mean_e2el_including_client_queue_ms"] == pytest.approx((900 + 700) / 2)


def test_throughputs_by_hand() -> None:
    got = summarise([*TWO, answer(0.0, (9.0,), ok=False)], 2.0)
    assert (got["completed"], got["failed"]) == (2, 1)
    assert (got["total_input_tokens"], got["total_output_tokens"]) == (20, 5)
    assert (got["request_throughput"], got["output_throughput"], got["total_token_throughput"]) == (1.0, 2.5, 12.5)
    assert got["request_goodput"] is None
    assert "mean_client_queue_time_ms" not in got  # no --max-concurrency, no client queue to speak of
    assert got["max_output_tokens_per_s"] == 3 and got["max_concurrent_requests"] == 1


def test_chunks_of_several_tokens_count_by_tokens_in_tpot_and_by_chunks_in_itl() -> None:
    record = RequestRecord(True, 1, 5, 0.0, 0.0, (1.0, 2.0), (1, 4))
    got = summarise([record], 2.0)
    assert got["mean_tpot_ms"] == pytest.approx(1000 / 4) and got["mean_itl_ms"] == pytest.approx(1000)
    assert got["max_output_tokens_per_s"] == 4


def test_goodput_needs_every_limit_and_takes_one_token_answers_as_tpot_0() -> None:
    records = [answer(0, (0.1, 0.2)), answer(0, (0.3, 0.4)), answer(0, (0.1,)), answer(0, (0.1, 0.9))]
    assert summarise(records, 1.0, goodput_ms={"ttft": 200})["request_goodput"] == 3
    assert summarise(records, 1.0, goodput_ms={"ttft": 200, "tpot": 100.001})["request_goodput"] == 2
    assert summarise(records, 1.0, goodput_ms={"tpot": 0})["request_goodput"] == 1
    assert summarise(records, 1.0, goodput_ms={"e2el": 150})["request_goodput"] == 1


def test_a_run_without_a_completed_request_has_numbers_still() -> None:
    got = summarise([answer(0, (), ok=False)], 1.0)
    assert got["completed"] == 0 and got["output_throughput"] == 0 and got["mean_ttft_ms"] == 0


chunk_lists = st.lists(st.floats(0.001, 5), min_size=1, max_size=6).map(lambda gaps: tuple(sum(gaps[: index + 1]) for index in range(len(gaps))))


@given(st.lists(st.tuples(st.floats(0, 20), chunk_lists), min_size=1, max_size=12))
def test_invariants(rows: list[tuple[float, tuple[float, ...]]]) -> None:
    records = [answer(start_s, chunks) for start_s, chunks in rows]
    duration_s = max(record.start_s + record.e2el_s for record in records)
    got = summarise(records, duration_s, percentiles=(0, 50, 100))
    assert got["p0_ttft_ms"] <= got["median_ttft_ms"] <= got["p100_ttft_ms"]
    assert got["mean_e2el_ms"] >= got["mean_ttft_ms"]
    gaps = [after - before for record in records for before, after in zip(record.chunk_s, record.chunk_s[1:], strict=False)]
    assert got["mean_itl_ms"] == pytest.approx(1000 * statistics.fmean(gaps) if gaps else 0)
    assert got["total_output_tokens"] == pytest.approx(got["output_throughput"] * duration_s)
    assert 1 <= got["max_concurrent_requests"] <= len(records)
    assert got["max_output_tokens_per_s"] <= got["total_output_tokens"]


def test_details_keep_every_request_in_order() -> None:
    found = metrics.details([*TWO, answer(0, (), ok=False)])
    assert found["ttfts"] == [0.5, 0.2, 0.0] and found["output_lens"] == [3, 2, 0] and found["queue_times"] == [0.0, 0.3, 0.0]
    assert found["itls"][1] == [pytest.approx(0.2)]
    assert {len(values) for values in found.values()} == {3}


def test_goodput_limits_are_parsed_as_vllm_takes_them() -> None:
    assert metrics.parse_goodput(["ttft:200 tpot:50", "e2el:1000"]) == {"ttft": 200, "tpot": 50, "e2el": 1000}
    for wrong in ("ttft", "itl:5", "ttft:x", "ttft:-1", "ttft:nan"):
        with pytest.raises(UsageError):
            metrics.parse_goodput([wrong])


def test_percentile_keys_are_vllms() -> None:
    assert [metrics.percentile_key(value) for value in (99.0, 50, 99.9)] == ["p99", "p50", "p99.9"]
