"""Stop strings: however the text is cut into pieces, the result is the whole text's, and nothing given out would have to be taken back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hetserve.engine.server.stops import StopFinder

SMALL = st.text("ab\n", max_size=40)  # two letters: overlaps, borders and near misses are the rule
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=6), min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(where it ends, the stop string) by looking at every prefix: the obvious definition."""
    for end in range(1, len(text) + 1):
        endings = [stop for stop in stops if text[:end].endswith(stop)]
        if endings:
            return end, max(endings, key=len)
    return None


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    found = first_stop(text, stops)
    if found is None:
        return text, None
    end, stop = found
    return text[: end if include else end - len(stop)], stop


def cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@given(SMALL, STOPS, st.lists(st.integers(0, 1000), max_size=12), st.booleans())
def test_any_cutting_gives_what_the_whole_text_gives(text, stops, cuts, include):
    finder = StopFinder(stops, include)
    given_out, found = "", None
    for piece in cut(text, cuts):
        now, found = finder.push(piece)
        given_out += now
        if found:
            break
    if found is None:
        given_out += finder.flush()
    assert (given_out, found) == expected(text, stops, include)


@given(SMALL, STOPS)
def test_only_what_could_become_a_stop_is_held_back(text, stops):
    if first_stop(text, stops):
        return
    given_out, _ = StopFinder(stops).push(text)
    held = text[len(given_out) :]
    assert text.startswith(given_out)
    longest = max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
    assert len(held) == longest


@given(SMALL, SMALL, STOPS)
def test_skipped_text_is_given_out_and_never_part_of_a_stop(skipped, text, stops):
    finder = StopFinder(stops)
    assert finder.skip(skipped) == skipped
    now, found = finder.push(text)
    assert (now if found else now + finder.flush(), found) == expected(text, stops, False)


def test_long_hostile_text_is_searched_in_linear_time():
    finder = StopFinder(["a" * 255 + "b"] * 16)
    given_out = "".join(finder.push("a" * 100)[0] for _ in range(50))
    assert len(given_out) == 5000 - 255
