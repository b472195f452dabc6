"""From tokens to text: grouping tokens into steps changes nothing, stop strings cross token borders, and counts are those of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_fakes import EOS, SPEC, FakeTokenizer

from hetserve.engine.api import Output, TokenLogprobs
from hetserve.engine.server.choice import Choice, Piece
from hetserve.engine.server.fields import CompletionRequest, decode
from hetserve.engine.server.limits import Limits
from hetserve.engine.server.requests import Job, job_of

TOKENS = st.lists(st.one_of(st.integers(97, 99), st.integers(256, 263), st.integers(0xC0, 0xFF)), max_size=24)


def job(fields: str) -> Job:
    return job_of(decode(('{"prompt": "x"' + fields + "}").encode(), CompletionRequest), SPEC, Limits())


def run(choice: Choice, tokens: list[int], sizes: list[int], finish: str | None) -> list[Piece]:
    """Feeds tokens in steps of the given sizes (the rest at once); the last step carries the end."""
    steps = []
    for size in sizes:
        steps.append(tokens[:size])
        tokens = tokens[size:]
    steps.append(tokens)
    pieces = []
    for place, step in enumerate(steps):
        if choice.done:
            break
        logprobs = tuple(TokenLogprobs(token, -1.0, ()) for token in step)
        pieces.append(choice.feed(Output(0, 0, tuple(step), logprobs, finish if place == len(steps) - 1 else None)))
    return pieces


def make(fields: str) -> Choice:
    return Choice(job(fields), FakeTokenizer().stream([]), SPEC.eos_token_ids)


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@given(TOKENS, st.lists(st.integers(0, 3), max_size=12))
def test_grouping_of_tokens_changes_no_text(tokens, sizes):
    whole = FakeTokenizer().decode(tokens)
    for fields in ("", ', "stop": "never"'):
        choice = make(fields)
        pieces = run(choice, tokens, sizes, "length")
        assert text_of(pieces).replace("\ufffd", "") == whole.replace("\ufffd", "")
        assert choice.count == len(tokens) and pieces[-1].finish == "length"


@given(TOKENS, st.lists(st.integers(0, 3), max_size=12), st.sampled_from(["abc", "ba", "c", " the\n", "€😀", "</s>", "a</s"]))
def test_a_stop_string_ends_at_the_token_that_completes_it(tokens, sizes, stop):
    tokenizer = FakeTokenizer()
    choice = make(f', "stop": {stop!r}'.replace("'", '"'))
    pieces = run(choice, tokens, sizes, "length")
    one_by_one = make(f', "stop": {stop!r}'.replace("'", '"'))
    singles = run(one_by_one, tokens, [1] * len(tokens), "length")
    assert (text_of(pieces), choice.count, pieces[-1].finish) == (text_of(singles), one_by_one.count, singles[-1].finish)
    assert sum(len(piece.tokens) for piece in pieces) == choice.count == sum(len(piece.logprobs or ()) for piece in pieces)
    if pieces[-1].finish == "stop":
        before, upto = (tokenizer.decode(tokens[: choice.count - 1]), tokenizer.decode(tokens[: choice.count]))
        assert stop not in before and stop in upto and pieces[-1].stop_reason == stop
        assert stop not in text_of(pieces)
        assert choice.stopped_here or choice.count == len(tokens)
    else:
        assert stop not in tokenizer.decode(tokens).replace("\ufffd", "")


def test_the_engine_is_not_told_of_a_stop_it_ended_with():
    choice = make(', "stop": "b"')
    pieces = run(choice, [97, 98], [1], "length")
    assert pieces[-1].finish == "stop" and choice.done and not choice.stopped_here


def test_a_stop_tokens_text_is_not_shown_but_it_counts():
    choice = make(', "stop_token_ids": [257]')
    pieces = run(choice, [97, 257], [1], "stop")
    assert (text_of(pieces), choice.count, pieces[-1].stop_reason) == ("a", 2, 257)
    shown = make(', "stop_token_ids": [257], "include_stop_str_in_output": true')
    assert text_of(run(shown, [97, 257], [1], "stop")) == "aabc"


def test_the_models_own_end_has_no_stop_reason():
    pieces = run(make(""), [97, EOS], [1], "stop")
    assert (text_of(pieces), pieces[-1].finish, pieces[-1].stop_reason) == ("a", "stop", None)


def test_stop_strings_count_only_after_min_tokens():
    choice = make(', "stop": "b", "min_tokens": 3, "max_tokens": 9')
    pieces = run(choice, [98, 97, 98, 97, 98, 97], [1] * 5, "length")
    assert (text_of(pieces), choice.count) == ("baba", 5)


def test_stop_string_may_be_included():
    choice = make(', "stop": "cab", "include_stop_str_in_output": true')
    assert text_of(run(choice, [97, 99, 256, 97], [1, 1, 1], None)) == "acab"


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_character_cut_off_by_the_end_is_shown_as_such(finish):
    tokens = [97, 261] if finish == "length" else [97, 261, EOS]
    assert text_of(run(make(""), tokens, [1] * len(tokens), finish)) == "a\ufffd"
