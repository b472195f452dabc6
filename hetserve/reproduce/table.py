"""The table of experiments: a name of claims.toml and the function that gives its numbers. A new one is a line here, a row there, and a test."""

from __future__ import annotations

from hetserve.reproduce import (
    fidelity,
    hetis_dispatch,
    hetis_latency,
    hetis_measured,
    hetis_pages,
    hetis_search,
    hetis_split,
    hetis_throughput,
    hexgen2_latency,
    hexgen2_search,
    hexgen2_throughput,
    simulator_speed,
)
from hetserve.reproduce.runner import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    "hetis-search": hetis_search.run,
    "hetis-throughput": hetis_throughput.run,
    "hetis-latency": hetis_latency.run,
    "hetis-split": hetis_split.run,
    "hetis-error": hetis_dispatch.error,
    "hetis-theta": hetis_dispatch.theta,
    "hexgen2-throughput": hexgen2_throughput.llama,
    "hexgen2-throughput-opt": hexgen2_throughput.opt,
    "hexgen2-latency": hexgen2_latency.run,
    "hexgen2-budget": hexgen2_throughput.cheaper,
    "hexgen2-convergence": hexgen2_search.convergence,
    "hexgen2-scheduling": hexgen2_search.scheduling,
    "simulator-speed": simulator_speed.hexgen2,
    "simulator-speed-hetis": simulator_speed.hetis,
    "hetis-measured-throughput": hetis_measured.throughput,
    "hetis-measured-theta": hetis_measured.theta,
    "hetis-measured-error": hetis_measured.error,
    "hetis-measured-linearity": hetis_measured.linearity,
    "hetis-measured-store-fetch": hetis_pages.run,
    "fidelity": fidelity.run,
}
