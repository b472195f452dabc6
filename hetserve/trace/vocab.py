"""A model folder's vocabulary as a benchmark needs it: which token ids are ordinary ones, and a text's token ids.

Reads tokenizer.json and config.json only; no model code, nothing from the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetserve.errors import ModelError

SPECIAL_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True)
class Vocabulary:
    """What prompts may be made of.

    Attributes:
        ordinary: [n] int64 ids in ascending order: below the model's vocabulary, none special, none added.
        folder: where the tokenizer is.
    """

    ordinary: NDArray[np.int64]
    folder: Path

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, with the special tokens this tokenizer puts around a prompt.

        Raises:
            ModelError: the folder has no tokenizer.json.
        """
        tokenizer = _tokenizer(self.folder)
        if tokenizer is None:
            raise ModelError(f"{self.folder} has no tokenizer.json, so text prompts cannot be turned into tokens.", hint="give prompts as token ids")
        return [encoded.ids for encoded in tokenizer.encode_batch(list(texts))]


def load(folder: Path) -> Vocabulary:
    """The vocabulary of a model (or tokenizer) folder.

    Raises:
        ModelError: neither config.json nor tokenizer.json says how large the vocabulary is.
    """
    config = _json(folder / "config.json")
    tokenizer = _tokenizer(folder)
    special = {token for key in SPECIAL_KEYS for token in _as_ids(config.get(key))}
    sizes = [int(config["vocab_size"])] if isinstance(config.get("vocab_size"), int) else []
    if tokenizer is not None:
        sizes.append(tokenizer.get_vocab_size(with_added_tokens=True))
        special |= set(tokenizer.get_added_tokens_decoder())
    if not sizes:
        raise ModelError(f"{folder} has no config.json with a vocab_size and no tokenizer.json.", hint="give --model or --tokenizer a model folder")
    ids = np.arange(min(sizes), dtype=np.int64)
    ordinary = ids[~np.isin(ids, np.array(sorted(special), np.int64))]
    if not len(ordinary):
        raise ModelError(f"{folder} has a vocabulary of special tokens only.")
    return Vocabulary(ordinary, folder)


def _tokenizer(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise ModelError(f"{path} is no tokenizer: {error}.") from error


def _as_ids(value: Any) -> list[int]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except OSError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}.") from error
    return found if isinstance(found, dict) else {}
