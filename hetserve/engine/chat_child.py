"""The process in which chat templates run: `python -m hetserve.engine.chat_child SECONDS`. Untrusted templates, so jinja's sandbox and hard limits.

One JSON line in, one out: first {"template": ...}, then contexts; answers are {"text": ...} or {"error": ..., "refused": bool}.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30


class Refused(TemplateError):
    """The template itself called raise_exception: the conversation is not one it can write down."""


class Generation(Extension):
    """`{% generation %}`: marks the assistant's words for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own way of declaring tags)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives chat templates: the same whitespace rules, tags, filter and functions."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise Refused(message)


def answer(render: Callable[..., str], context: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"text": render(**context)}
    except Refused as error:
        return {"error": str(error)[:500], "refused": True}
    except MemoryError:
        return {"error": "it ran out of memory", "refused": False}
    except Exception as error:  # a template can raise anything; whatever it is, it is the template's
        return {"error": f"{type(error).__name__}: {error}"[:500], "refused": False}


def main() -> None:
    limit_s = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    made = environment()
    source = json.loads(sys.stdin.readline())["template"]
    compiled = cache(lambda: made.from_string(source))  # compiled with the first conversation, inside its time limit
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        signal.alarm(math.ceil(limit_s) + 1)  # should the parent be gone: a template that never ends must not outlive it
        print(json.dumps(answer(lambda **context: compiled().render(**context), json.loads(line))), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main()
