"""Request lists: seeded, uniform, complete or counted. Ordinary tokens only, and the same list whoever asks."""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve.errors import BenchError, ModelError, SpecError, UsageError
from hetserve.trace import datasets, vocab
from hetserve.trace.arrivals import Arrivals
from hetserve.trace.datasets import DatasetSpec, Workload
from hetserve.trace.requests import Lengths, keep_fitting
from hetserve.trace.vocab import Vocabulary

VOCABULARY = Vocabulary(np.arange(5, 100), Path("."))
TABLES = Path(str(resources.files("hetserve.workloads") / "lengths"))


def made(spec: DatasetSpec, longest: int = 100_000, vocabulary: Vocabulary = VOCABULARY) -> Workload:
    return datasets.build(spec, Arrivals(), vocabulary, longest)


@given(st.integers(1, 400), st.integers(1, 60), st.floats(0, 0.95), st.integers(0, 20), st.integers(1, 50))
def test_random_lengths_stay_in_the_range_and_prompts_have_them(length: int, output: int, ratio: float, prefix: int, count: int) -> None:
    if prefix + int(length * (1 - ratio)) < 1:
        return
    spec = DatasetSpec("random", count, random_input_len=length, random_output_len=output, random_range_ratio=ratio, random_prefix_len=prefix)
    requests = made(spec).requests()
    assert len(requests) == count
    for request in requests:
        own = len(request.prompt) - prefix
        assert np.floor(length * (1 - ratio)) <= own <= np.ceil(length * (1 + ratio))
        assert max(1, np.floor(output * (1 - ratio))) <= request.output_tokens <= np.ceil(output * (1 + ratio))
        assert set(request.prompt) <= set(VOCABULARY.ordinary.tolist())
    assert len({request.prompt[:prefix] for request in requests}) == 1


def test_without_a_range_lengths_are_exact_and_with_one_both_ends_occur() -> None:
    exact = made(DatasetSpec("random", 50, random_input_len=7, random_output_len=3))
    assert set(exact.lengths.input_tokens) == {7} and set(exact.lengths.output_tokens) == {3}
    loose = made(DatasetSpec("random", 500, random_input_len=4, random_output_len=2, random_range_ratio=0.5))
    assert set(loose.lengths.input_tokens) == {2, 3, 4, 5, 6} and set(loose.lengths.output_tokens) == {1, 2, 3}


def test_the_seed_decides_and_draws_differ_only_in_tokens() -> None:
    spec = DatasetSpec("azure-conv", 30, seed=3, tables_dir=TABLES)
    one, same, other = made(spec), made(spec), made(DatasetSpec("azure-conv", 30, seed=4, tables_dir=TABLES))
    assert one.requests() == same.requests()
    assert one.lengths.input_tokens != other.lengths.input_tokens
    first, second = one.requests(1), one.requests(2)
    assert [(len(a.prompt), a.output_tokens, a.arrival_s) for a in first] == [(len(a.prompt), a.output_tokens, a.arrival_s) for a in second]
    assert all(a.prompt != b.prompt for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", datasets.TRACES)
def test_without_a_file_the_committed_table_is_used_and_named(name: str) -> None:
    workload = made(DatasetSpec(name, 40, tables_dir=TABLES))
    inputs = workload.lengths.inputs
    assert (inputs["input"], inputs["table"], inputs["n"], inputs["dropped"]) == ("table", name, 40, 0)
    assert inputs["licence"] and inputs["source"] and len(inputs["sha256"]) == 64
    assert len(workload.requests()) == 40


def azure_file(folder: Path, rows: list[tuple[int, int]], zipped: bool = True) -> Path:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(f"2023-11-16 18:15:46.6805900,{a},{b}\r\n" for a, b in rows)
    path = folder / ("AzureLLMInferenceTrace_conv.csv" + (".gz" if zipped else ""))
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_rows_of_a_trace_are_drawn_whole_and_without_repetition(tmp_path: Path, zipped: bool) -> None:
    rows = [(10 + index, 1000 - index) for index in range(40)]
    azure_file(tmp_path, rows, zipped)
    workload = made(DatasetSpec("azure-conv", 25, data_dir=tmp_path, tables_dir=TABLES))
    drawn = list(zip(workload.lengths.input_tokens, workload.lengths.output_tokens, strict=True))
    assert len(set(drawn)) == 25 and set(drawn) <= set(rows)
    assert workload.lengths.inputs["input"] == "file" and workload.lengths.inputs["rows"] == 40
    twice = made(DatasetSpec("azure-conv", 100, data_dir=tmp_path))
    counts = [list(zip(twice.lengths.input_tokens, twice.lengths.output_tokens, strict=True)).count(row) for row in rows]
    assert set(counts) == {2, 3}  # more than there are: each equally often, to within one


def test_a_sample_is_uniform_over_the_rows(tmp_path: Path) -> None:
    rows = [(10 + index, 5) for index in range(20)]
    path = azure_file(tmp_path, rows)
    seen = [made(DatasetSpec("azure-conv", 5, seed=seed, path=path)).lengths.input_tokens for seed in range(400)]
    counts = np.bincount(np.concatenate(seen), minlength=30)[10:]
    assert counts.sum() == 2000 and abs(counts - 100).max() < 4.5 * np.sqrt(2000 * 0.05 * 0.95)


def test_what_does_not_fit_is_dropped_and_counted_but_never_many(tmp_path: Path) -> None:
    rows = [(100, 10)] * 99 + [(100, 500)]
    path = azure_file(tmp_path, rows)
    workload = made(DatasetSpec("azure-conv", 100, path=path), longest=110)
    assert (workload.dropped, len(workload.requests()), workload.lengths.inputs["dropped"]) == (1, 99, 1)
    assert all(len(one.prompt) + one.output_tokens <= 110 for one in workload.requests())
    with pytest.raises(BenchError, match="3 of 100"):
        made(DatasetSpec("azure-conv", 100, path=azure_file(tmp_path, [(100, 10)] * 97 + [(100, 500)] * 3)), longest=110)


def test_two_percent_may_be_dropped_and_no_more() -> None:
    lengths = Lengths((10,) * 100, (10,) * 98 + (99,) * 2)
    assert keep_fitting(lengths, 20)[1] == 2
    with pytest.raises(BenchError):
        keep_fitting(Lengths((10,) * 100, (10,) * 97 + (99,) * 3), 20)


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def word_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "one", "two", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 6, "eos_token_id": [2], "bos_token_id": 1, "pad_token_id": 0}))
    return folder


def test_custom_prompts_may_be_texts_or_token_ids(tmp_path: Path) -> None:
    known = vocab.load(word_tokenizer(tmp_path))
    path = write_lines(tmp_path / "mine.jsonl", [{"prompt": "one two one", "output_tokens": 4}, {"prompt_token_ids": [5, 4], "output_len": 2}])
    workload = made(DatasetSpec("custom", 2, path=path), vocabulary=known)
    assert {(one.prompt, one.output_tokens) for one in workload.requests()} == {((3, 4, 3), 4), ((5, 4), 2)}
    assert workload.requests(1) == workload.requests(2)  # prompts are the file's, whatever the draw
    fixed = made(DatasetSpec("custom", 2, path=path, fixed_output_len=9), vocabulary=known)
    assert {one.output_tokens for one in fixed.requests()} == {9}


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "[1]",
        {"output_tokens": 3},
        {"prompt": "", "output_tokens": 3},
        {"prompt": "one"},
        {"prompt": [1, "x"], "output_tokens": 3},
        {"prompt": [1], "output_tokens": 0},
    ],
)
def test_a_bad_custom_line_is_named(tmp_path: Path, row: object) -> None:
    path = write_lines(tmp_path / "bad.jsonl", [{"prompt": [1], "output_tokens": 1}, row])
    with pytest.raises(SpecError, match="line 2"):
        made(DatasetSpec("custom", 2, path=path))


def test_sharegpt_conversations_keep_what_vllm_keeps(tmp_path: Path) -> None:
    known = vocab.load(word_tokenizer(tmp_path))

    def talk(question: int, answer: int) -> dict[str, object]:
        return {"conversations": [{"from": "human", "value": "one " * question}, {"from": "gpt", "value": "two " * answer}]}

    rows = [talk(10, 20), talk(2, 50), talk(50, 2), talk(1025, 10), talk(1000, 1049), talk(1000, 1048), {"conversations": [{"value": "alone"}]}]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(rows))
    workload = made(DatasetSpec("sharegpt", 100, path=path), vocabulary=known)
    assert sorted(zip(workload.lengths.input_tokens, workload.lengths.output_tokens, strict=True)) == [(10, 20), (1000, 1048)]


def test_ordinary_ids_leave_out_special_and_added_ones(tmp_path: Path) -> None:
    assert vocab.load(word_tokenizer(tmp_path)).ordinary.tolist() == [3, 4, 5]
    (tmp_path / "tokenizer.json").unlink()
    bare = vocab.load(tmp_path)
    assert bare.ordinary.tolist() == [3, 4, 5]
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        bare.encode(["one"])
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError):
        vocab.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "sharegpd"},
        {"num_prompts": 0},
        {"path": Path("x")},
        {"random_range_ratio": 1.0},
        {"random_range_ratio": -0.1},
        {"random_input_len": 0},
        {"random_output_len": 0},
        {"fixed_output_len": 0},
    ],
)
def test_senseless_datasets_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        DatasetSpec(**{"name": "random", **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"ContextTokens,GeneratedTokens\n5,x\n", b"ContextTokens,GeneratedTokens\n0,3\n", b"{not json}\n"]
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(SpecError):
        made(DatasetSpec("azure-code", 2, path=path))


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        made(DatasetSpec("azure-code", 2, path=tmp_path / "none.csv"))
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"ContextTokens,GeneratedTokens\n5,6\n")[:-6])
    with pytest.raises(SpecError, match="cannot be read"):
        made(DatasetSpec("azure-code", 2, path=tmp_path / "cut.csv.gz"))


@pytest.mark.parametrize("name", ["HPHD", "HPLD", "LPHD", "LPLD"])
def test_one_class_of_a_trace_from_its_table_and_from_its_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    rng = np.random.default_rng(0)
    rows = [f"2023-11-16 18:15:46.680,{a},{b}" for a, b in zip(rng.integers(1, 2000, 300), rng.integers(1, 300, 300), strict=True)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    for spec in (DatasetSpec("azure-conv", 50, tables_dir=TABLES, only=name), DatasetSpec("azure-conv", 50, path=path, only=name)):
        got = made(spec)
        assert got.lengths.inputs["class"] == name and len(got.lengths.input_tokens) == 50
        assert {length > 512 for length in got.lengths.input_tokens} == {name.startswith("HP")}
        assert {length > 128 for length in got.lengths.output_tokens} == {name.endswith("HD")}


def test_an_unknown_class_or_dataset_without_classes_is_said() -> None:
    with pytest.raises(UsageError, match="class 'HPXD'"):
        DatasetSpec("azure-conv", 5, only="HPXD")
    with pytest.raises(UsageError, match="of random requests"):
        DatasetSpec("random", 5, only="HPHD")


def test_requests_longer_than_asked_for_are_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"2023-11-16 18:15:46.680,{n},10" for n in range(1, 400))]) + "\n")
    for spec in (DatasetSpec("azure-conv", 80, tables_dir=TABLES, most_tokens=300), DatasetSpec("azure-conv", 80, path=path, most_tokens=300)):
        got = made(spec)
        totals = [a + b for a, b in zip(got.lengths.input_tokens, got.lengths.output_tokens, strict=True)]
        assert max(totals) <= 300 and len(totals) == 80 and got.lengths.inputs["most_tokens"] == 300
    with pytest.raises(SpecError, match="hardly any"):
        made(DatasetSpec("azure-conv", 80, tables_dir=TABLES, most_tokens=3))
    with pytest.raises(UsageError, match="of a trace"):
        DatasetSpec("random", 5, most_tokens=300)


def timed_file(folder: Path, stamps: list[str], column: str = "TIMESTAMP") -> Path:
    path = folder / "trace.csv"
    path.write_text(f"{column},ContextTokens,GeneratedTokens\n" + "".join(f"{at},{600 + row},{200 + row}\n" for row, at in enumerate(stamps)))
    return path


AZURE_TIMES = ["2023-11-16 23:59:58.5000000", "2023-11-16 23:59:59.7500000", "2023-11-17 00:00:02.5000001"]


def test_a_trace_is_followed_in_its_order_and_at_its_times(tmp_path: Path) -> None:
    spec = DatasetSpec("azure-conv", 3, path=timed_file(tmp_path, AZURE_TIMES), timed=True)
    workload = made(spec)
    assert workload.lengths.input_tokens == (600, 601, 602)
    assert workload.arrivals_s == pytest.approx((0.0, 1.25, 4.0000001), abs=1e-9) and workload.arrivals_s[2] > 4.0
    assert datasets.arriving(workload, Arrivals(), 0.5).arrivals_s == pytest.approx((0.0, 0.625, 2.0), abs=1e-6)
    assert datasets.arriving(workload, Arrivals(10.0)).arrivals_s == pytest.approx((0.0, 0.3 * 1.25 / 4, 0.3), abs=1e-6)
    assert made(DatasetSpec("azure-conv", 2, path=spec.path, timed=True)).arrivals_s == workload.arrivals_s[:2]
    assert made(DatasetSpec("azure-conv", 3, path=spec.path, timed=True, most_tokens=801)).arrivals_s == (0.0,)


def test_requests_of_one_instant_are_spread_until_the_next(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": at, "input_length": 9, "output_length": 3} for at in (0, 0, 0, 3000, 6000, 6000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert made(DatasetSpec("mooncake-conv", 9, path=path, timed=True)).arrivals_s == pytest.approx((0, 1, 2, 3, 6, 7.5))


def test_a_trace_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no times of their own"):
        DatasetSpec("random", timed=True)
    with pytest.raises(SpecError, match="is not here"):
        made(DatasetSpec("azure-conv", timed=True, tables_dir=TABLES))
    with pytest.raises(SpecError, match="does not say when"):
        made(DatasetSpec("azure-conv", path=timed_file(tmp_path, AZURE_TIMES, "when"), timed=True))
    with pytest.raises(SpecError, match="not in the order"):
        made(DatasetSpec("azure-conv", path=timed_file(tmp_path, AZURE_TIMES[::-1]), timed=True))
    with pytest.raises(SpecError, match="no time"):
        made(DatasetSpec("azure-conv", path=timed_file(tmp_path, ["noon"]), timed=True))
    once = made(DatasetSpec("azure-conv", path=timed_file(tmp_path, AZURE_TIMES[:1]), timed=True))
    for arrivals, said in ((Arrivals(1.0), "all at once"), (Arrivals(burstiness=0.5), "neither a ramp nor --burstiness")):
        with pytest.raises(UsageError, match=said):
            datasets.arriving(once, arrivals)


def test_other_rates_keep_the_pattern_of_arrivals() -> None:
    workload = made(DatasetSpec("random", 50))
    slow, fast = (datasets.arriving(workload, Arrivals(rate)) for rate in (1.0, 4.0))
    assert np.asarray(slow.arrivals_s) == pytest.approx(4 * np.asarray(fast.arrivals_s)) and slow.lengths == workload.lengths
    assert slow.arrivals_s == datasets.build(DatasetSpec("random", 50), Arrivals(1.0), VOCABULARY, 100_000).arrivals_s


def test_a_trace_without_a_table_needs_its_file() -> None:
    with pytest.raises(SpecError, match="no length table for mooncake-conv"):
        made(DatasetSpec("mooncake-conv", tables_dir=TABLES.parent))


def test_longbench_is_its_tasks_and_is_cut_to_the_window() -> None:
    """Three tasks of long prompts: a request has its task's lengths, and as much of them as a model takes."""
    spec = {"num_prompts": 60, "only": "gov_report,qmsum,multi_news", "tables_dir": TABLES}
    whole, cut = (made(DatasetSpec("longbench", **spec, most_input=most)).lengths for most in (0, 3500))
    assert set(whole.input_tokens) == {round(words * 4 / 3) for words in (8734, 10614, 2113)} and set(whole.output_tokens) == {512}
    assert cut.input_tokens == tuple(min(count, 3500) for count in whole.input_tokens) and 0 < cut.inputs["cut"] < 60
    with pytest.raises(SpecError, match="no requests of class govreport"):
        made(DatasetSpec("longbench", only="govreport", tables_dir=TABLES))
    with pytest.raises(UsageError, match="cuts the prompts of a trace"):
        DatasetSpec("random", most_input=9)


def test_prompts_lose_their_middle(tmp_path: Path) -> None:
    lengths = datasets._cut(Lengths((5, 2), (1, 1), ((1, 2, 3, 4, 5), (6, 7))), 3)
    assert (lengths.prompts, lengths.input_tokens) == (((1, 2, 5), (6, 7)), (3, 2))


def test_several_classes_of_a_trace(tmp_path: Path) -> None:
    rows = [(600, 200), (600, 20), (60, 200), (60, 20)] * 9
    spec = {"num_prompts": 18, "path": azure_file(tmp_path, rows, zipped=False), "only": "HPHD,LPLD"}
    workload = made(DatasetSpec("azure-conv", **spec))
    assert set(zip(workload.lengths.input_tokens, workload.lengths.output_tokens, strict=True)) == {(600, 200), (60, 20)}
