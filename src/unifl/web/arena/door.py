"""Who may come in: tokens, and how often."""

from __future__ import annotations

import hashlib
import math

from fastapi import Request
from starlette.exceptions import HTTPException

from unifl.web.arena.database import Arena
from unifl.web.arena.people import Annotator
from unifl.web.arena.security import Limits, SlidingWindow


class Door:
    """Tokens become people, or 404, or 429.

    Whoever holds a token has a window of their own, so that many people behind one address or one proxy do not wait for
    each other, nor for somebody there who guesses. Guesses cost no query: tokens that open something are in memory.

    Args:
        arena: Whose tokens.
        limits: Of requests.
    """

    def __init__(self, arena: Arena, limits: Limits) -> None:
        self._arena = arena
        self._known = SlidingWindow(limits.requests, limits.seconds)
        self._strangers = SlidingWindow(limits.strangers, limits.seconds)

    def annotator(self, request: Request, token: str) -> Annotator:
        """Whose link it is.

        Raises:
            HTTPException: Nobody's, the same for whatever was tried; or too many requests.
        """
        found = self._arena.annotator(token)
        self._let_in(request, token, found is not None)
        assert found is not None
        return found

    def admin(self, request: Request, token: str) -> None:
        """Let whoever holds the token of the admin page in.

        Raises:
            HTTPException: Another token, or too many requests.
        """
        self._let_in(request, token, self._arena.is_admin(token))

    def _let_in(self, request: Request, token: str, known: bool) -> None:
        if known:
            key = hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
            wait = self._known.wait(key)
        else:
            wait = self._strangers.wait(request.client.host if request.client else "")
        if wait:
            raise HTTPException(429, headers={"Retry-After": str(math.ceil(wait))})
        if not known:
            raise HTTPException(404)
