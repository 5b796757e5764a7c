"""The arena's web app: pages for people who judge, and one for whoever asked them."""

from __future__ import annotations

import sqlite3

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from unifl.errors import UserError
from unifl.web.arena.admin import admin_routes
from unifl.web.arena.answers import message
from unifl.web.arena.database import Arena
from unifl.web.arena.door import Door
from unifl.web.arena.judging import judging_routes
from unifl.web.arena.pages import static_files
from unifl.web.arena.security import Guard, Limits

_SAID = {
    404: "There is nothing here. Please check the link that you were given.",
    405: "This cannot be done here.",
    429: "That was too much at once. Please wait a moment.",
}
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def make_app(arena: Arena, limits: Limits | None = None, *, url: str | None = None) -> ASGIApp:
    """The app around an open arena.

    Args:
        arena: Stays open as long as the app runs.
        limits: On what one may ask.
        url: What links of annotators begin with; None takes what the admin page was opened under.

    Raises:
        UserError: htmx is not installed.
    """
    limits = limits or Limits()
    files = static_files()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    door = Door(arena, limits)
    app.include_router(judging_routes(arena, door), prefix="/a/{token}")
    app.include_router(admin_routes(arena, door, url), prefix="/admin/{token}")
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(UserError, _wrong)
    app.add_exception_handler(sqlite3.Error, _disk)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        content, kind = files[name]
        return Response(
            content, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"}
        )

    return Guard(app, limits)  # outside of everything, so that its headers are on answers to bugs, too


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = _SAID.get(error.status_code, "This request cannot be understood.")
    return message(request, error.status_code, said, headers=dict(error.headers or {}))


def _wrong(request: Request, error: Exception) -> Response:
    return message(request, 400, f"{error}")


def _disk(request: Request, error: Exception) -> Response:
    """A vote that could not be written was not acknowledged either."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _NO_ROOM:
        said = (
            "The server's disk is full, so your last step may not have been recorded. Everything before it is safe. "
            "Please tell whoever sent you the link, and press again when there is room: nothing counts twice."
        )
        return message(request, 507, said)
    return message(
        request, 503, "The server could not write just now. Please press again: nothing counts twice."
    )
