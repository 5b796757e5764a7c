"""A reward service as a process: its settings, its socket, and how it stops."""

from __future__ import annotations

import ipaddress
import math
import socket
from dataclasses import dataclass, field

import torch
import uvicorn

from unifl.assembly.fingerprint import fingerprint
from unifl.errors import UserError
from unifl.feedback import Feedback
from unifl.feedback.wire import Limits, Served
from unifl.web.listening import listen
from unifl.web.rewards.app import make_app
from unifl.web.rewards.batching import Batcher

_TO_STOP = 60  # seconds for the batch that is being scored


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How a scorer is served.

    Attributes:
        batch_size: Pictures that the scorer sees at once.
        wait: Seconds for which it waits for questions that are being received, to put them together.
        queue: Questions inside at once; others are sent away for a second.
        limits: Of one question.
    """

    batch_size: int = 16
    wait: float = 0.005
    queue: int = 64
    limits: Limits = field(default_factory=Limits)


class RewardServer(uvicorn.Server):
    """Serves a scorer until it is told to stop; what waits then is refused, what is being scored is answered.

    `run(sockets=[...])` serves, `should_exit = True` stops (as Ctrl-C and SIGTERM do in the main thread).

    Args:
        scorer: Reads pixels.
        asked: The name under which it was asked for.
        settings: See there.
        token: That clients must send, or None.
        device: Where pictures are shown to the scorer.

    Raises:
        UserError: A scorer on latents.
    """

    def __init__(
        self,
        scorer: Feedback,
        asked: str,
        settings: ServiceSettings,
        *,
        token: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if scorer.space != "pixel":
            raise UserError(
                f"{asked} reads {scorer.space}s, and pictures are served; choose a scorer on pixels"
            )
        self.served = Served(
            name=scorer.name,
            needs=tuple(sorted(scorer.needs)),
            range=_finite(scorer.range),
            scale=getattr(getattr(scorer, "card", None), "scale", ""),
            fingerprint=fingerprint(scorer, asked),
            batch_size=settings.batch_size,
            limits=settings.limits,
        )
        self.batcher = Batcher(
            scorer, batch_size=settings.batch_size, wait=settings.wait, queue=settings.queue, device=device
        )
        super().__init__(
            uvicorn.Config(
                make_app(self.batcher, self.served, token=token),
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=_TO_STOP,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; uvicorn calls it once."""
        self.batcher.close()
        await super().shutdown(sockets)


def open_socket(host: str, port: int, *, token: str | None) -> socket.socket:
    """The socket on which to serve.

    Raises:
        UserError: Other machines could ask without a token, or the address cannot be had.
    """
    if token is None and not _is_local(host):
        raise UserError(
            f"{host} can be reached from other machines, and there is no token; set UNIFL_REWARD_TOKEN or "
            "--token-file, or serve on 127.0.0.1"
        )
    return listen(host, port)


def _finite(range: tuple[float, float] | None) -> tuple[float, float] | None:
    """JSON has no infinity; a scorer without a bound says nothing of its range."""
    return range if range is not None and all(map(math.isfinite, range)) else None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
