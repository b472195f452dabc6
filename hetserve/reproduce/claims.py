"""The claims of claims.toml: what a paper says, and what of ours would count as the same, written down before anything is run."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hetserve.errors import SpecError
from hetserve.spec.strict import build

KINDS = ("simulated", "measured")
MARKS = ("quoted", "derived", "inferred", "wanted")  # a paper's own words; arithmetic on its formulas; what it leaves open; what we ask of ourselves
REPRODUCED, PARTLY, MISSED = "reproduced", "partly", "not reproduced"


@dataclass(frozen=True)
class About:
    """An experiment, to people.

    Attributes:
        title: what it does, in half a sentence.
        kind: one of KINDS: by the simulator (and planners), or by the engine on this machine.
        human_minutes, compute_minutes: what it takes; computing with two processes on two cores.
        datasets: whose lengths it uses, files or committed tables.
        ours: settings that the papers leave open.
    """

    name: str
    title: str
    kind: str
    human_minutes: float
    compute_minutes: float
    datasets: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One thing a paper says.

    Attributes:
        paper: whose, as results name it.
        says: the claim in words.
        value, unit: its number.
        where: figure and section.
        mark: one of MARKS.
        experiment: which one gives our number.
        number: what of ours is held beside the paper's number.
        reproduced, partly: from and to, inclusive: with our number within the first the claim is reproduced, within the second partly: the direction
            holds.
        because: where ours is another number, what is known of why.
    """

    name: str
    paper: str
    says: str
    value: float
    unit: str
    where: str
    mark: str
    experiment: str
    number: str
    reproduced: tuple[float, float]
    partly: tuple[float, float]
    because: str = ""

    def verdict(self, number: float) -> str:
        """REPRODUCED, PARTLY or MISSED."""
        if self.reproduced[0] <= number <= self.reproduced[1]:
            return REPRODUCED
        return PARTLY if self.partly[0] <= number <= self.partly[1] else MISSED


@dataclass(frozen=True)
class _File:
    experiment: tuple[About, ...]
    claim: tuple[Claim, ...]


@cache
def everything() -> tuple[tuple[About, ...], tuple[Claim, ...]]:
    """All experiments and all claims, in the order of the file.

    Raises:
        SpecError: the file contradicts itself.
    """
    return parse(resources.files(__package__).joinpath("claims.toml").read_text(encoding="utf-8"))


def parse(text: str) -> tuple[tuple[About, ...], tuple[Claim, ...]]:
    """As `everything`, of any text."""
    where = "claims.toml"
    found = build(_File, tomllib.loads(text), where)
    for kind, names in (("experiment", [one.name for one in found.experiment]), ("claim", [one.name for one in found.claim])):
        for name in {name for name in names if names.count(name) > 1}:
            raise SpecError(f"{where}: there are two {kind}s called {name!r}")
    known = {one.name for one in found.experiment}
    for about in found.experiment:
        if about.kind not in KINDS:
            raise SpecError(f"{where}: experiment {about.name!r} is {about.kind!r}, expected one of {', '.join(KINDS)}")
    for claim in found.claim:
        if claim.experiment not in known:
            raise SpecError(f"{where}: claim {claim.name!r} names experiment {claim.experiment!r}, which there is not")
        if claim.mark not in MARKS:
            raise SpecError(f"{where}: claim {claim.name!r} is marked {claim.mark!r}, expected one of {', '.join(MARKS)}")
        (low, high), (least, most) = claim.reproduced, claim.partly
        if not least <= low <= high <= most:
            raise SpecError(f"{where}: claim {claim.name!r}: what is reproduced ({low} to {high}) is not within what is partly ({least} to {most})")
    for name in known - {claim.experiment for claim in found.claim}:
        raise SpecError(f"{where}: no claim is held against experiment {name!r}")
    return found.experiment, found.claim


def experiment(name: str) -> About:
    return next(one for one in everything()[0] if one.name == name)


def claims_of(name: str) -> list[Claim]:
    """The claims that an experiment answers."""
    return [one for one in everything()[1] if one.experiment == name]
