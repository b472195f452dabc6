"""A byte-level BPE tokenizer written down, not trained: the same bytes everywhere, in well under a second, covering any text.

Its merges spell short lower-case letter runs, with and without a space before them, most frequent English letters first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIALS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by frequency in English
SPACE = "Ġ"  # how byte-level BPE spells the byte 0x20
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer(folder: Path, vocab: int, max_positions: int, adds_bos: bool) -> None:
    """Writes tokenizer.json and tokenizer_config.json with exactly `vocab` tokens (at least 261: every byte and the special ones)."""
    tokenizer = _tokenizer(vocab, adds_bos)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<pad>",  # never produced; named because some tokenizer classes otherwise add one of their own
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE (GPT-2's) writes for each byte 0..255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]


def _merges(wanted: int) -> list[tuple[str, str]]:
    """Letter pairs, space + letter, space + pair, letter triples, space + triple: each from pieces that exist, frequent letters first."""
    order = sorted((i + j, i, j) for i in range(26) for j in range(26))
    pairs = [(LETTERS[i], LETTERS[j]) for _, i, j in order]
    triples = [(a + b, c) for a, b in pairs for c in LETTERS]
    merges = [*pairs, *((SPACE, c) for c in LETTERS), *((SPACE, a + b) for a, b in pairs)]
    for first, last in triples:
        merges += [(first, last), (SPACE, first + last)]
    if len(merges) < wanted:
        raise ValueError(f"{wanted} merges asked for, {len(merges)} exist")
    return merges[:wanted]


def _tokenizer(vocab: int, adds_bos: bool) -> dict[str, Any]:
    merges = _merges(vocab - len(SPECIALS) - 256)
    tokens = [*SPECIALS, *byte_characters(), *(a + b for a, b in merges)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, token) for i, token in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": _post_processor() if adds_bos else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [[a, b] for a, b in merges],
        },
    }


def _added(i: int, token: str) -> dict[str, Any]:
    return {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _post_processor() -> dict[str, Any]:
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
