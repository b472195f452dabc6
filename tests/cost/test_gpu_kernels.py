"""Formulas of GPU kernels: never faster than the data sheet allows, waves where there are waves, and in the right order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve.cost.fits import START
from hetserve.cost.kernels import CUSTOM_BYTES, AllReduce, Chip, Decode, Gemm, Link, Overhead, Prefill, Small

CHIP = Chip(300e12, 2e12, 100)
GEMM: Gemm = START[Gemm]
DECODE: Decode = START[Decode]
PREFILL: Prefill = START[Prefill]


@given(st.integers(1, 8192), st.sampled_from([512, 4096, 28672]), st.sampled_from([512, 8192]))
def test_a_product_is_never_faster_than_memory_or_arithmetic(m: int, n: int, k: int) -> None:
    seconds = float(GEMM.seconds(CHIP, m, n, k))
    assert seconds > 2 * n * k / CHIP.read_bytes and seconds > 2 * m * n * k / CHIP.flops


def test_few_rows_wait_for_weights_and_many_for_arithmetic() -> None:
    few, more = (float(GEMM.seconds(CHIP, m, 8192, 8192)) for m in (1, 16))
    assert more / few < 1.1
    many, twice = (float(GEMM.seconds(CHIP, m, 8192, 8192)) for m in (8192, 16384))
    assert twice / many == pytest.approx(2, rel=0.05)


def test_a_wave_that_is_not_full_costs() -> None:
    """100 multiprocessors: 100 tiles are one wave, 101 begin a second."""
    one = replace(GEMM, wide_share=0.05, small_share=0.05)  # only square tiles pay
    full, over = (float(one.seconds(CHIP, 1280, 128 * n, 8192)) for n in (10, 11))  # 10 x 10 and 10 x 11 tiles
    assert 1.3 < over / full < 1.7


def test_arrays_are_answered_one_by_one() -> None:
    m = np.array([1.0, 300.0, 4096.0])
    together = GEMM.seconds(CHIP, m, 4096, 4096)
    assert together == pytest.approx([float(GEMM.seconds(CHIP, each, 4096, 4096)) for each in m])


def test_a_chip_at_half_rate_loses_less() -> None:
    eager = replace(GEMM, half_rate_gain=1.3)
    usual, easy = (float(eager.seconds(replace(CHIP, half_rate=half), 8192, 8192, 8192)) for half in (False, True))
    assert 1.2 < usual / easy < 1.35


def test_decode_attention_reads_its_cache() -> None:
    def seconds(sequences, context, q_heads, kv_heads):
        return float(DECODE.seconds(CHIP, sequences, sequences * context, context, q_heads, kv_heads))

    grouped, single = seconds(64, 4096, 32, 8), seconds(64, 4096, 32, 32)
    assert 3 < single / grouped < 4.2  # four times the bytes
    assert seconds(64, 4096, 32, 8) > 2 * 2 * 128 * 8 * 64 * 4096 / CHIP.read_bytes
    assert seconds(1, 1, 32, 8) == pytest.approx(DECODE.fixed_s, rel=0.1)


def test_prefill_attention_grows_with_pairs_and_a_lone_long_chunk_waits() -> None:
    def seconds(new, before):
        return float(PREFILL.seconds(CHIP, new * (before + (new + 1) / 2), new, before + new, 32))

    assert seconds(8192, 0) / seconds(4096, 0) == pytest.approx(4, rel=0.1)
    assert seconds(16, 16384) > 16384 * PREFILL.token_s


def test_small_kernels_are_launched_then_move_bytes() -> None:
    small = Small(4e-6, 3e-6, 2e-6, 0.5)
    assert small.seconds(CHIP, np.array([0, 1, 2]), np.ones(3)) == pytest.approx([4e-6, 3e-6, 2e-6])
    assert float(small.seconds(CHIP, 0, 1e9)) == pytest.approx(1e9 / 1e12, rel=0.01)


@given(st.integers(2, 8), st.floats(1e3, 1e9))
def test_an_all_reduce_is_never_faster_than_the_wire(ranks: int, size_bytes: float) -> None:
    reduce: AllReduce = START[AllReduce]
    assert float(reduce.seconds(300e9, ranks, size_bytes)) > 2 * (ranks - 1) / ranks * size_bytes / 300e9


def test_messages_and_the_engine_itself() -> None:
    assert float(Link(1e-5, 0.5).seconds(100e9, 1e9)) == pytest.approx(0.02001)
    assert float(Overhead(1e-3, 1e-5).seconds(100)) == pytest.approx(2e-3)
    assert CUSTOM_BYTES == 8 * 2**20
