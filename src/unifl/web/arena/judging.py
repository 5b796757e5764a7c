"""What somebody who judges asks of the app: the pair, its two pictures, a vote, an undo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from PIL import Image
from starlette.exceptions import HTTPException

from unifl.errors import UserError
from unifl.web.arena.answers import by_htmx, page, root_of
from unifl.web.arena.database import Arena
from unifl.web.arena.door import Door
from unifl.web.arena.people import Annotator

TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
"""Pictures that browsers show and that cannot hold a script."""
_LONGEST = 86_400_000  # ms that a judgement can take


def judging_routes(arena: Arena, door: Door) -> APIRouter:
    """Paths below the link of an annotator."""
    router = APIRouter()

    @router.get("")
    def show(request: Request, token: str) -> Response:
        annotator = door.annotator(request, token)
        return page(request, "judge.html", _view(arena, annotator, token))

    @router.get("/picture/{shown}/{side}")
    def picture(request: Request, token: str, shown: str, side: str) -> Response:
        annotator = door.annotator(request, token)
        path = arena.side(annotator, _number(shown), side == "right")
        if path is None or side not in ("left", "right"):
            raise HTTPException(404)
        return _picture(path)

    @router.post("/vote")
    async def vote(request: Request, token: str) -> Response:
        annotator = await run_in_threadpool(door.annotator, request, token)
        form = await _form(request)
        return await run_in_threadpool(_vote, request, arena, annotator, token, form)

    @router.post("/undo")
    async def undo(request: Request, token: str) -> Response:
        annotator = await run_in_threadpool(door.annotator, request, token)
        form = await _form(request)
        return await run_in_threadpool(_undo, request, arena, annotator, token, form)

    return router


def _vote(
    request: Request, arena: Arena, annotator: Annotator, token: str, form: Mapping[str, str]
) -> Response:
    answers = {axis: form.get(f"answer-{at}", "") for at, axis in enumerate(arena.settings.axes)}
    took = form.get("milliseconds", "")
    milliseconds = int(took) if took.isascii() and took.isdigit() and len(took) < 10 else 0
    try:
        arena.vote(
            annotator, _number(form.get("shown", "")), answers, milliseconds=min(milliseconds, _LONGEST)
        )
    except UserError as error:
        return _judged(request, arena, annotator, token, said=f"{error}", status=409)
    return _judged(request, arena, annotator, token)


def _undo(
    request: Request, arena: Arena, annotator: Annotator, token: str, form: Mapping[str, str]
) -> Response:
    seen = form.get("shown", "")
    arena.undo(annotator, _number(seen) if seen else None)
    return _judged(request, arena, annotator, token)


def _judged(
    request: Request, arena: Arena, annotator: Annotator, token: str, *, said: str = "", status: int = 200
) -> Response:
    """The next pair; without htmx by way of the link, so that a reload sends nothing twice."""
    if by_htmx(request):
        return page(request, "pair.html", _view(arena, annotator, token, said), status)
    if said:
        return page(request, "judge.html", _view(arena, annotator, token, said), status)
    return RedirectResponse(f"{root_of(request)}/a/{token}", 303)


def _view(arena: Arena, annotator: Annotator, token: str, said: str = "") -> dict[str, Any]:
    shown = arena.next(annotator)
    done = shown.done if shown is not None else arena.judged(annotator)
    return {
        "token": token,
        "shown": shown,
        "done": done,
        "total": done + (shown.left_over if shown is not None else 0),
        "settings": arena.settings,
        "said": said,
    }


def _picture(path: Path) -> Response:
    try:
        with Image.open(path) as picture:
            kind = TYPES.get(picture.format or "")
        if kind is None:
            raise HTTPException(404)
        content = path.read_bytes()
    except (OSError, SyntaxError, ValueError):
        raise HTTPException(404) from None
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(content, media_type=kind, headers=headers)


async def _form(request: Request) -> dict[str, str]:
    form = await request.form(max_files=0, max_fields=64)
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _number(text: str) -> int:
    """Of a showing; -1, which is none, for whatever else was sent."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1
