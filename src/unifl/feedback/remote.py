"""A scorer on another machine, asked over HTTP (`unifl serve-reward` serves one)."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import torch
from jaxtyping import Float
from torch import Tensor

from unifl import config
from unifl.errors import FeedbackFailed, UserError
from unifl.feedback.base import Space
from unifl.feedback.black_box import require_scores
from unifl.feedback.wire import CARD, CONTENT_TYPE, SCORE, TOKEN_VARIABLE, Served, at_once, digest, pack

_TRY_AGAIN = frozenset({408, 429, 502, 503, 504})
"""What a full, slow or restarting server and a proxy before it say."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_TO_CONNECT = 10.0  # seconds in which a server has to be there when a run is put together
_ANSWER_BYTES = 1_000_000


class RemoteReward:
    """A served scorer as a Feedback without gradient.

    Pictures go exactly (see `unifl.feedback.wire`), in questions of the size that the server takes. A lost connection,
    a full server and a late answer are tried again with growing pauses; a question has no effect but its answer, so
    asking twice is safe. An answer counts only when it repeats the random id and the SHA-256 of its question, comes
    from the scorer that was there at the start, and has one finite number per picture.

    A refusal (status 400 to 499) is the mistake of whoever put the run together as long as nothing was answered. Once
    something was, it comes in the middle of a run, from a restarted server or a prompt further down the list: then it
    is a failure, so that the run is saved and can go on when the cause is mended.

    Args:
        url: `http://host:port`, or https behind a proxy.
        name: What losses and metrics are called after; by default the name of the scorer.
        timeout: Seconds that one attempt may take, waiting in the server's queue included.
        patience: Seconds after which no further attempt is made for one call; it outlasts a restart of the server.
        token_file: A file with the server's token; by default the environment variable UNIFL_REWARD_TOKEN, where it is
            set. A token is no argument, because recipes are saved with runs.
        fingerprint: That the scorer must have; by default that of the scorer found at the start.

    Raises:
        UserError: A URL or setting that cannot be, no server, a token that it refuses, or another scorer.
    """

    space: Space = "pixel"
    differentiable: bool = False

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        timeout: int | float = 120.0,
        patience: int | float = 600.0,
        token_file: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if not timeout > 0 or not patience > 0:
            raise UserError(
                f"timeout={timeout}, patience={patience} of a remote reward; both must be above 0"
            )
        self.url = _checked(url)
        self.timeout, self.patience = timeout, patience
        token = read_token(token_file)
        self._client = httpx2.Client(
            base_url=self.url,
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {}),
            trust_env=not _is_here(self.url),  # no proxy stands between a machine and itself
        )
        self._has_answered = False
        self.served = self._card()
        if fingerprint not in (None, self.served.fingerprint):
            raise UserError(
                f"{self.url} serves {self.served.name} with fingerprint {self.served.fingerprint}, and {fingerprint} "
                "is asked for; start the right scorer, or change the fingerprint"
            )
        self.name = name or self.served.name
        self.needs = frozenset(self.served.needs)
        self.range = self.served.range

    @property
    def fingerprint(self) -> str:
        """Of the scorer that was there at the start."""
        return self.served.fingerprint

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Scores on the device of the pictures.

        Raises:
            FeedbackFailed: No answer in time, one that is not one finite number per picture, one to another question,
                or one by another scorer; or a refusal after an answer.
            UserError: The server refuses the first question, or the token.
        """
        many = at_once(self.served.limits, *images.shape[2:])
        until = time.monotonic() + self.patience
        parts = [
            self._scores(images[start : start + many], prompts[start : start + many], until)
            for start in range(0, len(images), many)
        ]
        return torch.cat(parts) if parts else images.new_zeros(0, dtype=torch.float32)

    def _scores(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str], until: float
    ) -> Float[Tensor, " b"]:
        identity = secrets.token_hex(16)
        body = pack(images, prompts if "prompt" in self.needs else [""] * len(images), identity)
        status, content = self._asked("POST", SCORE, body, until)
        answer = self._read(status, content)
        if (answer.get("id"), answer.get("digest")) != (identity, digest(body)):
            raise FeedbackFailed(
                f"the feedback {self.name!r} at {self.url} answered another question than was asked; restart the "
                "server, and look at what stands between"
            )
        if answer.get("fingerprint") != self.served.fingerprint:
            raise FeedbackFailed(
                f"{self.url} serves another scorer than at the start (fingerprint {answer.get('fingerprint')}, was "
                f"{self.served.fingerprint}); scores of the two do not compare, start the first again"
            )
        found = require_scores(answer.get("scores"), images, name=self.name)
        self._has_answered = True
        return found

    def _card(self) -> Served:
        try:
            answer = self._read(*self._asked("GET", CARD, b"", time.monotonic() + _TO_CONNECT))
            return config.load(answer, Served)
        except FeedbackFailed as error:
            raise UserError(
                f"no reward server answers at {self.url} ({error}); start one with `unifl serve-reward SCORER`"
            ) from error

    def _asked(self, method: str, path: str, body: bytes, until: float) -> tuple[int, bytes]:
        """Status and content of the first answer that is not "try again"."""
        pause = _FIRST_PAUSE
        while True:
            least = 0.0
            try:
                status, content, least = self._attempt(method, path, body, until)
                if status not in _TRY_AGAIN:
                    return status, content
                why = f"status {status}: {_detail(content)}"
            except httpx2.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            # spread, so that clients which were refused together do not come back together
            rest = max(pause * (0.5 + secrets.randbelow(1000) / 1000), least)
            if time.monotonic() + rest >= until:
                raise FeedbackFailed(
                    f"{self.url} gave no answer in time ({why}); see that it runs and can be reached, or raise "
                    "timeout or patience"
                )
            time.sleep(rest)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _attempt(self, method: str, path: str, body: bytes, until: float) -> tuple[int, bytes, float]:
        """Status, content, and the seconds for which the server wants to be left alone."""
        start = time.monotonic()
        allowed = max(0.01, min(self.timeout, until - start))
        content = bytearray()
        headers = {"Content-Type": CONTENT_TYPE} if body else {}
        with self._client.stream(
            method, path, content=body or None, headers=headers, timeout=allowed
        ) as answer:
            for chunk in answer.iter_raw():
                content += chunk
                # httpx2 limits each wait, not their sum
                if time.monotonic() - start > allowed:
                    raise httpx2.ReadTimeout(f"no whole answer within {allowed:.3g} s")
                if len(content) > _ANSWER_BYTES:
                    raise FeedbackFailed(
                        f"{self.url} sends more than {_ANSWER_BYTES} bytes; it is no reward server"
                    )
        after = answer.headers.get("Retry-After", "")
        return answer.status_code, bytes(content), float(after) if after.isdecimal() else 0.0

    def _read(self, status: int, content: bytes) -> dict[str, Any]:
        """The JSON of an answer."""
        if 400 <= status < 500:
            raise self._refusal(status, content)
        if status != 200:
            raise FeedbackFailed(f"{self.url} failed (status {status}): {_detail(content)}")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise FeedbackFailed(f"{self.url} answers no JSON ({error}); it is no reward server") from error
        if not isinstance(found, dict):
            raise FeedbackFailed(f"{self.url} answers {type(found).__name__}; it is no reward server")
        return found

    def _refusal(self, status: int, content: bytes) -> UserError | FeedbackFailed:
        kind = FeedbackFailed if self._has_answered else UserError
        if status in (401, 403):
            return kind(
                f"{self.url} refuses the token; set {TOKEN_VARIABLE} or token_file to the one it was started with"
            )
        if status in (404, 405):
            return kind(
                f"{self.url} is no reward server (status {status}): {_detail(content)}; give the address that "
                "`unifl serve-reward` prints"
            )
        return kind(
            f"{self.url} refuses what it is asked (status {status}): {_detail(content)}; change that, or look at what "
            "stands between"
        )


def read_token(file: str | Path | None) -> str | None:
    """The token in a file or, without one, in the environment.

    Raises:
        UserError: It cannot be read, is short, or is not printable ASCII.
    """
    if file is None:
        token, place = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return None
    else:
        try:
            token, place = Path(file).expanduser().read_text(encoding="utf-8").strip(), str(file)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the token in {file}: {error}; name a file that holds it") from error
    if len(token) < 20 or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"the token in {place} can be guessed or sent wrongly; use 20 letters and digits or more, such as what "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` prints"
        )
    return token


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or parts.username is not None or parts.query or parts.fragment:
        raise UserError(f"{url!r} is no address of a reward server; write http://host:port")
    return url.rstrip("/")


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _detail(content: bytes) -> str:
    """What a server says went wrong, at most a line."""
    try:
        text = str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = content.decode(errors="replace")
    return " ".join(text.split())[:300]
