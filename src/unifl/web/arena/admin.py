"""What whoever runs an arena asks of the app: figures, people and their links, the votes."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from unifl.web.arena.answers import by_htmx, page
from unifl.web.arena.database import Arena
from unifl.web.arena.door import Door
from unifl.web.arena.overview import overview
from unifl.web.arena.results import vote_rows

_LONGEST_NAME = 80


def admin_routes(arena: Arena, door: Door, url: str | None) -> APIRouter:
    """Paths below the link of the admin page; links that it makes begin with a URL where one is given."""
    router = APIRouter()

    def shown(request: Request, token: str, *, name: str = "", link: str = "") -> Response:
        values = {
            **overview(arena, _axis(request, arena)),
            "token": token,
            "number": _number(request),
            "name": name,
            "link": link,
        }
        return page(request, "people.html" if by_htmx(request) else "admin.html", values)

    def link(request: Request, secret: str) -> str:
        return f"{url or request.base_url}".rstrip("/") + f"/a/{secret}"

    @router.get("")
    def show(request: Request, token: str) -> Response:
        door.admin(request, token)
        return shown(request, token)

    @router.post("/people")
    async def add(request: Request, token: str) -> Response:
        await run_in_threadpool(door.admin, request, token)
        form = await request.form(max_files=0, max_fields=8)
        name = " ".join(f"{form.get('name', '')}".split())[:_LONGEST_NAME]
        secret = await run_in_threadpool(arena.add_annotator, name)
        return await run_in_threadpool(shown, request, token, name=name, link=link(request, secret))

    @router.post("/people/{person}/link")
    def renew(request: Request, token: str, person: str) -> Response:
        door.admin(request, token)
        names = {f"{number}": name for number, name in arena.rows("SELECT id, name FROM annotators")}
        if person not in names:
            raise HTTPException(404)
        secret = arena.renew(names[person])
        return shown(request, token, name=names[person], link=link(request, secret))

    @router.get("/votes.jsonl")
    def export(request: Request, token: str) -> Response:
        door.admin(request, token)
        rows = vote_rows(arena, arena.folder, _axis(request, arena))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        headers = {"Content-Disposition": 'attachment; filename="votes.jsonl"'}
        return Response(text, media_type="application/jsonl", headers=headers)

    return router


def _number(request: Request) -> int:
    text = request.query_params.get("axis", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1


def _axis(request: Request, arena: Arena) -> str:
    axes = arena.settings.axes
    number = _number(request)
    if not 0 <= number < len(axes):
        raise HTTPException(404)
    return axes[number]
