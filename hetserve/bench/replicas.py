"""Several servers that are one system: each request goes to one of them, as the client's router decides (`hetserve.bench.router`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetserve.bench.process import Launch, Server


@dataclass(frozen=True)
class ReplicaLaunch:
    """How to start a system of several servers."""

    name: str
    launches: tuple[Launch, ...]

    @property
    def command(self) -> tuple[str, ...]:
        """Every server's command, one after the other."""
        return tuple(word for number, one in enumerate(self.launches) for word in ((";",) if number else ()) + one.command)


class Replicas:
    """Running servers under one name (`hetserve.bench.comparison.System`); the speeds are 1 until somebody has measured them."""

    def __init__(self, name: str, servers: Sequence[Server]) -> None:
        self.name = name
        self.url = servers[0].url
        self.frozen = False
        self.replicas = tuple((server.url, 1.0) for server in servers)
        self._servers = tuple(servers)

    def freeze(self) -> None:
        for server in self._servers:
            server.freeze()
        self.frozen = True

    def thaw(self) -> None:
        for server in self._servers:
            server.thaw()
        self.frozen = False

    def require_alive(self, grace_s: float = 0.0) -> None:
        """Raises if one of them has ended."""
        for server in self._servers:
            server.require_alive(grace_s / len(self._servers))

    def cpu_s(self) -> float | None:
        return sum(server.cpu_s() for server in self._servers)
