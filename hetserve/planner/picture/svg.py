"""The few shapes a picture is made of, as SVG text. Every string that comes from a file is escaped here, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

LETTER = 0.6  # width of a letter in font sizes: of a wide one, so that nothing runs over
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 has no way to say

STYLE = """
svg { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
.paper { fill: #ffffff; } .ink { fill: #1b1f24; } .faint { fill: #57606a; } .alarm { fill: #cf222e; }
.box { fill: #f6f8fa; stroke: #8c959f; } .hot { stroke: #cf222e; stroke-width: 2.5; } .on { fill: #16191d; }
.flow { fill: none; stroke: #57606a; } .flow.hot { stroke: #cf222e; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117; } .ink { fill: #e6edf3; } .faint { fill: #9da7b3; } .alarm { fill: #ff7b72; }
  .box { fill: #161b22; stroke: #6e7681; } .hot { stroke: #ff7b72; } .flow { stroke: #9da7b3; } .flow.hot { stroke: #ff7b72; }
}
""".strip()


def clean(text: str) -> str:
    """Text as XML may hold it."""
    return escape(_FORBIDDEN.sub("\ufffd", text))


def fitting(text: str, width: float, size: float) -> str:
    """As much of the text as is surely not wider than that, with an ellipsis where it is cut."""
    most = max(1, int(width / (size * LETTER)))
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def words(x: float, y: float, text: str, size: float = 11, style: str = "ink", width: float | None = None, bold: bool = False) -> str:
    """One line; y is its base line. Cut to a width, the whole of it is the tooltip."""
    shown = text if width is None else fitting(text, width, size)
    tip = f"<title>{clean(text)}</title>" if shown != text else ""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{weight} class="{style}">{tip}{clean(shown)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box", tip: str = "", **more: str) -> str:
    """A rectangle. `more`: further attributes, underscores for dashes."""
    said = "".join(f' {name.replace("_", "-")}="{clean(value)}"' for name, value in more.items())
    inner = f"><title>{clean(tip)}</title></rect>" if tip else "/>"
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" class="{kind}"{said}{inner}'


def curve(start: tuple[float, float], end: tuple[float, float], straight: float, width: float, style: str, tip: str) -> str:
    """From left to right: level for as far as `straight`, over which there is room for words, then to the end."""
    (x0, y0), (x1, y1) = start, end
    turn, middle = x0 + straight, (x0 + straight + x1) / 2
    path = f"M{x0:g},{y0:g} L{turn:g},{y0:g} C{middle:g},{y0:g} {middle:g},{y1:g} {x1:g},{y1:g}"
    return f'<path d="{path}" class="{style}" stroke-width="{width:.2g}" marker-end="url(#arrow)"><title>{clean(tip)}</title></path>'


def document(width: float, height: float, name: str, body: Sequence[str]) -> str:
    """The whole file."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">',
            f"<title>{clean(name)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" '
            'orient="auto"><path d="M0,0 L8,4 L0,8 z" class="faint"/></marker></defs>',
            f'<rect width="{width:g}" height="{height:g}" class="paper"/>',
            *body,
            "</svg>\n",
        ]
    )
