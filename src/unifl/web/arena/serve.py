"""The arena's server: one process, started once everything that it needs is known to be there."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from unifl.web.arena.app import make_app
from unifl.web.arena.connections import Connection
from unifl.web.arena.database import Arena
from unifl.web.listening import listen

_AT_ONCE = 1000  # connections; more are told to come back
_FILES = 500  # that the process may have open beside its connections


def configured(app: ASGIApp, *, root_path: str = "", proxy: str | None = None) -> uvicorn.Config:
    """How the app is served; see `serve`."""
    return uvicorn.Config(
        app,
        root_path=root_path,
        proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy or "",
        http=Connection,
        log_level="warning",
        access_log=False,  # addresses hold tokens
        server_header=False,
        limit_concurrency=_AT_ONCE,
        timeout_graceful_shutdown=5,
        ws="none",
        lifespan="off",
    )


def serve(
    arena: Arena,
    *,
    host: str,
    port: int,
    url: str | None = None,
    root_path: str = "",
    proxy: str | None = None,
    ready: Callable[[int], None],
) -> None:
    """Serve until somebody stops it (Ctrl-C, or a signal).

    Args:
        arena: Open.
        host: Address to listen on.
        port: 0 takes one that is free.
        url: What links begin with that the admin page makes; None takes the address under which that page was opened.
        root_path: Path below which a proxy shows the arena, as "/arena".
        proxy: Addresses of proxies whose X-Forwarded headers are believed, with commas between; None believes nobody.
        ready: Called with the port once requests are answered, and Ctrl-C and signals end the server as they should.

    Raises:
        UserError: An address that cannot be had, or htmx is not installed.
    """
    config = configured(make_app(arena, url=url), root_path=root_path, proxy=proxy)
    allow_files(Connection.most + _FILES)
    with listen(host, port) as listener:
        _Server(config, lambda: ready(listener.getsockname()[1])).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it is there."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; uvicorn calls it once, after it has taken over signals."""
        await super().startup(sockets)
        self._ready()


def allow_files(number: int) -> None:
    """Let this process open so many files, as far as the system lets it; many systems begin with 1,024."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
