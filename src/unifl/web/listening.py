"""The socket of a server, taken before anything long is loaded."""

from __future__ import annotations

import errno
import socket

from unifl.errors import UserError

_WAITING = 2048  # connections that wait to be accepted


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: An address of this machine; with colons it is one of IPv6.
        port: 0 takes one that is free.

    Raises:
        UserError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once only where the protocol is named; otherwise an answer may take 40 ms more
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_WAITING)
    except (OSError, OverflowError) as error:
        listening.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "another program has it" if taken else error
        raise UserError(
            f"cannot listen on {host}, port {port}: {why}; choose others by --host and --port"
        ) from error
    return listening
