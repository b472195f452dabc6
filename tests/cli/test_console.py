"""Screen: results to stdout, talk to stderr, nothing interpreted as markup."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from hetserve.cli import console
from hetserve.cli.console import Screen


def screen(as_json: bool = False, terminal: bool = False) -> tuple[Screen, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    consoles = [Console(file=to, force_terminal=terminal, width=120, no_color=True) for to in (out, err)]
    return Screen(as_json, *consoles), out, err


def test_a_table_in_a_pipe_is_aligned_text() -> None:
    to, out, err = screen()
    to.table("Results [bold]", ["metric", "ours"], [["ttft [red]", 1.5], ["tpot", "12.25"]], right=[1], caption="medians")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines == ["Results [bold]", "metric       ours", "ttft [red]    1.5", "tpot        12.25", "medians"]
    assert err.getvalue() == ""


def test_under_json_only_the_object_reaches_stdout() -> None:
    to, out, err = screen(as_json=True)
    to.table("t", ["a"], [["b"]])
    to.say("hello")
    to.note("working")
    with to.progress("measuring", total=2) as advance:
        advance()
    to.json({"x": 1.5})
    assert json.loads(out.getvalue()) == {"x": 1.5}
    assert "working" in err.getvalue() and "measuring" in err.getvalue()


def test_json_is_printed_only_when_asked_for() -> None:
    to, out, _ = screen()
    to.json({"x": 1})
    assert out.getvalue() == ""


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        screen(as_json=True)[0].json({"x": float("nan")})


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_passes_errors_on(terminal: bool) -> None:
    to, _, _ = screen(terminal=terminal)
    with pytest.raises(KeyError), to.progress("working"):
        raise KeyError("x")


def test_a_log_gets_few_lines_of_progress(monkeypatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    to, _, err = screen()
    with to.progress("reading [x]", total=100) as advance:
        for _ in range(100):
            advance(note="shard")
    lines = err.getvalue().splitlines()
    assert lines[0] == "reading [x] ..."
    assert len(lines) == 1 + 100 // console.QUIET_S
    assert "/100 shard" in lines[-1]


def test_a_live_view_is_drawn_on_a_terminal_and_only_there() -> None:
    for terminal in (True, False):
        to, _, err = screen(terminal=terminal)
        with to.live() as show:
            show("placement and load")
        assert ("placement and load" in err.getvalue()) == terminal


def test_a_live_view_leaves_room_for_control_c() -> None:
    to, _, err = screen(terminal=True)
    with to.live() as show:
        show("x" * 500)
    assert max(len(part) for line in err.getvalue().splitlines() for part in re.findall("x+", line)) == to.err.width - 2
