"""Cuts of layers against all there are."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetserve.solve.partition import best_cuts


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_slowest_stage_is_as_fast_as_in_the_best_of_all_cuts(stages, layers, draw) -> None:
    seconds = np.array([[inf] + [draw.choice([inf, draw.random()]) for _ in range(layers)] for _ in range(stages)])
    cuts = [list(pairwise((0, *edges, layers))) for edges in combinations(range(1, layers), stages - 1)]
    times = [max(seconds[stage][last - first] for stage, (first, last) in enumerate(cut)) for cut in cuts]
    best = min(times, default=inf)
    found = best_cuts(seconds)
    if best == inf:
        assert found is None
    else:
        assert found is not None and found[0] == pytest.approx(best) and found[1] in cuts
        assert max(seconds[stage][last - first] for stage, (first, last) in enumerate(found[1])) == best
