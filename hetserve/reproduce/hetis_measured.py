"""Hetis' claims about whole runs, on the engine and this machine's cores, with the simulator's word for the same plans beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hetserve.bench.simulated import arrivals_of, assemble, summary
from hetserve.planner.options import Options
from hetserve.reproduce.engine_runs import bench, checkpoint, cluster_here, profile_of
from hetserve.reproduce.hetis_case import mean_load
from hetserve.reproduce.report import Found, Report, Row, Table
from hetserve.reproduce.setup import Requests, Setup
from hetserve.spec.load import load_model, load_profile, save_profile
from hetserve.spec.profile import Profile
from hetserve.systems import system

CLUSTER = "cpu-hetero"
ONLY, MOST_TOKENS, WINDOW, COUNT = "HPHD", 3500, 3584, 16
BASELINES = ("hexgen", "splitwise", "uniform")
THETAS = ("none", "0.1", "0.25", "1")  # beside the default, 0.5
ERROR = 0.2  # of profiles
LATENCY = "mean_e2el_ms"


@dataclass(frozen=True)
class Bench:
    """What a run needs, on this machine."""

    model: Path
    profile: Path
    folder: Path
    data: Path | None

    def run(self, baselines: Sequence[str]) -> dict[str, Any]:
        """hetis in a pair with each baseline, the same requests, all at once."""
        flags = ["--system", "hetis", "--baseline", ",".join(baselines), "--model", self.model, "--cluster", CLUSTER, "--profile", self.profile]
        flags += ["--max-model-len", WINDOW, "--dataset-name", "azure-conv", "--class", ONLY, "--max-request-len", MOST_TOKENS]
        flags += ["--num-prompts", COUNT, "--seed", 0, "--request-rate", "inf", "--pairs", 1, "--check", 1]
        flags += ["--data-dir", self.data] if self.data is not None else []
        return bench([str(flag) for flag in flags], self.folder)

    def simulated(self, name: str, **planning: Any) -> dict[str, Any]:
        """The simulator's result for the same requests and the plan that such a system makes."""
        drawn = Requests("azure-conv", COUNT, MOST_TOKENS, self.data, ONLY).drawn()
        load = replace(mean_load(drawn), concurrency=COUNT)
        options = replace(Options(max_model_len=WINDOW, profile=load_profile(self.profile)), **planning)
        done = assemble(system(name).planner(cluster_here(CLUSTER), load_model(self.model), load, options), arrivals_of(drawn))
        done.run()
        return summary(done)


def throughput(setup: Setup) -> Report:
    """Output tokens per second and resident KV, hetis beside the baselines' policies on our engine."""
    with ready(setup) as bench_here:
        result = bench_here.run(BASELINES)
        simulated = {name: bench_here.simulated(name) for name in ("hetis", *BASELINES)}
    measured = {name: result["systems"]["hetis" if name == "hetis" else f"{name}-policy"] for name in simulated}
    ours = measured["hetis"]
    kv = {name: ours["peak_kv_tokens"] / measured[name]["peak_kv_tokens"] for name in BASELINES}
    found = {
        f"hetis-measured-{name}": Found(ours["output_throughput"] / measured[name]["output_throughput"], f"hetis / {name}-policy, one pair")
        for name in ("hexgen", "splitwise")
    }
    found["hetis-measured-kv"] = Found(max(kv.values()), f"hetis / {max(kv, key=lambda name: kv[name])}-policy")
    rows: list[Row] = []
    for name, one in measured.items():
        against = {"output tokens/s": one["output_throughput"], "simulated": simulated[name]["output_throughput"]}
        ratios = {
            "hetis / it": ours["output_throughput"] / one["output_throughput"],
            "simulated hetis / it": simulated["hetis"]["output_throughput"] / simulated[name]["output_throughput"],
        }
        rows.append({"system": name, **against, **ratios, "peak KV tokens": one["peak_kv_tokens"], "preemptions": one["preemptions"]})
    return Report(found, (_table("hetis and the baselines' policies", rows, result),))


def theta(setup: Setup) -> Report:
    """Thresholds of re-dispatch: the default beside four others."""
    names = {f"hetis theta={text}": None if text == "none" else float(text) for text in THETAS}
    with ready(setup) as bench_here:
        result = bench_here.run(list(names))
        simulated = {0.5: bench_here.simulated("hetis")} | {value: bench_here.simulated("hetis", theta=value) for value in names.values()}
    measured = {0.5: result["systems"]["hetis"]} | {value: result["systems"][_label(name)] for name, value in names.items()}
    best = min(measured, key=lambda value: measured[value][LATENCY])
    number = measured[best][LATENCY] / measured[0.5][LATENCY]
    rows: list[Row] = [
        {
            "theta": "off" if value is None else value,
            "mean latency, s": one[LATENCY] / 1e3,
            "simulated, s": simulated[value][LATENCY] / 1e3,
            "output tokens/s": one["output_throughput"],
            "moves": one["moves"],
        }
        for value, one in sorted(measured.items(), key=lambda item: (item[0] is None, item[0]))
    ]
    how = f"mean latency of the best threshold ({'off' if best is None else best}) / that of 0.5"
    return Report({"hetis-measured-theta": Found(number, how)}, (_table("Thresholds of re-dispatch", rows, result),))


def error(setup: Setup) -> Report:
    """Planned and dispatched by a profile whose attention and transfer times of the second device are a fifth off, both ways."""
    with ready(setup) as bench_here:
        right = load_profile(bench_here.profile)
        wrong = {times: bench_here.folder / f"profile-{times:g}.toml" for times in (1 - ERROR, 1 + ERROR)}
        for times, path in wrong.items():
            save_profile(off(right, times), path)
        names = {times: f"hetis profile={path}" for times, path in wrong.items()}
        result = bench_here.run(list(names.values()))
        simulated = {1.0: bench_here.simulated("hetis")[LATENCY]}
    measured = {1.0: result["systems"]["hetis"]} | {times: result["systems"][_label(name)] for times, name in names.items()}
    worst = max(names, key=lambda times: measured[times][LATENCY])
    number = measured[worst][LATENCY] / measured[1.0][LATENCY] - 1
    rows: list[Row] = [
        {
            "times in the profile": f"{times:g} of the measured",
            "mean latency, s": one[LATENCY] / 1e3,
            "simulated, s": simulated[times] / 1e3 if times in simulated else None,
            "more latency": f"{one[LATENCY] / measured[1.0][LATENCY] - 1:+.1%}",
            "output tokens/s": one["output_throughput"],
            "layout": "the same" if one.get("layout") == measured[1.0].get("layout") else "another",
        }
        for times, one in sorted(measured.items())
    ]
    return Report({"hetis-measured-error": Found(number, f"times {worst:g} of the measured")}, (_table("Profiles that are wrong", rows, result),))


def off(profile: Profile, times: float) -> Profile:
    """All devices but the first, and all links, said to take so many times as long as they do: a, b, c, gamma and beta."""
    first, *others = profile.devices
    lines = [replace(one.attention, **{name: times * getattr(one.attention, name) for name in ("a_s", "b_s", "c_s")}) for one in others]
    devices = [replace(one, attention=line) for one, line in zip(others, lines, strict=True)]
    links = [replace(one, gamma_s=times * one.gamma_s, beta_s=times * one.beta_s) for one in profile.links]
    return replace(profile, devices=(first, *devices), links=tuple(links))


def linearity(setup: Setup) -> Report:
    """How well attention is told by heads and cache, and a transfer by its size: on points that the fits have not seen."""
    with ready(setup) as bench_here:
        profile = load_profile(bench_here.profile)
    compute = {one.name: 1 - one.attention.held_out_error for one in profile.devices}
    transfer = {f"{one.source} to {one.target}": 1 - one.held_out_error for one in profile.links}
    found = {
        "hetis-measured-attention": Found(max(compute.values()), f"the best of {len(compute)} devices, mean over points held out"),
        "hetis-measured-transfer": Found(min(transfer.values()), f"the worst of {len(transfer)} directions, mean over points held out"),
    }
    rows: list[Row] = [{"what": f"attention on {name}", "accuracy": value} for name, value in compute.items()]
    rows += [{"what": f"messages from {name}", "accuracy": value} for name, value in transfer.items()]
    when = f"profile of {profile.date}, {profile.machine}"
    return Report(found, (Table("1 - mean relative error on held-out points", "measured", tuple(rows)),), notes=(when,))


@contextmanager
def ready(setup: Setup) -> Iterator[Bench]:
    """Model and profile in a folder of their own.

    Raises:
        ResourceError: this machine has too few cores.
    """
    with TemporaryDirectory() as name:
        cluster, folder = cluster_here(CLUSTER), Path(name)
        model = checkpoint(folder)
        yield Bench(model, profile_of(setup, cluster, model, folder), folder, setup.data)


def _label(name: str) -> str:
    """What results call a baseline of ours: `hetis theta=1` is `hetis-policy theta=1`."""
    who, _, planning = name.partition(" ")
    return f"{who}-policy {planning}"


def _table(title: str, rows: Sequence[Row], result: Mapping[str, Any]) -> Table:
    where = f", llama-250m on {CLUSTER}, {COUNT} requests of {ONLY} at once"
    return Table(title + where, "measured, and simulated beside it", tuple(rows), (result["inputs"],))
