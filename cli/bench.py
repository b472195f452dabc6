"""`hetserve bench`: this engine, a running server, or this engine beside the real vLLM, under one load. Flags and defaults of `vllm bench serve`.

Parses, resolves what was left open, makes one call, renders. Without flags about the workload it runs what `make bench` runs.
"""

from __future__ import annotations

import math
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import hetserve
from hetserve.errors import BenchError, HetserveError

from .bench_setup import (
    ONE_DEVICE,
    PAIRS,
    PAIRS_OF_MANY,
    STANDARD_CLUSTER,
    STANDARD_DATASET,
    STANDARD_KV_MEMORY,
    STANDARD_MODEL,
    STANDARD_PROMPTS,
    VLLM_PROMPTS,
    Flags,
    Job,
    key_value,
    numbers,
    resolve,
)
from .console import Screen

if TYPE_CHECKING:
    from hetserve.bench.comparison import Measured
    from hetserve.bench.watch import Page, See

INTERRUPTED = "interrupted"  # what was measured until then is a result all the same
MANY_VALUES = ("--goodput", "--slo", "--header", "--metadata")  # `--goodput ttft:200 tpot:50`, as vLLM's command line takes it


class BenchCommand(click.Command):
    """Lets an option of MANY_VALUES be followed by several values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in MANY_VALUES else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


_file = click.Path(dir_okay=False, path_type=Path)
_folder = click.Path(file_okay=False, path_type=Path)


@click.command(cls=BenchCommand)
@click.option("--baseline", help="What to compare with, pair by pair, with commas: vllm (`hetserve baseline install vllm`), or see below.")
@click.option(
    "--system", help="Which of this engine's systems to measure, planned for --cluster and its budgets  [default: hetis; uniform on one device]"
)
@click.option(
    "--profile",
    type=_file,
    help="What `hetserve profile` measured of the cluster; every system is planned with it. none: planned by what such devices usually do  "
    "[default: measured first, kept beside the results]",
)
@click.option("--memory-scale", help="Multiply the cluster's memory budgets, with commas for a curve: 1,2,4  [default: 1]")
@click.option("--baseline-url", help="A running server as the other side; marked shared_cores, as it cannot be frozen.")
@click.option("--baseline-dir", type=_folder, help="Where baselines are kept  [default: the cache folder]")
@click.option("--baseline-args", default="", help="More arguments for `vllm serve`, as one string.")
@click.option("--serve-args", default="", help="More arguments for `hetserve serve`, as one string.")
@click.option("--base-url", help="Measure a running server at this URL, and nothing else.")
@click.option("--host", help="Measure a running server on this host  [default with --port: 127.0.0.1]")
@click.option("--port", type=int, help="Measure a running server on this port  [default with --host: 8000]")
@click.option("--model", help=f"A Hugging Face model folder, or a name `hetserve model make` knows  [default: {STANDARD_MODEL}]")
@click.option("--served-model-name", help="The model's name in requests  [default: the folder's; with a URL: what /v1/models says]")
@click.option("--tokenizer", help="A folder with tokenizer.json  [default: the model's]")
@click.option(
    "--cluster",
    help="A file in workloads/clusters, by name or path: which cores, and which budgets  "
    f"[default: {STANDARD_CLUSTER}; {ONE_DEVICE} on a single core, with --kv-memory and with --baseline-url]",
)
@click.option("--plan", type=_file, help="A plan file for hetserve  [default: one is made]")
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True, help="auto: the checkpoint's.")
@click.option(
    "--kv-memory", help=f"Memory for each system's KV cache, on one device  [default: {STANDARD_KV_MEMORY}; on several: what their budgets leave]"
)
@click.option("--max-model-len", type=int, help="Prompt and answer together, tokens  [default: the model's, or what the KV memory holds]")
@click.option(
    "--dataset-name",
    help=f"random, azure-conv, sharegpt, humaneval, longbench, ... or custom  [default: {STANDARD_DATASET}; with other dataset flags: random]",
)
@click.option("--dataset-path", type=_file, help="The dataset's file (CSV or JSON Lines, gzipped or not).")
@click.option("--class", "only", help="Of a trace, only requests of this class: HPHD, HPLD, LPHD or LPLD (prompt above 512, answer above 128).")
@click.option("--max-request-len", type=click.IntRange(2), help="Of a trace, only requests of at most so many tokens, prompt and answer together.")
@click.option("--data-dir", type=_folder, help="A folder with public traces  [default: $HETSERVE_DATA; without: the committed length tables]")
@click.option("--num-prompts", type=int, help=f"[default: {STANDARD_PROMPTS}; with dataset flags or a URL: {VLLM_PROMPTS}, as vLLM]")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same requests.")
@click.option("--input-len", type=int, help="The same as --random-input-len.")
@click.option("--output-len", "--sharegpt-output-len", "--custom-output-len", type=int, help="One output length for every request of any dataset.")
@click.option("--random-input-len", type=int, help="[default: 1024]")
@click.option("--random-output-len", type=int, help="[default: 128]")
@click.option("--random-range-ratio", type=float, help="Lengths vary by this share of themselves  [default: 0]")
@click.option("--random-prefix-len", type=int, help="Tokens all prompts begin with, beside --random-input-len  [default: 0]")
@click.option("--request-rate", type=float, default=math.inf, show_default=True, help="Arrivals per second; inf: all at once.")
@click.option("--burstiness", type=float, default=1.0, show_default=True, help="Gamma shape of the gaps; 1: Poisson, below: burstier.")
@click.option("--max-concurrency", type=click.IntRange(1), help="Requests under way at once; waiting for it is counted.")
@click.option("--ramp-up-strategy", type=click.Choice(["linear", "exponential"]), help="Instead of --request-rate.")
@click.option("--ramp-up-start-rps", type=float)
@click.option("--ramp-up-end-rps", type=float)
@click.option("--num-warmups", type=click.IntRange(0), default=0, help="With a URL: above 0, an unmeasured run comes first (without, always).")
@click.option("--ready-check-timeout-sec", type=float, help="How long a server may take to start  [default: 600]")
@click.option("--percentile-metrics", default="ttft,tpot,itl,e2el", show_default=True, help="Which latencies the table shows.")
@click.option("--metric-percentiles", default="99", show_default=True, help="Which percentiles, with commas.")
@click.option("--goodput", multiple=True, help="KEY:MS ..., of ttft, tpot, e2el: a request within all limits is good.")
@click.option("--ignore-eos/--no-ignore-eos", default=None, help="Go on to the output length  [default: yes, but for custom]")
@click.option("--temperature", type=float, help="[default: 0, so that outputs can be compared; with a URL: the server's]")
@click.option("--top-p", type=float)
@click.option("--top-k", type=int)
@click.option("--min-p", type=float)
@click.option("--extra-body", help="JSON object: further fields of every request.")
@click.option("--header", multiple=True, help="KEY=VALUE ..., further HTTP headers.")
@click.option("--backend", type=click.Choice(["openai", "vllm"]), default="openai", show_default=True, help="Both: OpenAI's completions.")
@click.option("--endpoint", default="/v1/completions", show_default=True)
@click.option(
    "--pairs",
    type=click.IntRange(1),
    help=f"Pairs of runs with each baseline  [default: {PAIRS}, which an interval needs; with several: {PAIRS_OF_MANY}]",
)
@click.option("--check", type=click.IntRange(0), default=16, show_default=True, help="Texts on which outputs part to judge by transformers; 0: all.")
@click.option(
    "--timeline", type=_file, help="A Chrome trace of this engine's run, slower than without; on several devices FILE-NAME for each system."
)
@click.option("--live", is_flag=True, help="Show placement, cache and load of each device while runs last (on a terminal).")
@click.option("--result-dir", type=_folder, help="[default: results/bench/YYYYMMDD]")
@click.option("--save-result", is_flag=True, help="Also write vLLM's flat JSON, one file a system, under vLLM's file name.")
@click.option("--result-filename", help="With --save-result: that file's name.")
@click.option("--save-detailed", is_flag=True, help="Every request's times and texts in the results too.")
@click.option("--label", help="Begins the flat file's name  [default: the backend]")
@click.option("--metadata", multiple=True, help="KEY=VALUE ..., kept in the flat file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def bench(**given: Any) -> None:
    """Measure this engine; with --baseline vllm, the real vLLM beside it on the same requests, budgets and dtype.

    Nothing given: the standard run, llama-250m made on the spot, azure-conv lengths, all requests at once, on two unlike devices. --cluster cpu
    takes the machine as one device: this engine's uniform plan, and a vLLM, on all cores.

    On a cluster of several devices, with --system, or with several baselines, systems are planned for the cluster's budgets and compared in one
    table. Baselines are then this engine's systems (results call them NAME-policy), vllm (on the cluster's first device, within its budget),
    vllm-replicas (on every device it fits, requests dealt by measured speed) and vllm-all (all cores, uncapped: other hardware, for scale;
    one pair of it comes with vllm). A name may carry options of its planner: `hetis heads=paper theta=0.25`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are stopped on the way out
    from .bench_table import known_latencies, render, render_many

    flags = Flags(**given)
    screen = Screen(flags.as_json)
    with _log_folder() as logs:
        results = _run(flags, screen, logs)
    if len(results) > 1 or _is_many(results[0]):
        render_many(results, screen)
    else:
        render(results[0], known_latencies(flags.percentile_metrics), numbers(flags.metric_percentiles), screen)
    screen.json(results[0] if len(results) == 1 else {"scales": results})
    wrong = sum(one.get("wrong", 0) for result in results for one in result["agreement"].values())
    if wrong:
        raise BenchError(f"{wrong} outputs are wrong: they differ where the reference sees no tie.", hint="the result's `agreement` has each of them")


def _is_many(result: dict[str, Any]) -> bool:
    """Whether a result is of several systems planned here; of one alone, or beside one vLLM, people see every metric."""
    return "memory_scale" in result["protocol"] and (len(result["systems"]) > 1 or bool(result["missing"]))


@contextmanager
def _log_folder() -> Iterator[Path]:
    """A folder for the servers' logs, kept only for an error that names one of them."""
    logs, named = Path(tempfile.mkdtemp(prefix="hetserve-bench-")), False
    try:
        yield logs
    except HetserveError as error:
        named = str(logs) in error.message
        raise
    finally:
        if not named:
            shutil.rmtree(logs)


def _run(flags: Flags, screen: Screen, logs: Path) -> list[dict[str, Any]]:
    """A result for each job, each saved as soon as it is there."""
    from .bench_table import known_latencies

    known_latencies(flags.percentile_metrics)
    jobs = resolve(flags, screen, logs)
    if flags.live:
        jobs = [replace(job, experiment=replace(job.experiment, see=_shown_on(screen))) for job in jobs]
    screen.note(jobs[0].command)
    results = []
    for number, job in enumerate(jobs, 1):
        if len(jobs) > 1:
            screen.note(f"memory budgets times {job.conditions['memory_scale']:g} ({number} of {len(jobs)})")
        results.append(_measure(flags, job, screen))
        _save(results[-1], flags, screen)
        if INTERRUPTED in results[-1]["missing"].values():
            break
    return results


def _shown_on(screen: Screen) -> See:
    """Draws what is being measured under the progress bar."""
    from .live import View, of_pages

    view = View()

    def see(name: str, pages: Sequence[Page]) -> None:
        screen.below = view.table(name, of_pages(pages))

    return see


def _measure(flags: Flags, job: Job, screen: Screen) -> dict[str, Any]:
    """All runs of one job, then its outputs against each other's."""
    from hetserve import machine
    from hetserve.bench import result, session

    missing = job.missing or {}
    measured: list[Measured] = []
    agreement = {}
    for number, other in enumerate(job.others):
        try:
            experiment = replace(job.experiment, pairs=1) if other.name in job.once else job.experiment
            runs = session.run_both(experiment, job.ours, other, job.models, screen.progress)
            measured += runs
            found, by = session.compare_outputs(job.experiment, runs, job.model, screen.progress)
        except HetserveError as error:
            if job.missing is None:
                raise
            missing[other.name] = error.message
            screen.note(f"left out: {other.name}: {error.message}")
            continue
        except KeyboardInterrupt:
            if not measured:
                raise
            missing |= dict.fromkeys((one.name for one in job.others[number:]), INTERRUPTED)
            break
        agreement[other.name] = result.agreement_result(found, by)
    if not measured:
        measured = session.run_one(job.experiment, job.ours, job.models[job.ours.name], screen.progress)
    ran = {name: runs for name in job.models if (runs := [one for one in measured if one.system == name])}
    whole = result.build(
        systems={name: _system(flags, job, name, runs) for name, runs in ran.items()},
        agreement=agreement,
        inputs=job.experiment.workload.lengths.inputs,
        machine=machine.describe(),
        command=job.command,
        protocol=session.protocol(job.experiment, bool(agreement)) | job.conditions,
        ours=job.ours.name,
        missing=missing,
    )
    cleaned: dict[str, Any] = result.without_local_paths(whole, Path.home(), Path(hetserve.__file__).resolve().parents[1])
    return cleaned


def _system(flags: Flags, job: Job, name: str, runs: list[Measured]) -> dict[str, Any]:
    from hetserve.bench import result

    workload = job.experiment.workload
    config = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": flags.backend,
        "backend": flags.backend,
        "label": flags.label,
        "tokenizer_id": flags.tokenizer or str(workload.vocabulary.folder),
        **result.traffic(len(workload.arrivals_s), flags.request_rate, flags.burstiness, flags.max_concurrency),
        **job.facts[name],
    }
    return result.system_result(runs, config, flags.save_detailed)


def _save(whole: dict[str, Any], flags: Flags, screen: Screen) -> None:
    from hetserve.bench import result

    now = datetime.now()
    path = result.save(whole, flags.result_folder, f"{whole['machine']['name']}-{now:%H%M%S}.json")
    screen.note(f"result: {path}")
    if not flags.save_result:
        return
    metadata = dict(key_value(item, "--metadata") for item in flags.metadata)
    for name, system in whole["systems"].items():
        label = flags.label or (name if len(whole["systems"]) > 1 else flags.backend)
        file_name = flags.result_filename or result.vllm_file_name(label, system, system["model_id"], now)
        screen.note(f"result in vLLM's form: {result.save(result.vllm_flat(system, metadata), flags.result_folder, file_name)}")
