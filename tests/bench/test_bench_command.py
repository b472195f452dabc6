"""`hetserve bench` and `hetserve baseline` as a user meets them: defaults, one JSON object, files never overwritten, one-sentence errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hetserve.bench import vllm_install
from hetserve.bench.job import Job, Run
from hetserve.bench.process import free_port
from hetserve.bench.runner import saturated
from hetserve.cli.baseline import baseline
from hetserve.cli.bench import bench
from hetserve.errors import BaselineError, BenchError, HetserveError, ModelError, ResourceError, SpecError, UsageError
from hetserve.metrics import RequestRecord
from hetserve.spec.load import load_cluster, this_host
from hetserve.trace.requests import Request

SCRIPT = Path(__file__).with_name("bench_fake_server.py")
VLLM_KEYS = [
    "date",
    "endpoint_type",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "rtfx",
]
SPREADS = [f"{statistic}_{name}_ms" for statistic in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")]
DETAILS = ["input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts", "errors"]
LENGTHS = ["--dataset-name", "random", "--random-input-len", "20", "--random-output-len", "6", "--num-prompts", "5", "--profile", "none"]
SMALL = ["--cluster", "cpu", *LENGTHS]  # on one device
TWO_CORES = pytest.mark.skipif(len(this_host().cores) < 2 or this_host().isa in ("", "avx2"), reason="needs what the standard cluster needs")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bench, list(arguments))


def ok(*arguments: str) -> Result:
    got = run(*arguments)
    if got.exception is not None:
        raise got.exception
    return got


def error(*arguments: str) -> HetserveError:
    got = run(*arguments)
    assert isinstance(got.exception, HetserveError), (got.output, got.exception)
    return got.exception


def test_both_systems_in_one_json_object(faked: Any, model: Path) -> None:
    got = json.loads(ok("--baseline", "vllm", "--model", str(model), *SMALL, "--pairs", "6", "--json", "--goodput", "ttft:5000", "tpot:5000").stdout)
    assert set(got["systems"]) == {"hetserve", "vllm"}
    for system in got["systems"].values():
        assert set(system) >= {*VLLM_KEYS, *SPREADS, "saturated", "client_cpu_s", "server_cpu_s", "runs"}
        assert (system["completed"], system["failed"], system["num_prompts"], system["request_rate"]) == (5, 0, 5, "inf")
        assert system["request_goodput"] == pytest.approx(system["request_throughput"])
        assert len(system["runs"]) == 6 and system["output_throughput"] == pytest.approx(
            np.median([one["output_throughput"] for one in system["runs"]])
        )
    for name in ("output_throughput", "mean_ttft_ms", "p99_itl_ms"):
        ratio = got["ratios"]["vllm"][name]
        assert ratio["ci95"][0] <= ratio["median"] <= ratio["ci95"][1] and len(ratio["pairs"]) == 6
    assert {key: got["agreement"]["vllm"][key] for key in ("compared", "identical", "near_tie", "wrong", "unchecked")} == {
        "compared": 30, "identical": 30, "near_tie": 0, "wrong": 0, "unchecked": 0}  # fmt: skip
    assert got["machine"]["cores"] >= 1 and "commit" in got and "commit" not in got["machine"]
    assert got["inputs"]["dataset"] == "random" and got["inputs"]["dropped"] == 0
    assert got["command"].startswith("hetserve bench --baseline vllm --model")
    assert (got["protocol"]["pairs"], got["protocol"]["order"]) == (6, "ABBAABBAABBA")
    saved = list(Path("results/bench").glob("*/*.json"))
    assert len(saved) == 1 and json.loads(saved[0].read_text()) == got


def test_the_printed_command_runs_the_same_again(faked: Any, model: Path) -> None:
    import shlex

    first = json.loads(
        ok("--model", str(model), "--seed", "3", "--num-prompts", "4", "--max-model-len", "3000", "--cluster", "cpu-1", "--json").stdout
    )
    assert first["inputs"]["dataset"] == "azure-conv" and first["inputs"]["input"] == "table"  # no dataset named: the standard run's
    again = json.loads(ok(*shlex.split(first["command"])[2:], "--json").stdout)
    assert again["inputs"] == first["inputs"] and again["command"] == first["command"]
    assert faked.setups[0] == faked.setups[1].__class__(**{**vars(faked.setups[1]), "log_dir": faked.setups[0].log_dir})
    assert faked.setups[0].cores == faked.setups[0].cluster.control_cores and len(faked.setups[0].cores) == 1


@TWO_CORES
def test_without_any_flag_it_is_the_standard_run(faked: Any, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr("hetserve.cli.bench_setup._model_folder", lambda name, screen: asked.append(name) or model)
    got = json.loads(ok("--max-model-len", "4096", "--profile", "none", "--json").stdout)
    assert asked == ["llama-250m"]
    words = got["command"].split()
    expected = {
        "--system": "hetis",
        "--model": "llama-250m",
        "--cluster": "cpu-hetero",
        "--dataset-name": "azure-conv",
        "--num-prompts": "8",
        "--request-rate": "inf",
        "--seed": "0",
    }
    assert {flag: words[words.index(flag) + 1] for flag in expected} == expected


@TWO_CORES
def test_the_standard_run_beside_vllm(faked: Any, model: Path) -> None:
    done = ok("--baseline", "vllm", "--model", str(model), *LENGTHS)
    (saved,) = (json.loads(path.read_text()) for path in Path("results/bench").glob("*/*.json"))
    assert list(saved["systems"]) == ["hetis", "vllm", "vllm-all"] and saved["systems"]["hetis"]["cluster"] == "cpu-hetero"
    fast, slow = load_cluster("cpu-hetero").devices
    beside, everywhere = (setup.cluster.devices for setup in faked.setups if len(setup.cluster.devices) == 1)
    assert beside == (fast,) and everywhere[0].cores == (*fast.cores, *slow.cores) and everywhere[0].isa == ""
    assert {name: len(one["output_throughput"]["pairs"]) for name, one in saved["ratios"].items()} == {"vllm": 6, "vllm-all": 1}
    assert "vllm-all (other hardware: for scale)" in done.stdout and "6 adjacent pairs with it (vllm-all: 1)" in done.stdout
    alone = ok("--model", str(model), *LENGTHS, "--goodput", "ttft:5000").stdout
    assert "p99 ITL, ms" in alone and "good requests/s" in alone  # one system: every metric


def test_where_there_is_no_second_core_it_is_one_device(faked: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = replace(this_host(), cores=this_host().cores[:1])
    monkeypatch.setattr("hetserve.spec.load.this_host", lambda: host)
    done = ok("--model", str(model), *LENGTHS, "--json")
    got = json.loads(done.stdout)
    assert list(got["systems"]) == ["hetserve"] and got["systems"]["hetserve"]["cluster"] == "cpu"
    assert "needs at least two cores" in done.stderr and "one device" in done.stderr
    with pytest.raises(ResourceError, match="needs at least two cores"):  # asked for by name, it is no matter of taste
        ok("--model", str(model), *LENGTHS, "--cluster", "cpu-hetero")


def test_flags_for_one_device_take_one(faked: Any, model: Path) -> None:
    got = json.loads(ok("--model", str(model), *LENGTHS, "--kv-memory", "64MiB", "--json").stdout)
    assert got["systems"]["hetserve"]["cluster"] == "cpu" and got["systems"]["hetserve"]["kv_bytes"] == 64 * 2**20
    assert "--cluster cpu " in got["command"]


def test_files_are_never_overwritten_and_vllms_form_is_flat(faked: Any, model: Path) -> None:
    arguments = ["--model", str(model), *SMALL, "--result-dir", "out", "--save-result", "--save-detailed", "--max-concurrency", "2"]
    arguments += ["--metadata", "who=me", "when=now", "--result-filename", "mine.json"]
    for _ in range(2):
        ok(*arguments)
    flat = json.loads(Path("out/mine.json").read_text())
    assert Path("out/mine-2.json").exists()
    assert set(flat) >= {*VLLM_KEYS, *SPREADS, *DETAILS, "mean_client_queue_time_ms"} and (flat["who"], flat["when"]) == ("me", "now")
    assert len(flat["ttfts"]) == 5 and flat["max_concurrency"] == 2
    ok(*arguments[:-2])
    assert list(Path("out").glob(f"openai-infqps-concurrency2-{model.name}-*.json"))


def test_people_get_a_table_with_what_they_must_know(faked: Any, model: Path) -> None:
    said = ok("--baseline", "vllm", "--model", str(model), *SMALL, "--pairs", "1").stdout
    for words in (
        "output tokens/s",
        "mean TTFT, ms",
        "p99 ITL, ms",
        "ratio",
        "too few for an interval",
        "5 identical, 0 near-tie, 0 wrong",
        "commit",
        "seed 0",
    ):
        assert words in said
    assert "vllm: ran without tcmalloc" in said
    assert "hetserve: controller 0.25 ms of CPU time a step of 50.0 ms, 0.50%" in said


def test_wrong_outputs_are_an_error_after_the_result(faked: Any, model: Path) -> None:
    faked.faults = {"hetserve": "short"}
    got = run("--baseline", "vllm", "--model", str(model), *SMALL, "--pairs", "1")
    assert isinstance(got.exception, BenchError) and "5 outputs are wrong" in got.exception.message and got.exception.exit_code == 10
    assert "5 wrong" in got.stdout and list(Path("results/bench").glob("*/*.json"))


def test_logs_are_kept_for_an_error_that_names_them_and_else_removed(faked: Any, model: Path) -> None:
    ok("--model", str(model), *SMALL)
    assert not faked.setups[0].log_dir.exists()
    faked.faults = {"hetserve": "dies"}
    caught = error("--model", str(model), *SMALL)
    assert "exit code" in caught.message and str(faked.setups[1].log_dir) in caught.message
    assert (faked.setups[1].log_dir / "hetserve.log").exists()
    shutil.rmtree(faked.setups[1].log_dir)


def test_failed_requests_are_counted_and_shown(faked: Any, model: Path) -> None:
    faked.faults = {"hetserve": "cut"}
    assert "No request to hetserve completed" in error("--model", str(model), *SMALL).message


@pytest.fixture
def running(tmp_path: Path) -> Any:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(port), "--model", "theirs"], stdout=subprocess.DEVNULL)
    from hetserve.bench.process import get

    url = f"http://127.0.0.1:{port}"
    while get(url, "/health")[0] != 200:
        assert process.poll() is None
    yield url
    import psutil

    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait()


def test_a_running_server_is_measured_by_its_url_alone(running: str, model: Path) -> None:
    got = json.loads(
        ok("--base-url", running, "--tokenizer", str(model), *SMALL[:-2], "--num-prompts", "4", "--request-rate", "200", "--json").stdout
    )
    server = got["systems"]["server"]
    assert (server["completed"], server["model_id"], server["request_rate"], server["server_cpu_s"]) == (4, "theirs", 200.0, None)
    assert got["ratios"] == {} and got["agreement"] == {}
    port = running.rpartition(":")[2]
    assert json.loads(ok("--port", port, "--tokenizer", str(model), *SMALL, "--json").stdout)["systems"]["server"]["completed"] == 5


def test_a_running_baseline_is_marked(running: str, faked: Any, model: Path) -> None:
    got = json.loads(ok("--baseline-url", running, "--model", str(model), *SMALL, "--pairs", "1", "--json").stdout)
    assert got["systems"]["vllm"]["shared_cores"] is True and got["systems"]["vllm"]["url"] == running
    assert got["agreement"]["vllm"]["identical"] == 5


def test_a_plan_settles_cores_memory_and_window(faked: Any, model: Path) -> None:
    from hetserve.cli.plan import plan

    made = CliRunner().invoke(plan, ["--model", str(model), "--cluster", "cpu-1", "--kv-memory", "32MiB", "--max-model-len", "640", "-o", "p.json"])
    assert made.exit_code == 0, made.output
    ok("--plan", "p.json", "--model", str(model), *LENGTHS)
    setup = faked.setups[0]
    assert setup.max_model_len == 640 and setup.cluster.name == "cpu-1" and 30 * 2**20 < setup.kv_bytes <= 32 * 2**20
    assert isinstance(error("--plan", "p.json", "--model", str(model), "--dtype", "float32"), UsageError)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["--model", "no-such-model"], ModelError, "no-such-model"),
        (["--cluster", "cpo", "--model", "MODEL"], SpecError, "cpo"),
        (["--baseline", "vllm", "--baseline-url", "http://x", "--model", "MODEL"], UsageError, "give one"),
        (["--baseline", "vllm", "--base-url", "http://x"], UsageError, "no baseline"),
        (["--base-url", "http://127.0.0.1:9"], BenchError, "does not answer"),
        (["--model", "MODEL", "--dataset-name", "azure"], UsageError, "azure"),
        (["--model", "MODEL", "--goodput", "itl:3"], UsageError, "itl:3"),
        (["--model", "MODEL", "--percentile-metrics", "ttft,tpto"], UsageError, "tpto"),
        (["--model", "MODEL", "--metric-percentiles", "101"], UsageError, "101"),
        (["--model", "MODEL", "--extra-body", "{"], UsageError, "extra-body"),
        (["--model", "MODEL", "--header", "nothing"], UsageError, "KEY=VALUE"),
        (["--model", "MODEL", "--kv-memory", "much"], SpecError, "kv-memory"),
        (["--plan", "p.json", "--cluster", "cpu"], UsageError, "--plan settles --cluster"),
        (["--model", "MODEL", "--data-dir", "nowhere"], SpecError, "nowhere"),
        (["--model", "MODEL", "--dataset-name", "random", "--random-input-len", "9000", "--num-prompts", "3"], BenchError, "3 of 3"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_starts(
    arguments: list[str], kind: type[HetserveError], words: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hetserve.bench.process.Server.__init__", lambda *a: pytest.fail("a server was started"))
    caught = error(*[str(model) if word == "MODEL" else word for word in arguments])
    assert isinstance(caught, kind) and words in caught.message + caught.hint


def test_a_missing_vllm_is_an_error_that_names_the_command(model: Path) -> None:
    for cluster in ([], ["--cluster", "cpu"]):
        caught = error("--baseline", "vllm", "--model", str(model), *cluster)
        assert isinstance(caught, BaselineError) and "hetserve baseline install vllm" in caught.hint


def test_baselines_are_listed_and_removed(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "hetserve baseline install vllm" in runner.invoke(baseline, ["list"]).output
    assert json.loads(runner.invoke(baseline, ["list", "--json", "--baseline-dir", str(tmp_path)]).output) == {"baselines": []}
    assert json.loads(runner.invoke(baseline, ["remove", "vllm", "--json"]).output)["removed"] is False
    assert runner.invoke(baseline, ["install", "sglang"]).exit_code == 2


def run_of(waits_s: list[float]) -> tuple[Job, Run]:
    requests = tuple(Request((1,), 1, 0.1 * index) for index in range(len(waits_s)))
    records = tuple(RequestRecord(True, 1, 1, 0.1 * index, 0.0, (wait_s,), (1,)) for index, wait_s in enumerate(waits_s))
    return Job("u", {}, requests), Run(records, 10.0, 0.1, 0.0)


def test_saturation_is_a_wait_that_grows_with_the_arrivals() -> None:
    rng = np.random.default_rng(0)
    assert saturated(*run_of([0.1 + 0.2 * index for index in range(40)])) is True
    assert saturated(*run_of([0.1 + 0.2 * index + rng.normal(0, 0.5) for index in range(40)])) is True
    steady = [saturated(*run_of(rng.exponential(0.3, 40).tolist())) for _ in range(200)]
    assert sum(one is True for one in steady) <= 2
    assert saturated(*run_of([0.1] * 5)) is None  # too few to tell


GPU_CLUSTER = '[cluster]\nname = "one-gpu"\ncontrol_cores = "all"\n[[device]]\nname = "gpu"\nkind = "cuda"\nmemory = "50%"\n'


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    host = replace(this_host(), gpus=(80 * 2**30,))
    monkeypatch.setattr("hetserve.spec.load.this_host", lambda: host)
    Path("one-gpu.toml").write_text(GPU_CLUSTER)
    return "one-gpu.toml"


def test_on_a_cluster_of_a_gpu_the_vllm_for_gpus_is_compared_with(faked: Any, model: Path, one_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    installed = vllm_install.require
    monkeypatch.setattr(vllm_install, "require", lambda root, device: (asked.append(device), installed(root, device))[1])
    got = json.loads(ok("--baseline", "vllm", "--model", str(model), "--cluster", one_gpu, *LENGTHS, "--pairs", "1", "--json").stdout)
    assert set(got["systems"]) == {"hetserve", "vllm"} and asked == ["cuda"]
    assert [setup.cluster.devices[0].kind for setup in faked.setups] == ["cuda", "cuda"]


def test_without_a_vllm_for_gpus_one_sentence_says_what_to_install(model: Path, one_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_install, "_beside_us", lambda: None)
    found = error("--baseline", "vllm", "--model", str(model), "--cluster", one_gpu, *LENGTHS)
    assert isinstance(found, BaselineError) and found.message.count(".") <= 2 and "cuda build" in found.message
    assert "hetserve baseline install vllm --device cuda" in found.hint
