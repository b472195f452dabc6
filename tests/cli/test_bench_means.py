"""What planners are told of a benchmark's load."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hetserve.cli.bench_setup import _means


@pytest.mark.parametrize(("max_concurrency", "under_way"), [(None, 4), (3, 3), (9, 4)])
def test_no_more_requests_under_way_than_there_are_or_may_be(max_concurrency, under_way) -> None:
    drawn = SimpleNamespace(lengths=SimpleNamespace(input_tokens=[100, 200, 300, 400], output_tokens=[10, 20, 30, 20]))
    found = _means(drawn, SimpleNamespace(max_concurrency=max_concurrency, request_rate=float("inf")))  # type: ignore[arg-type]
    assert (found.input_tokens, found.output_tokens, found.concurrency) == (250, 20, under_way)
