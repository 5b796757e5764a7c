"""A connection of the server that is not kept for who sends nothing."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closed where no whole head of a request comes in time; uvicorn itself would wait for ever.

    Attributes:
        patience: Seconds, from when the connection is made or the answer before is sent. What remains of the body of a
            request that was answered already is not waited for any longer either.
        most: Connections at once; one more is closed before anything is read. Each is a file of the process, and one
            that runs out of files can neither accept anybody nor read a picture.
    """

    patience = 10.0
    most = 2000
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.transport.abort()
        else:
            self._wait()

    def on_response_complete(self) -> None:
        """Begin to wait for the next one."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(self.patience, self._give_up)

    def _give_up(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering:
            self.transport.close()  # after what is still to be sent
