"""Answers of the app: pages, parts of pages, and messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse

from unifl.web.arena.pages import render


def root_of(request: Request) -> str:
    """What stands before every path, as the proxy or the command line said."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def by_htmx(request: Request) -> bool:
    """Whether a part of a page is wanted, and not a whole one."""
    return request.headers.get("hx-request") == "true"


def page(request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    """A page, or a part of one, as HTML."""
    return HTMLResponse(render(template, root_of(request), values), status)


def message(
    request: Request, status: int, said: str, *, headers: Mapping[str, str] | None = None
) -> Response:
    """A sentence: in the page that is open where htmx asked, otherwise on a page of its own."""
    part = by_htmx(request)
    content = render("notice.html" if part else "message.html", root_of(request), {"said": said})
    place = {"HX-Retarget": "#notice", "HX-Reswap": "outerHTML"} if part else {}
    return HTMLResponse(content, status, headers={**(headers or {}), **place})
