"""The arena's server: one process, started once everything that it needs is known to be there."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import uvicorn

from unifl.errors import UserError
from unifl.web.arena.app import make_app
from unifl.web.arena.database import Arena

_AT_ONCE = 1000  # connections; more are told to come back


def serve(
    arena: Arena,
    *,
    host: str,
    port: int,
    root_path: str = "",
    proxy: str | None = None,
    ready: Callable[[int], None],
) -> None:
    """Serve until somebody stops it (Ctrl-C, or a signal).

    Args:
        arena: Open.
        host: Address to listen on.
        port: 0 takes one that is free.
        root_path: Path below which a proxy shows the arena, as "/arena".
        proxy: Addresses of proxies whose X-Forwarded headers are believed, with commas between; None believes nobody.
        ready: Called with the port once the address is taken; requests are answered a moment later.

    Raises:
        UserError: An address that cannot be had, or htmx is not installed.
    """
    app = make_app(arena)
    config = uvicorn.Config(
        app,
        root_path=root_path,
        proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy or "",
        log_level="warning",
        access_log=False,  # addresses hold tokens
        server_header=False,
        limit_concurrency=_AT_ONCE,
        timeout_graceful_shutdown=5,
        ws="none",
        lifespan="off",
    )
    with _listening(host, port) as listener:
        ready(listener.getsockname()[1])
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "another program has it" if taken else error
        raise UserError(
            f"cannot listen on {host}, port {port}: {why}; choose others by --host and --port"
        ) from error
