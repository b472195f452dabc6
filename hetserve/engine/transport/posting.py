"""Who posts a layer's messages: C++ without the GIL (`hetserve._net`) on gloo's own links where that is built, Python on every other.

Links that are slowed or traced do more than gloo's, and Python does it. What comes of it is the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from hetserve.engine.transport.dispatch import Dispatch, LinkDispatch, Part
from hetserve.engine.transport.exchange import Exchange, LinkExchange
from hetserve.engine.transport.gloo import GlooLink, _net
from hetserve.engine.transport.link import Link
from hetserve.engine.transport.staged import StagedExchange, StagedLink


def make_exchange(link: Link, tag: int) -> Exchange:
    """Messages of one tag over a link."""
    if _net is not None and isinstance(link, GlooLink):
        return _net.Exchange(link.pair, tag)
    return StagedExchange(link, tag) if isinstance(link, StagedLink) else LinkExchange(link, tag)


def make_dispatch(parts: Sequence[Part]) -> Dispatch:
    """One step's messages of a stage with all its attention workers."""
    own = []
    for part in parts:
        if _net is None or not isinstance(part.exchange, _net.Exchange):
            return LinkDispatch(parts)
        own.append(_net.Part(part.exchange, part.pairs, part.q, part.k, part.v, *part.answers))
    return _net.Dispatch(own)
