"""What keeps a page on an open network safe: headers, requests from other sites, sizes and rates."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # addresses hold tokens
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Robots-Tag": "noindex, nofollow",
}
"""Of every answer."""
_KEYS = 10_000  # of a window; more are forgotten, the oldest first


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one may ask.

    Attributes:
        requests: Of one token in `seconds`. Somebody who judges needs four for a pair: the vote, two pictures, a
            reload now and then.
        strangers: Requests of one address with tokens of nobody, in `seconds`; a guess needs some 10 ** 57.
        seconds: Length of the window that slides.
        body: Bytes of what is sent.
        patience: Seconds in which all of it has to be here.
    """

    requests: int = 600
    strangers: int = 60
    seconds: float = 20.0
    body: int = 16_384
    patience: float = 10.0


class SlidingWindow:
    """At most so many events in so many seconds, by key.

    Args:
        limit: Events.
        seconds: In which they may be.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._times: dict[str, deque[float]] = {}
        self._turn = threading.Lock()

    def wait(self, key: str) -> float:
        """Count an event; seconds until it may be, 0 where it may be now (only then it is counted)."""
        now = time.monotonic()
        with self._turn:
            times = self._times.setdefault(key, deque())
            while times and times[0] <= now - self._seconds:
                times.popleft()
            if len(times) >= self._limit:
                return times[0] + self._seconds - now
            times.append(now)
            while len(self._times) > _KEYS:
                del self._times[next(iter(self._times))]
        return 0.0


class Guard:
    """Around the whole app: what is refused before anything looks at it, and the headers of every answer.

    Args:
        app: What is guarded.
        limits: See there.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        if scope["method"] == "POST":
            found = _refused(headers, self._limits.body) or await _body(receive, self._limits)
            if isinstance(found, Response):
                await found(scope, receive, with_headers)
                return
            receive = _once(found, receive)
        await self._app(scope, receive, with_headers)


def _refused(headers: Headers, limit: int) -> Response | None:
    if not _from_this_site(headers):
        return _refusal(403, "This request came from another site.")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:20]) > limit:
        return _too_large()
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/x-www-form-urlencoded"):
        return _refusal(415, "This takes forms alone.")
    return None


def _from_this_site(headers: Headers) -> bool:
    """What the browser says; who sends no such header is no browser, and needs the token all the same."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
    except ValueError:
        return False


async def _body(receive: Receive, limits: Limits) -> bytes | Response:
    """All of a body, or the answer to one that is too large, or that does not come."""
    found = b""
    try:
        async with asyncio.timeout(limits.patience):
            while True:
                message = await receive()
                found += message.get("body", b"")
                if (
                    message["type"] != "http.request" or len(found) > limits.body
                ):  # gone, or more than announced
                    return _too_large()
                if not message.get("more_body", False):
                    return found
    except TimeoutError:
        return _refusal(408, "This request took too long to arrive.")


def _once(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large() -> Response:
    return _refusal(413, "This is more than a vote needs.")


def _refusal(status: int, said: str) -> Response:
    # what is still to come of the request is not waited for
    return PlainTextResponse(said, status, headers={"Connection": "close"})
