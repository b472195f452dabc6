"""What `hetserve bench`'s flags come to: defaults filled in, model, cores, servers and request list settled, nothing started yet."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from datetime import date
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetserve.errors import BaselineError, BenchError, ModelError, ResourceError, SpecError, UsageError

from .baseline import baselines_folder, cache_folder
from .bench_profile import NONE, profile_for
from .bench_systems import (
    asked_for,
    default_system,
    needed_tokens,
    planner_of,
    plans_of,
    resolve_systems,
    scales,
    vllm_install,
    vllm_kv_tokens,
    window,
)
from .console import Screen

if TYPE_CHECKING:
    from hetserve.bench.comparison import Remote
    from hetserve.bench.launches import Setup
    from hetserve.bench.process import Launch
    from hetserve.bench.session import Experiment, Target
    from hetserve.spec.workload import Workload as WorkloadMeans
    from hetserve.trace.arrivals import Arrivals
    from hetserve.trace.datasets import DatasetSpec, Workload

# The standard run: what `make bench` runs, and what every flag left out means while none names a dataset or a URL.
STANDARD_MODEL = "llama-250m"
STANDARD_DATASET = "azure-conv"
STANDARD_PROMPTS = 8
STANDARD_CLUSTER = "cpu-hetero"
ONE_DEVICE = "cpu"  # the cluster where that cannot be had, or where a flag is for one device
STANDARD_KV_MEMORY = "4 GiB"
PAIRS, PAIRS_OF_MANY = 6, 2  # beside one baseline, beside each of several
FOR_SCALE = "vllm-all"  # stands beside vllm on every cluster of several devices, by one pair: other hardware
TABLE_PERCENTILE = 95.0  # of TPOT, in the table of many systems
VLLM_PROMPTS = 1000  # vLLM's default, once a dataset or a URL is named
DATASET_FLAGS = ("dataset_name", "dataset_path", "input_len", "random_input_len", "random_output_len", "random_range_ratio", "random_prefix_len")


@dataclass(frozen=True)
class Flags:
    """The command line as given; None where a default depends on the rest."""

    model: str | None
    base_url: str | None
    host: str | None
    port: int | None
    backend: str
    endpoint: str
    header: tuple[str, ...]
    served_model_name: str | None
    tokenizer: str | None
    seed: int
    num_prompts: int | None
    dataset_name: str | None
    dataset_path: Path | None
    input_len: int | None
    output_len: int | None
    random_input_len: int | None
    random_output_len: int | None
    random_range_ratio: float | None
    random_prefix_len: int | None
    request_rate: float
    burstiness: float
    max_concurrency: int | None
    ramp_up_strategy: str | None
    ramp_up_start_rps: float | None
    ramp_up_end_rps: float | None
    num_warmups: int
    ready_check_timeout_sec: float | None
    percentile_metrics: str
    metric_percentiles: str
    goodput: tuple[str, ...]
    ignore_eos: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    extra_body: str | None
    save_result: bool
    save_detailed: bool
    result_dir: Path | None
    result_filename: str | None
    label: str | None
    metadata: tuple[str, ...]
    system: str | None
    memory_scale: str | None
    only: str | None
    max_request_len: int | None
    profile: Path | None
    baseline: str | None
    baseline_url: str | None
    baseline_dir: Path | None
    baseline_args: str
    serve_args: str
    cluster: str | None
    plan: Path | None
    dtype: str
    kv_memory: str | None
    max_model_len: int | None
    pairs: int | None
    check: int
    timeline: Path | None
    live: bool
    data_dir: Path | None
    as_json: bool

    @property
    def url(self) -> str | None:
        """The running server to measure, if one was named."""
        if self.base_url:
            return self.base_url.rstrip("/")
        if self.host is None and self.port is None:
            return None
        return f"http://{self.host or '127.0.0.1'}:{self.port or 8000}"

    @property
    def pairs_each(self) -> int:
        """Pairs of runs with each baseline."""
        several = self.baseline is not None and "," in self.baseline
        return self.pairs if self.pairs is not None else PAIRS_OF_MANY if several else PAIRS

    @property
    def result_folder(self) -> Path:
        """Where results go."""
        return self.result_dir or Path("results") / "bench" / f"{date.today():%Y%m%d}"

    @property
    def standard(self) -> bool:
        """Whether the standard run's defaults hold."""
        return self.url is None and all(getattr(self, name) is None for name in DATASET_FLAGS)


@dataclass(frozen=True)
class Job:
    """What the flags came to.

    Attributes:
        others: what it is compared with, one after the other.
        models: the model's name in requests, by system.
        model: the checkpoint's folder, for the reference; unused when nothing is compared.
        command: the line that runs exactly this again.
        facts: by system, what its result says beside the numbers.
        missing: baselines that were asked for and cannot be run, with why. One that fails later is added; None: any failure is an error.
        once: those of `others` that get one pair only.
        conditions: what the whole result says of how it was made.
    """

    experiment: Experiment
    ours: Target
    others: tuple[Target, ...]
    models: dict[str, str]
    model: Path
    command: str
    facts: dict[str, dict[str, Any]]
    missing: dict[str, str] | None = None
    once: tuple[str, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)


def resolve(flags: Flags, screen: Screen, logs: Path) -> list[Job]:
    """The jobs that the flags describe, one for each memory scale; may make the standard model, starts nothing.

    Args:
        logs: the folder for the servers' logs.

    Raises:
        UsageError, SpecError, ModelError, ResourceError, BaselineError: what cannot be, before anything is started.
    """
    if flags.url and (flags.baseline or flags.baseline_url):
        raise UsageError("--base-url measures one running server and takes no baseline.", hint="leave --base-url out: hetserve is then started")
    if flags.plan is not None and (flags.dtype != "auto" or any(one is not None for one in (flags.max_model_len, flags.kv_memory, flags.cluster))):
        raise UsageError("--plan settles --cluster, --dtype, --kv-memory and --max-model-len; they cannot be given too.")
    if flags.profile not in (None, NONE) and (flags.url or flags.plan is not None):
        raise UsageError("--profile is for planning, and nothing is planned here.", hint="a plan carries the profile it was made with")
    if flags.timeline is not None and not flags.timeline.absolute().parent.is_dir():
        raise UsageError(f"the timeline cannot be written to {str(flags.timeline)!r}: there is no such folder")
    if flags.baseline and flags.baseline_url:
        raise UsageError("--baseline starts vLLM, --baseline-url takes a running server: give one of them.")
    if flags.url is None and flags.plan is None:
        flags = replace(flags, cluster=_cluster_name(flags, screen))
    if _plans_here(flags):
        return _resolve_many(flags, screen, logs)
    if flags.profile not in (None, NONE):
        raise UsageError("--profile is for planning systems, and this engine alone is laid out without.", hint="--system NAME plans with it")
    return [_resolve_url(flags) if flags.url else _resolve_own(flags, screen, logs)]


def _cluster_name(flags: Flags, screen: Screen) -> str:
    """The cluster that was named, or the standard one where this machine and the other flags allow it."""
    from hetserve.spec.load import load_cluster

    if flags.cluster is not None:
        return flags.cluster
    if flags.kv_memory is not None or flags.baseline_url is not None:
        screen.note(f"on {ONE_DEVICE!r}, one device: --kv-memory and --baseline-url are for one")
        return ONE_DEVICE
    try:
        load_cluster(STANDARD_CLUSTER)
    except ResourceError as error:
        screen.note(f"not on the standard cluster but on {ONE_DEVICE!r}, one device: {error.message}")
        return ONE_DEVICE
    return STANDARD_CLUSTER


def _plans_here(flags: Flags) -> bool:
    """Whether systems are planned here and compared on one cluster's budgets; otherwise it is this engine, alone or beside one vLLM."""
    from hetserve.spec.load import load_cluster

    if flags.system is not None or flags.memory_scale is not None or flags.baseline not in (None, "vllm"):
        return True
    return flags.cluster is not None and flags.plan is None and len(load_cluster(flags.cluster).devices) > 1


def _resolve_many(flags: Flags, screen: Screen, logs: Path) -> list[Job]:
    """Systems planned here, on one cluster: a job for each scale of its budgets, all with the same requests."""
    from hetserve.bench.launches import Setup
    from hetserve.spec.cluster import require_cores, scaled
    from hetserve.spec.fingerprint import fingerprint
    from hetserve.spec.load import load_cluster, load_model, this_host

    for name in ("url", "plan", "kv_memory", "baseline_url"):
        if getattr(flags, name) is not None:
            flag = {"url": "--base-url", "plan": "--plan"}.get(name, f"--{name.replace('_', '-')}")
            hint = f"they get the budgets of --cluster, times --memory-scale; --cluster {ONE_DEVICE} without --system is one device"
            raise UsageError(f"{flag} is not for systems planned here.", hint=hint)
    assert flags.cluster is not None
    cluster = load_cluster(flags.cluster)
    flags = replace(flags, system=flags.system or default_system(cluster))
    asked = asked_for(flags.system or "", baseline=False)
    if len(asked) != 1:
        raise UsageError("--system takes one system.", hint="those it is compared with go to --baseline")
    baselines = asked_for(flags.baseline or "", baseline=True)
    once = len(cluster.devices) > 1 and {one.name for one in baselines} & {"vllm", FOR_SCALE} == {"vllm"}
    asked += baselines + (asked_for(FOR_SCALE, baseline=True) if once else [])
    factors = scales(flags.memory_scale or "1")
    folder = _model_folder(flags.model or STANDARD_MODEL, screen)
    spec = load_model(folder)
    require_cores(cluster, this_host())
    dtype = spec.dtype if flags.dtype == "auto" else flags.dtype
    name, kv_token_bytes = flags.served_model_name or folder.name, spec.kv_bytes_per_token(dtype)
    drawn, arrivals = _workload(flags, Path(flags.tokenizer or folder), spec.max_positions)
    _experiment(flags, drawn, arrivals, (), ())  # mistakes in flags are said before anything is measured
    vllm_install(asked, cluster.devices[0].kind, flags.baseline_dir)  # says what is missing before anything is measured
    flags, profile = profile_for(flags, cluster, spec, dtype, screen)
    planner = planner_of(spec, dtype, _means(drawn, flags), profile)
    setups = [Setup(folder, name, scaled(cluster, factor), dtype, 0, kv_token_bytes, flags.max_model_len or 0, logs) for factor in factors]
    longest = flags.max_model_len or 0
    if not longest:
        held = [plan.limits.max_model_len for setup in setups for plan in plans_of(asked, setup.cluster, 0, planner)[0].values()]
        held += [tokens for setup in setups for tokens in vllm_kv_tokens(asked, setup, spec)]
        totals = [prompt + output for prompt, output in zip(drawn.lengths.input_tokens, drawn.lengths.output_tokens, strict=True)]
        longest = window(held, needed_tokens(totals))
    workload, arrivals = _workload(flags, Path(flags.tokenizer or folder), longest)
    jobs = []
    for factor, unbound in zip(factors, setups, strict=True):
        setup = replace(unbound, max_model_len=longest)
        plans, without = plans_of(asked, setup.cluster, longest, planner)
        scale = f"-x{factor:g}" if len(factors) > 1 else ""
        serve_args = {one.label: _serve_args(flags, f"-{one.label.replace(' ', '-')}{scale}") for one in asked}
        found, missing = resolve_systems(asked, setup, spec, plans, without, serve_args, flags.baseline_dir, flags.baseline_args)
        for label, why in missing.items():
            screen.note(f"left out: {label}: {why}")
        if baselines and not found.keys() & {one.label for one in baselines}:
            raise BaselineError(f"Nothing is left to compare with: {next(iter(missing.values()))}")
        alike = {"model_id": flags.model or STANDARD_MODEL, "dtype": dtype, "cluster": setup.cluster.name, "memory_scale": factor}
        experiment = _experiment(flags, workload, arrivals, setup.cluster.control_cores, setup.cores)
        experiment = replace(experiment, percentiles=tuple(sorted({*experiment.percentiles, TABLE_PERCENTILE})))
        first, *others = found.values()
        budgets = {device.name: device.memory_bytes for device in setup.cluster.devices}
        conditions: dict[str, Any] = {"kind": "emulated" if cluster.emulated else "measured", "memory_scale": factor, "budgets_bytes": budgets}
        if profile is not None:  # its file may be another by the time somebody looks
            conditions["profile"] = {"date": profile.date, "commit": profile.commit, "fingerprint": fingerprint(profile)}
        jobs.append(
            Job(
                experiment=experiment,
                ours=first.target,
                others=tuple(one.target for one in others),
                models=dict.fromkeys(found, name),
                model=folder,
                command=command_line(flags, longest),
                facts={label: {**alike, **one.facts} for label, one in found.items()},
                missing=missing,
                once=(FOR_SCALE,) if once else (),
                conditions=conditions,
            )
        )
    return jobs


def _resolve_own(flags: Flags, screen: Screen, logs: Path) -> Job:
    """hetserve, and the baseline if asked for, started here."""
    from hetserve.bench.launches import hetserve_launch

    setup = _setup(flags, screen, logs)
    where = ("--plan", str(flags.plan.absolute())) if flags.plan else ("--cluster", str(flags.cluster))
    ours = hetserve_launch(setup, where, _serve_args(flags, ""))
    models = {ours.name: setup.served_name}
    facts: dict[str, dict[str, Any]] = {ours.name: {"server_command": shlex.join(ours.command)}}
    theirs = _baseline(flags, setup, models, facts)
    alike = {"model_id": flags.model or STANDARD_MODEL, "dtype": setup.dtype, "kv_bytes": setup.kv_bytes, "cluster": setup.cluster.name}
    facts = {name: {**alike, **said} for name, said in facts.items()}
    workload, arrivals = _workload(flags, Path(flags.tokenizer or setup.model), setup.max_model_len)
    experiment = _experiment(flags, workload, arrivals, setup.cluster.control_cores, setup.cores)
    return Job(experiment, ours, () if theirs is None else (theirs,), models, setup.model, command_line(flags, setup.max_model_len), facts)


def _means(drawn: Workload, flags: Flags) -> WorkloadMeans:
    """What planners may know of the load."""
    from hetserve.spec.workload import Workload as Means

    inputs, outputs = drawn.lengths.input_tokens, drawn.lengths.output_tokens
    under_way = min(len(inputs), flags.max_concurrency or len(inputs))
    return Means(sum(inputs) / len(inputs), sum(outputs) / len(outputs), flags.request_rate, under_way)


def _serve_args(flags: Flags, of: str) -> str:
    """What `hetserve serve` is given beside what the comparison settles. `of` tells servers' timelines apart."""
    if flags.timeline is None:
        return flags.serve_args
    path = flags.timeline.absolute()
    path = path.with_name(f"{path.stem}{of}{path.suffix or '.json'}")
    return f"{flags.serve_args} --timeline {shlex.quote(str(path))}".strip()


def _setup(flags: Flags, screen: Screen, logs: Path) -> Setup:
    from hetserve.bench.launches import Setup
    from hetserve.control.config import config_from_plan
    from hetserve.engine.runnable import require_runnable
    from hetserve.spec.cluster import parse_bytes, require_cores
    from hetserve.spec.load import load_cluster, load_model, load_plan, this_host

    folder = _model_folder(flags.model or STANDARD_MODEL, screen)
    name, spec = flags.served_model_name or folder.name, load_model(folder)
    if flags.plan is not None:
        plan = load_plan(flags.plan)
        plan.require_model(spec)
        config_from_plan(plan)  # what this version does not run is said before anything is started
        require_runnable(plan)
        cluster, dtype, longest = plan.cluster, plan.model.dtype, plan.limits.max_model_len
        kv_bytes = sum(pool.pages * pool.page_bytes for group in plan.groups for stage in group.stages for pool in stage.pools)
    else:
        assert flags.cluster is not None
        cluster, dtype = load_cluster(flags.cluster), spec.dtype if flags.dtype == "auto" else flags.dtype
        kv_bytes = parse_bytes(flags.kv_memory or STANDARD_KV_MEMORY, "--kv-memory")
        longest = flags.max_model_len or min(spec.max_positions, kv_bytes // spec.kv_bytes_per_token(dtype))
    require_cores(cluster, this_host())
    return Setup(folder, name, cluster, dtype, kv_bytes, spec.kv_bytes_per_token(dtype), longest, logs)


def _baseline(flags: Flags, setup: Setup, models: dict[str, str], facts: dict[str, dict[str, Any]]) -> Launch | Remote | None:
    """The other side, entered into `models` and `facts`."""
    from hetserve.bench import vllm_install
    from hetserve.bench.comparison import Remote
    from hetserve.bench.launches import vllm_launch

    if flags.baseline:
        install = vllm_install.require(baselines_folder(flags.baseline_dir), setup.cluster.devices[0].kind)
        launch = vllm_launch(setup, install, flags.baseline_args)
        models[launch.name] = setup.served_name
        facts[launch.name] = {"server_command": shlex.join(launch.command), "version": install.version, "tcmalloc": bool(install.tcmalloc)}
        facts[launch.name]["shared_cores"] = False
        return launch
    if flags.baseline_url:
        remote = Remote("vllm", flags.baseline_url.rstrip("/"))
        models[remote.name] = _first_model(remote.url)[0]
        facts[remote.name] = {"url": remote.url, "shared_cores": True}
        return remote
    return None


def _resolve_url(flags: Flags) -> Job:
    """A server that runs already."""
    from hetserve.bench.comparison import Remote
    from hetserve.spec.load import this_host

    assert flags.url is not None
    remote = Remote("server", flags.url)
    served, root, longest = _first_model(flags.url)
    name = flags.served_model_name or flags.model or served
    folder = next((Path(one) for one in (flags.tokenizer, flags.model, root) if one and Path(one).is_dir()), None)
    if folder is None:
        raise UsageError(
            f"The vocabulary of the model '{served}' at {flags.url} is not known here.",
            hint="--tokenizer (or --model) with its local folder makes prompts for it",
        )
    workload, arrivals = _workload(flags, folder, flags.max_model_len or longest or sys.maxsize)
    cores = this_host().cores
    experiment = _experiment(flags, workload, arrivals, cores, cores)
    facts = {remote.name: {"model_id": name, "url": remote.url, "shared_cores": True}}
    return Job(experiment, remote, (), {remote.name: name}, folder, command_line(flags, None), facts)


def _workload(flags: Flags, tokenizer: Path, longest: int) -> tuple[Workload, Arrivals]:
    from hetserve.trace import datasets, vocab
    from hetserve.trace.arrivals import Arrivals

    arrivals = Arrivals(
        flags.request_rate, flags.burstiness, flags.ramp_up_strategy or "", flags.ramp_up_start_rps or 0.0, flags.ramp_up_end_rps or 0.0
    )
    return datasets.build(_dataset(flags), arrivals, vocab.load(tokenizer), longest), arrivals


def _dataset(flags: Flags) -> DatasetSpec:
    from hetserve.trace.datasets import DatasetSpec

    data = flags.data_dir or (Path(os.environ["HETSERVE_DATA"]) if os.environ.get("HETSERVE_DATA") else None)
    if data is not None and not data.is_dir():
        raise SpecError(
            f"The data folder {data} does not exist.", hint="--data-dir, or the environment's HETSERVE_DATA, names a folder with public traces"
        )
    random_output = flags.random_output_len or flags.output_len
    return DatasetSpec(
        name=flags.dataset_name or (STANDARD_DATASET if flags.standard else "random"),
        num_prompts=flags.num_prompts if flags.num_prompts is not None else STANDARD_PROMPTS if flags.standard else VLLM_PROMPTS,
        seed=flags.seed,
        path=flags.dataset_path,
        data_dir=data,
        tables_dir=Path(str(resources.files("hetserve.workloads") / "lengths")),
        random_input_len=_first(flags.random_input_len, flags.input_len, 1024),
        random_output_len=_first(random_output, 128),
        random_range_ratio=_first(flags.random_range_ratio, 0.0),
        random_prefix_len=_first(flags.random_prefix_len, 0),
        fixed_output_len=flags.output_len,
        only=flags.only or "",
        most_tokens=flags.max_request_len or 0,
    )


def _experiment(flags: Flags, workload: Workload, arrivals: Arrivals, client_cores: tuple[int, ...], cores: tuple[int, ...]) -> Experiment:
    from hetserve.bench.session import READY_S, Experiment
    from hetserve.metrics import parse_goodput

    return Experiment(
        workload=workload,
        body=_body(flags, workload),
        client_cores=client_cores,
        cores=cores,
        endpoint=flags.endpoint,
        headers=dict(key_value(item, "--header") for item in flags.header),
        max_concurrency=flags.max_concurrency,
        percentiles=numbers(flags.metric_percentiles),
        goodput_ms=parse_goodput(flags.goodput),
        open_loop=bool(arrivals.ramp) or math.isfinite(arrivals.rate_per_s),
        pairs=flags.pairs_each,
        warmups=flags.url is None or flags.num_warmups > 0,
        ready_s=flags.ready_check_timeout_sec or READY_S,
        fresh_prompts=flags.baseline_url is not None,
        most_checked=flags.check,
    )


def _body(flags: Flags, workload: Workload) -> dict[str, Any]:
    """What every request says. Of our own servers token ids are asked for; a stranger's URL gets OpenAI's fields and what flags add."""
    body: dict[str, Any] = {name: value for name in ("temperature", "top_p", "top_k", "min_p") if (value := getattr(flags, name)) is not None}
    if flags.url is None:
        body = {"temperature": 0.0, "return_token_ids": True, **body}
    if flags.ignore_eos if flags.ignore_eos is not None else workload.lengths.prompts is None:
        body["ignore_eos"] = True
    try:
        extra = json.loads(flags.extra_body or "{}")
    except ValueError as error:
        raise UsageError(f"--extra-body is not JSON: {error}.") from error
    if not isinstance(extra, dict):
        raise UsageError("--extra-body must be a JSON object.")
    return body | extra


def _model_folder(name: str, screen: Screen) -> Path:
    """A model's folder; one that `hetserve model make` knows by name is made in the cache folder."""
    if Path(name).is_dir():
        return Path(name).resolve()
    from hetserve.engine.model.make import RECIPES, make_checkpoint

    if name not in RECIPES:
        raise ModelError(
            f"{name!r} is neither a model folder nor a model that can be made here.", hint=f"models that can be made: {', '.join(RECIPES)}"
        )
    target = cache_folder() / "models" / name
    with screen.progress(f"making {name} in {target}"):
        return make_checkpoint(name, target)


def _first_model(url: str) -> tuple[str, str, int | None]:
    """The first model of /v1/models: its id, its root, its window."""
    from hetserve.bench.process import get

    status, said = get(url, "/v1/models")
    try:
        first = json.loads(said)["data"][0]
        return str(first["id"]), str(first.get("root") or ""), first.get("max_model_len")
    except (ValueError, KeyError, IndexError, TypeError):
        what = f"answered with HTTP {status}" if status else "does not answer"
        raise BenchError(
            f"{url}/v1/models {what} and names no model.", hint="is the server running there? the URL has no path: http://127.0.0.1:8000"
        ) from None


def numbers(text: str) -> tuple[float, ...]:
    """The percentiles in `50,99`.

    Raises:
        UsageError: not numbers from 0 to 100.
    """
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(0 <= value <= 100 for value in values):
        raise UsageError(f"--metric-percentiles got '{text}', expected numbers from 0 to 100 with commas: 50,99")
    return values


def key_value(item: str, option: str) -> tuple[str, str]:
    """The two halves of KEY=VALUE.

    Raises:
        UsageError: there is no `=`.
    """
    key, equals, value = item.partition("=")
    if not equals:
        raise UsageError(f"{option} got '{item}', expected KEY=VALUE.")
    return key.strip(), value.strip()


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def command_line(flags: Flags, longest: int | None) -> str:
    """The line that runs exactly this again, defaults written out."""
    data = _dataset(flags)
    words: list[str] = ["hetserve", "bench"]
    shown = {
        "--system": flags.system,
        "--baseline": flags.baseline,
        "--baseline-url": flags.baseline_url,
        "--baseline-args": flags.baseline_args or None,
        "--serve-args": flags.serve_args or None,
        "--base-url": flags.url,
        "--model": flags.model or (None if flags.url else STANDARD_MODEL),
        "--cluster": None if flags.url or flags.plan else flags.cluster,
        "--plan": flags.plan,
        "--dtype": None if flags.url or flags.plan else flags.dtype,
        "--memory-scale": flags.memory_scale,
        "--profile": flags.profile,
        "--kv-memory": None if flags.url or flags.plan or flags.system else (flags.kv_memory or STANDARD_KV_MEMORY).replace(" ", ""),
        "--max-model-len": None if flags.plan else longest,
        "--dataset-name": data.name,
        "--dataset-path": data.path,
        "--class": flags.only,
        "--max-request-len": flags.max_request_len,
        "--random-input-len": data.random_input_len if data.name == "random" else None,
        "--random-output-len": data.random_output_len if data.name == "random" else None,
        "--random-range-ratio": data.random_range_ratio or None,
        "--random-prefix-len": data.random_prefix_len or None,
        "--output-len": None if data.name == "random" else data.fixed_output_len,
        "--num-prompts": data.num_prompts,
        "--seed": data.seed,
        "--request-rate": None if flags.ramp_up_strategy else f"{flags.request_rate:g}",
        "--burstiness": None if math.isinf(flags.request_rate) else f"{flags.burstiness:g}",
        "--max-concurrency": flags.max_concurrency,
        "--ramp-up-strategy": flags.ramp_up_strategy,
        "--ramp-up-start-rps": flags.ramp_up_start_rps,
        "--ramp-up-end-rps": flags.ramp_up_end_rps,
        "--temperature": flags.temperature,
        "--top-p": flags.top_p,
        "--top-k": flags.top_k,
        "--min-p": flags.min_p,
        "--extra-body": flags.extra_body,
        "--timeline": flags.timeline,
        "--pairs": flags.pairs_each if flags.baseline or flags.baseline_url else None,
    }
    for name, value in shown.items():
        if value is not None:
            words += [name, str(value)]
    words += ["--goodput", *flags.goodput] if flags.goodput else []
    return shlex.join(words)
