"""The table of experiments: a name of claims.toml and the function that gives its numbers. A new one is a line here, a row there, and a test."""

from __future__ import annotations

from hetserve.reproduce import fidelity, hetis_search
from hetserve.reproduce.runner import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    "hetis-search": hetis_search.run,
    "fidelity": fidelity.run,
}
