"""What whoever runs an arena asks of the app: figures, people and their links, the votes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from unifl.web.arena.answers import by_htmx, page
from unifl.web.arena.database import Arena
from unifl.web.arena.door import Door
from unifl.web.arena.export import as_jsonl, as_parquet, vote_rows
from unifl.web.arena.overview import overview

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

    def votes(request: Request, token: str) -> list[dict[str, Any]]:
        door.admin(request, token)
        return vote_rows(arena, _axis(request, arena))

    @router.get("/votes.jsonl")
    def export(request: Request, token: str) -> Response:
        rows = votes(request, token)
        return _download("votes.jsonl", "application/jsonl", as_jsonl(rows, arena.folder))

    @router.get("/votes.parquet")
    def export_pictures(request: Request, token: str) -> Response:
        rows = votes(request, token)
        return _download("votes.parquet", "application/vnd.apache.parquet", as_parquet(rows))

    return router


def _download(name: str, kind: str, pieces: Iterator[bytes]) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pieces, media_type=kind, headers=headers)


def _number(request: Request) -> int:
    text = request.query_params.get("axis", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1


def _axis(request: Request, arena: Arena) -> str:
    axes = arena.settings.axes
    number = _number(request)
    if not 0 <= number < len(axes):
        raise HTTPException(404)
    return axes[number]
