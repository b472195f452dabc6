"""The live view: what it shows of an engine and of a server's page, and that load is a difference between two looks."""

from __future__ import annotations

import io

from rich.console import Console

from hetserve.bench.watch import parse
from hetserve.cli.live import View, of_engine, of_pages
from hetserve.engine.api import PoolState


class Engine:
    """Two devices, the slow one for attention; each look finds one more CPU second."""

    def __init__(self) -> None:
        self.looks = 0

    def stats(self) -> dict[str, float]:
        return {"running": 3, "waiting": 4, "kv_tokens": 5000, "moves_total": 2}

    def pools(self) -> list[PoolState]:
        self.looks += 1
        return [
            PoolState("fast", 0, "mixed", (0, 4), True, 100, 25, 10.0 + self.looks),
            PoolState("slow", 0, "mixed", (0, 4), False, 50, 50, None, lost=True),
        ]


def shown(view: View, snapshot: object) -> str:
    console = Console(file=io.StringIO(), width=78)  # of a terminal of 80
    console.print(view.table("hetis", snapshot))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_an_engines_parts_cache_and_load() -> None:
    view, engine, clock = View(), Engine(), iter([0.0, 2.0])
    first = shown(view, of_engine(engine, lambda: next(clock)))  # type: ignore[arg-type]
    assert "hetis: 3 running, 4 waiting, 5,000 KV tokens, 2 moves" in first and " 75% ████████░░ of 100" in first and "0% ░░░░░░░░░░ of 50" in first
    second = shown(view, of_engine(engine, lambda: next(clock)))  # type: ignore[arg-type]
    assert "0.50" not in first and "0.50" in second
    assert len(second.splitlines()) == 7  # a title and a box around two rows: nothing is wrapped
    cells = [cell.strip() for cell in second.splitlines()[5].split("│")[1:-1]]
    assert cells == ["slow", "0 mixed", "0-3", "attention", "0% ░░░░░░░░░░ of 50", "lost"]


PAGE = """vllm:num_requests_running{engine="0"} 2
hetserve:engine_kv_tokens{engine="0"} 640
hetserve:pool_pages{device="fast",group="0",role="mixed",layers="0-3",worker="primary"} 80
hetserve:pool_pages_free{device="fast",group="0",role="mixed",layers="0-3",worker="primary"} 20
hetserve:pool_cpu_seconds{device="fast",group="0",role="mixed",layers="0-3",worker="primary"} 7.5
hetserve:pool_lost{device="fast",group="0",role="mixed",layers="0-3",worker="primary"} 1
"""


def test_a_servers_page_and_one_that_tells_no_parts() -> None:
    found = of_pages([parse(PAGE)], lambda: 1.0)
    (part,) = found.parts
    assert (part.device, part.worker, part.pages, part.pages_free, part.cpu_s, part.lost) == ("fast", "primary", 80, 20, 7.5, True)
    assert (found.running, found.waiting, found.kv_tokens) == (2, None, 640)
    both = of_pages([parse("vllm:num_requests_running 1"), parse("vllm:num_requests_running 4")], lambda: 1.0)
    assert both.running == 5 and both.parts == () and "5 running" in shown(View(), both)
    assert "nothing known yet" in shown(View(), of_pages([[]], lambda: 1.0))
