"""Tokenizers: text in pieces equals text at once, chat templates as transformers renders them, hostile templates stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from hetserve.engine.chat import ChatTemplate
from hetserve.engine.model.make import make_checkpoint
from hetserve.engine.tokenizer import Tokenizer, load_tokenizer
from hetserve.errors import ModelError, UnsupportedError, UsageError

TEXTS = ["the quick brown fox\n", "naïve café 漢字かな", "🙂👩‍👩‍👧🏳️‍🌈 x", " leading", "", "a" * 200, "\x00\x7f\u2028", "e\u0301 and \u00e9"]
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé <b> 'quoted'"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Iterator[Tokenizer]:
    loaded = load_tokenizer(folder)
    assert loaded is not None
    yield loaded
    loaded.close()


def sentencepiece_like() -> Tokenizer:
    """Llama 2's kind: ▁ for spaces, bytes as <0x..> tokens, the first space of a text stripped."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyzé漢", "▁t", "▁th", "he", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("h", "e"), ("▁t", "he")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend, {}, None)


@pytest.mark.parametrize("text", TEXTS)
def test_encoding_is_that_of_transformers(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(folder)
    for special in (True, False):
        assert tokenizer.encode(text, special) == reference.encode(text, add_special_tokens=special)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 4200), max_size=40), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5), skip=st.booleans())
def test_any_bytes_in_pieces_are_the_same_text(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool) -> None:
    stream, text, at, i = tokenizer.stream([1], skip), "", 0, 0
    while at < len(ids):
        text += stream.add(ids[at : at + cuts[i % len(cuts)]])
        at += cuts[i % len(cuts)]
        i += 1
        assert tokenizer.decode(ids, skip).startswith(text)  # what is given out never changes
    assert text + stream.finish() == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("text", TEXTS)
def test_other_tokenizers_in_pieces_are_the_same_text(text: str) -> None:
    tokenizer = sentencepiece_like()
    prompt, ids = tokenizer.encode("the start"), tokenizer.encode("the start " + text)
    stream = tokenizer.stream(prompt)
    answer = ids[len(prompt) :]
    pieces = [stream.add([token]) for token in answer] + [stream.finish()]
    assert tokenizer.decode(prompt) + "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_broken_bytes_of_other_tokenizers_are_not_kept_back_for_ever() -> None:
    stream = sentencepiece_like().stream([])
    assert "".join(stream.add([1 + 0xFF]) for _ in range(100))


def test_a_multi_byte_character_comes_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False)
    assert len(ids) == 4
    stream = tokenizer.stream([])
    assert [stream.add([token]) for token in ids] == ["", "", "", "🙂"]


def test_half_surrogates_do_not_fail(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b", add_special_tokens=False)) == "a\ufffdb"


def test_chat_is_rendered_as_transformers_does(folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render_chat(MESSAGES) == expected
    assert tokenizer.encode(expected, add_special_tokens=False)[:2] == [1, 3]  # special tokens written as text are recognised


def test_template_features_real_models_use() -> None:
    source = (
        "{%- for m in messages -%}\n    {%- if loop.index > 5 %}{% break %}{% endif -%}\n{{ m | tojson }}{% generation %}{{ m.content|trim }}"
        "{% endgeneration %}{%- endfor -%}{{ eos_token }}{% if tools %}no{% endif %}{{ strftime_now('%Y')|length }}"
    )
    template = ChatTemplate(source, {"eos_token": "</s>"})
    assert template.render([{"role": "user", "content": " é "}]) == '{"role": "user", "content": " é "}é</s>4'
    template.close()


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 99999999999 }}",
        "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}{% set x = messages.append(1) %}",
        "{% if %}",
        "{{ nothing.at.all }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_hostile_and_faulty_templates_end_in_time_and_do_not_last(source: str) -> None:
    template = ChatTemplate(source, {}, limit_s=1.0)
    for _ in range(2):
        begin_s = time.monotonic()
        with pytest.raises(ModelError) as caught:
            template.render(MESSAGES)
        assert "root:" not in caught.value.message and time.monotonic() - begin_s < 10
    template.close()


def test_a_template_that_hung_once_serves_the_next_conversation() -> None:
    source = "{% if messages[0].content == 'hang' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}fine"
    template = ChatTemplate(source, {}, limit_s=0.5)
    with pytest.raises(ModelError):
        template.render([{"role": "user", "content": "hang"}])
    assert template.render([{"role": "user", "content": "x"}]) == "fine"
    template.close()


def test_a_template_may_refuse_a_conversation() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(UsageError, match="roles must alternate"):
        template.render(MESSAGES)
    template.close()


def test_no_template_and_no_tokenizer(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert load_tokenizer(tmp_path) is None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    with pytest.raises(UsageError, match="no chat template"):
        loaded.render_chat(MESSAGES)


def test_damaged_and_code_carrying_tokenizers_are_refused(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_tokenizer(tmp_path)
    evil = {**config, "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(evil))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises((ModelError, UnsupportedError)):
        load_tokenizer(tmp_path)
