"""The reward service as a web application: health, card, score.

Whatever can be refused by its headers is refused before its body is read: a wrong token (401), no length (411), too
many bytes (413), something compressed (415), a full queue (503 with Retry-After). What is no question, or none that the
scorer takes, gets 422 with the reason, a scorer that fails 500. Only /health answers without the token.
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from unifl.errors import UserError
from unifl.feedback.wire import CARD, HEALTH, SCORE, Limits, Question, Served, unpack
from unifl.web.rewards.batching import Batcher, Refused

BODY_SECONDS = 60.0
_RETRY_AFTER = {"Retry-After": "1"}
_GONE = 499  # nobody reads it


def make_app(
    batcher: Batcher, served: Served, *, token: str | None = None, body_seconds: float = BODY_SECONDS
) -> FastAPI:
    """The application around a scorer.

    Args:
        batcher: Asks the scorer.
        served: What clients are told of it.
        token: That clients must send, or None.
        body_seconds: In which a question has to be received.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def known(request: Request) -> None:
        given = request.headers.get("Authorization", "")
        if token is not None and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    @app.get(HEALTH)
    async def health() -> dict[str, Any]:
        return {"ready": True, "questions": batcher.inside}

    @app.get(CARD, dependencies=[Depends(known)])
    async def card() -> dict[str, Any]:
        return asdict(served)

    @app.post(SCORE, dependencies=[Depends(known)])
    async def score(request: Request) -> JSONResponse:
        _check_headers(request, served.limits)
        try:
            with batcher.place() as place:
                question = await _question(request, served.limits, body_seconds)
                scores = await _answered(request, place.put(question))
        except Refused as error:
            raise HTTPException(503, f"{error}; ask again", _RETRY_AFTER) from error
        except ClientDisconnect as error:
            raise HTTPException(_GONE) from error
        answer = {"id": question.identity, "digest": question.digest, "scores": scores}
        return JSONResponse(answer | {"fingerprint": served.fingerprint})

    return app


def _check_headers(request: Request, limits: Limits) -> None:
    length = request.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise HTTPException(411, "send the length of the body")
    if int(length) > limits.body_bytes:
        raise HTTPException(413, f"the body has {length} bytes; send at most {limits.body_bytes}")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise HTTPException(415, "the body is compressed; send it as it is")


async def _question(request: Request, limits: Limits, seconds: float) -> Question:
    try:
        async with asyncio.timeout(seconds):
            body = await request.body()
    except TimeoutError as error:
        raise HTTPException(408, f"the body took more than {seconds:g} s") from error
    try:
        # not in the event loop: a digest of many megabytes takes a while
        return await asyncio.to_thread(unpack, body, limits)
    except UserError as error:
        raise HTTPException(422, str(error)) from error


async def _answered(request: Request, future: Future[list[float]]) -> list[float]:
    """The answer, unless its client goes away first: nothing is scored for nobody."""
    answer = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {answer, gone}
    try:
        done, _ = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if answer not in done:
            raise ClientDisconnect
        return answer.result()
    except (Refused, ClientDisconnect, asyncio.CancelledError):
        raise
    except BaseException as error:
        # of a judge that has answered before, a mistake is the cause of its failure
        mistake = next((one for one in (error, error.__cause__) if isinstance(one, UserError)), None)
        if mistake is not None:
            raise HTTPException(422, str(mistake)) from error
        raise HTTPException(500, f"the scorer failed: {type(error).__name__}: {error}") from error
    finally:
        gone.cancel()
        answer.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
