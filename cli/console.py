"""The one object that prints: results to stdout, progress and notes to stderr, so that `--json` output is never mixed with talk.

On a terminal it is rich; in a pipe or a log it is plain aligned text, one line per stage of progress. NO_COLOR is honoured (by rich).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 200  # columns when nobody tells us how wide the paper is
QUIET_S = 5.0  # a log gets at most one progress line in this time


class Advance(Protocol):
    """What `Screen.progress` hands out: call it when something got done."""

    def __call__(self, done: float = 1, note: str = "") -> None: ...


class Screen:
    """Tables, lines and progress for one command.

    Args:
        as_json: the command's result is one JSON object; tables and lines meant for people are then dropped.
        out, err: where to print; tests pass consoles that record.
    """

    def __init__(self, as_json: bool = False, out: Console | None = None, err: Console | None = None) -> None:
        self.as_json = as_json
        self.out = out or _console(stderr=False)
        self.err = err or _console(stderr=True)
        self.below: RenderableType = ""  # drawn under a bar of progress, again whenever it changes, and gone with the bar

    def say(self, text: str, style: str = "") -> None:
        """A line of the result, for people. `text` is printed as it is: brackets are not markup."""
        if not self.as_json:
            self.out.print(Text(text, style=style), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line about what is going on, to stderr, also under --json."""
        self.err.print(Text(text, style="dim"), soft_wrap=True)

    def json(self, value: Any) -> None:
        """The result as one JSON object on stdout, if --json was asked for."""
        if self.as_json:
            self.out.file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), caption: str = "") -> None:
        """A table, for people. `right` names the columns (by index) set flush right, as numbers are."""
        if self.as_json:
            return
        pretty = self.out.is_terminal
        table = Table(box=box.ROUNDED if pretty else None, pad_edge=pretty, show_header=any(columns))
        for index, name in enumerate(columns):
            table.add_column(Text(name), justify="right" if index in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
        if title:  # on lines of their own: rich would wrap title and caption to the table's width
            self.say(title, "bold")
        self.out.print(table)
        if caption:
            self.say(caption, "dim")

    @contextmanager
    def progress(self, label: str, total: float | None = None) -> Iterator[Advance]:
        """Shows how far a piece of work is, on stderr; `total` is in whatever unit the work calls `advance` with, None when unknown."""
        if self.err.is_terminal:
            yield from self._bar(label, total)
        else:
            yield from self._lines(label, total)

    @contextmanager
    def live(self) -> Iterator[Callable[[RenderableType], None]]:
        """A place at the bottom of the terminal, redrawn with whatever the call it hands out is given; in a pipe or a log, nothing."""
        if not self.err.is_terminal:
            self.note("a live view needs a terminal")
            yield lambda shown: None
            return
        with Live("", console=self.err, transient=True, auto_refresh=False) as view:
            yield lambda shown: view.update(self._narrow(shown), refresh=True)

    def _bar(self, label: str, total: float | None) -> Iterator[Advance]:
        amount = [BarColumn(), MofNCompleteColumn()] if total is not None else []
        bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), *amount, TimeElapsedColumn(), console=self.err)
        with Live(get_renderable=lambda: Group(bar, self._narrow(self.below)), console=self.err, transient=True, refresh_per_second=10):
            task = bar.add_task(_plain(label), total=total)

            def advance(done: float = 1, note: str = "") -> None:
                bar.update(task, advance=done, description=_plain(f"{label} {note}".strip()))

            try:
                yield advance
            finally:
                self.below = ""

    def _narrow(self, shown: RenderableType) -> RenderableType:
        """Leaves room for a terminal's own `^C` at the end of the last line: one line more, and what is drawn would not be wiped whole."""
        return Constrain(shown, self.err.width - len("^C"))

    def _lines(self, label: str, total: float | None) -> Iterator[Advance]:
        done_so_far = 0.0
        began_s = said_s = time.monotonic()
        self.note(f"{label} ...")

        def advance(done: float = 1, note: str = "") -> None:
            nonlocal done_so_far, said_s
            done_so_far += done
            now_s = time.monotonic()
            if now_s - said_s >= QUIET_S:
                said_s = now_s
                share = f" {done_so_far:g}/{total:g}" if total is not None else ""
                self.note(f"{label}{share} {note} ({now_s - began_s:.0f} s)".replace("  ", " "))

        yield advance


def _plain(text: str) -> str:
    """Text without rich's markup: a model called `[red]` is called that."""
    return text.replace("[", "\\[")


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH, no_color=True)
