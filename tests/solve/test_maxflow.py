"""Maximum flows, each proved: it obeys its capacities, what comes in goes out, and a cut of its size has no way around it."""

from __future__ import annotations

import networkx
import numpy as np
import pytest

from hetserve.solve.maxflow import Flow, max_flow


def proved(tails, heads, capacities, source: int, sink: int) -> Flow:
    """The flow, if it is one and the largest."""
    flow = max_flow(tails, heads, capacities, source, sink)
    tails, heads, capacities = np.asarray(tails), np.asarray(heads), np.asarray(capacities, float)
    assert (flow.flows >= 0).all() and (flow.flows <= capacities * (1 + 1e-9)).all()
    for node in set(tails.tolist()) | set(heads.tolist()):
        net = flow.flows[heads == node].sum() - flow.flows[tails == node].sum()
        wanted = flow.total * ((node == sink) - (node == source))
        assert net == pytest.approx(wanted, abs=1e-6 * max(1.0, flow.total))
    if flow.total:
        assert capacities[flow.cut].sum() == pytest.approx(flow.total)
    assert flow.saturated[flow.cut & (capacities > 0)].all()
    rest = networkx.DiGraph([(int(a), int(b)) for a, b, crossing in zip(tails, heads, flow.cut, strict=True) if not crossing])
    rest.add_nodes_from([source, sink])
    assert not networkx.has_path(rest, source, sink)
    return flow


def test_the_vector_of_the_notes() -> None:
    # 0 source, 1 2 prefill in, 3 4 prefill out, 5 6 decode in, 7 8 decode out, 9 sink: papers/hexgen2.md 2.2
    arcs = [(0, 1, np.inf), (0, 2, np.inf), (1, 3, 60), (2, 4, 70), (3, 5, 40), (3, 6, 25), (4, 5, 30), (4, 6, 50)]
    arcs += [(5, 7, 65), (6, 8, 55), (7, 9, np.inf), (8, 9, np.inf)]
    tails, heads, capacities = zip(*arcs, strict=True)
    flow = proved(tails, heads, capacities, 0, 9)
    assert flow.total == pytest.approx(120)
    assert flow.saturated[[8, 9]].all() and flow.flows[[8, 9]] == pytest.approx([65, 55])
    assert flow.flows[4:8].sum() == pytest.approx(120)


def test_random_graphs_against_another_solver() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        graph = networkx.DiGraph()
        graph.add_nodes_from(range(8))
        for a, b in rng.integers(0, 8, (24, 2)).tolist():
            if a != b:
                graph.add_edge(a, b, capacity=float(rng.choice([0.0, 1e-3, 1.0, 7.5, 1000.0]) * rng.random()))
        tails, heads, capacities = zip(*graph.edges(data="capacity"), strict=True)
        other = networkx.maximum_flow_value(graph, 0, 7, flow_func=networkx.algorithms.flow.preflow_push)
        assert proved(tails, heads, capacities, 0, 7).total == pytest.approx(other, rel=1e-6, abs=1e-9)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        max_flow([0], [1], [-1.0], 0, 1)
    with pytest.raises(ValueError, match="at least 0"):
        max_flow([0], [1], [np.nan], 0, 1)
    with pytest.raises(ValueError, match="endless"):
        max_flow([0, 1], [1, 2], [np.inf, np.inf], 0, 2)
    assert max_flow([0, 1], [1, 2], [np.inf, 0.0], 0, 2).total == 0.0
