"""Made-up checkpoints: whole or absent, the same bytes for the same seed, loaded unchanged by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetserve.engine.model.make import RECIPE_FILE, make_checkpoint
from hetserve.engine.model.recipes import RECIPES
from hetserve.errors import UsageError
from hetserve.spec.model import ModelSpec

TINY = [name for name in RECIPES if name.startswith("tiny")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", TINY)
def test_transformers_finds_every_tensor_and_no_other(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(name, tmp_path / name)
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


@pytest.mark.parametrize("name", TINY)
def test_the_tokenizer_covers_any_text_and_the_whole_vocabulary(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_checkpoint(name, tmp_path / name)
    spec = ModelSpec.from_hf(json.loads((folder / "config.json").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == spec.vocab
    assert (tokenizer.eos_token_id,) == spec.eos_token_ids and tokenizer.bos_token_id == spec.bos_token_id
    for text in ("the quick brown fox", " two  spaces\n\ttab", "naïve 漢字 🙂👩‍👩‍👧 \u0000\x7f", ""):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert (ids[:1] == [spec.bos_token_id]) == RECIPES[name].adds_bos
    assert tokenizer.decode(range(spec.vocab - 1, 4, -1))  # every id decodes
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    first, again, other = (make_checkpoint("tiny", tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert contents(first) == contents(again)
    assert contents(first)["model.safetensors"] != contents(other)["model.safetensors"]


def test_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    whole = load_file(make_checkpoint("tiny", tmp_path / "whole") / "model.safetensors")
    folder = make_checkpoint("tiny", tmp_path / "shards", shard_bytes=2_500_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2 and set(index) == set(whole)
    for file in set(index.values()):
        for name, tensor in load_file(folder / file).items():
            assert index[name] == file and tensor.equal(whole[name])


def test_a_folder_is_kept_refused_or_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint("tiny", tmp_path / "model")
    before = contents(folder)
    assert make_checkpoint("tiny", folder) == folder and contents(folder) == before
    for name, seed in (("tiny", 1), ("tiny-mha", 0)):
        with pytest.raises(UsageError):
            make_checkpoint(name, folder, seed)
    stamp = json.loads((folder / RECIPE_FILE).read_text())
    (folder / RECIPE_FILE).write_text(json.dumps({**stamp, "format": stamp["format"] - 1}))
    (folder / "model.safetensors").write_bytes(b"")
    make_checkpoint("tiny", folder)
    assert contents(folder) == before  # what an earlier version made is made anew
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError):
        make_checkpoint("tiny", tmp_path / "other")
    monkeypatch.setattr("hetserve.engine.model.make.save_file", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_checkpoint("tiny", tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make_checkpoint("gpt-5", tmp_path / "x")
    assert "llama-250m" in caught.value.hint
