"""What is tried on the arena's page, and what each must get; the table in docs/arena.md is made of this list.

python tests/web/arena_attacks.py    prints the table
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FORM = {"content-type": "application/x-www-form-urlencoded"}
VOTE = {"shown": "1", "answer-0": "left"}


@dataclass(frozen=True)
class Attack:
    """One request; `send(client, known)` where known has the tokens ann, bob and admin, and a folder."""

    kind: str
    tried: str
    got: int
    send: Callable[[Any, dict[str, str]], Any]


def get(path, **headers):
    return lambda client, known: client.get(path.format(**known), headers=headers)


def post(path, data=None, headers=None, **more):
    return lambda client, known: client.post(path.format(**known), data=data, headers=headers or {}, **more)


def _chunks():
    for _ in range(100):
        yield b"a" * 1000


REQUESTS = [
    Attack("token", "none", 404, get("/a/")),
    Attack("token", "one of nobody", 404, get("/a/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
    Attack("token", "a real one and a letter more", 404, get("/a/{ann}A")),
    Attack("token", "a real one without its last letter", 404, lambda c, k: c.get(f"/a/{k['ann'][:-1]}")),
    Attack("token", "in other case", 404, lambda c, k: c.get(f"/a/{k['ann'].swapcase()}")),
    Attack("token", "its hash, as in the file", 404, get("/a/{hash}")),
    Attack("token", "`' OR 1=1 --`", 404, get("/a/' OR 1=1 --")),
    Attack("token", "`%`, as a pattern", 404, get("/a/%25")),
    Attack("token", "a NUL, invalid UTF-8", 404, get("/a/%00%ff")),
    Attack("token", "8,000 letters", 404, get("/a/" + "A" * 8000)),
    Attack("token", "`../admin`, encoded", 404, get("/a/%2e%2e%2fadmin")),
    Attack("token", "an annotator's on the admin page", 404, get("/admin/{ann}")),
    Attack("token", "the admin's on a page for judging", 404, get("/a/{admin}")),
    Attack("token", "an annotator's for the export", 404, get("/admin/{ann}/votes.jsonl")),
    Attack("token", "an annotator's to add another", 404, post("/admin/{ann}/people", {"name": "eve"}, FORM)),
    Attack("path", "`/static/../app.py`, encoded", 404, get("/static/%2e%2e%2fapp.py")),
    Attack("path", "`/static/..%5c..%5carena.sqlite`", 404, get("/static/..%5c..%5carena.sqlite")),
    Attack("path", "`/static//etc/passwd`", 404, get("/static//etc/passwd")),
    Attack("path", "`/arena.sqlite`", 404, get("/arena.sqlite")),
    Attack(
        "path", "a picture by `../../arena.sqlite`", 404, get("/a/{ann}/picture/..%2f..%2farena.sqlite/left")
    ),
    Attack("path", "a picture by `/etc/passwd`", 404, get("/a/{ann}/picture/%2fetc%2fpasswd/left")),
    Attack("path", "a picture by `-1`", 404, get("/a/{ann}/picture/-1/left")),
    Attack(
        "path", "a picture by a number of 400 digits", 404, get("/a/{ann}/picture/" + "9" * 400 + "/left")
    ),
    Attack("path", "a picture by `1 OR 1=1`", 404, get("/a/{ann}/picture/1 OR 1=1/left")),
    Attack("path", "a picture by Arabic digits", 404, get("/a/{ann}/picture/١/left")),
    Attack("path", "a third side of a pair", 404, get("/a/{ann}/picture/1/middle")),
    Attack("path", "a picture that was shown to somebody else", 404, get("/a/{bob}/picture/1/left")),
    Attack("path", "a picture without a token", 404, get("/picture/1/left")),
    Attack("path", "an axis that is not asked for", 404, get("/admin/{admin}?axis=7")),
    Attack("path", "the pages that FastAPI makes: `/docs`", 404, get("/docs")),
    Attack("path", "`/openapi.json`", 404, get("/openapi.json")),
    Attack("method", "DELETE of a page", 405, lambda c, k: c.delete(f"/a/{k['ann']}")),
    Attack("method", "a vote by GET", 405, get("/a/{ann}/vote?shown=1&answer-0=left")),
    Attack(
        "method",
        "a vote by GET with X-HTTP-Method-Override",
        405,
        get("/a/{ann}/vote?shown=1&answer-0=left", **{"x-http-method-override": "POST"}),
    ),
    Attack(
        "header",
        "a vote with Sec-Fetch-Site: cross-site",
        403,
        post("/a/{ann}/vote", VOTE, {**FORM, "sec-fetch-site": "cross-site"}),
    ),
    Attack(
        "header",
        "a vote with Sec-Fetch-Site: same-site",
        403,
        post("/a/{ann}/vote", VOTE, {**FORM, "sec-fetch-site": "same-site"}),
    ),
    Attack(
        "header",
        "a vote with the Origin of another site",
        403,
        post("/a/{ann}/vote", VOTE, {**FORM, "origin": "https://evil.example"}),
    ),
    Attack(
        "header",
        "a vote with Origin: null, as from a sandbox",
        403,
        post("/a/{ann}/vote", VOTE, {**FORM, "origin": "null"}),
    ),
    Attack(
        "header",
        "a vote with an Origin that is no address",
        403,
        post("/a/{ann}/vote", VOTE, {**FORM, "origin": "http://[x"}),
    ),
    Attack(
        "header",
        "a new link on the admin page, from another site",
        403,
        post("/admin/{admin}/people/1/link", {}, {**FORM, "origin": "https://evil.example"}),
    ),
    Attack("body", "a form of a megabyte", 413, post("/a/{ann}/vote", {"shown": "1" * 1_000_000}, FORM)),
    Attack(
        "body",
        "a stream that announces no length",
        413,
        lambda c, k: c.post(f"/a/{k['ann']}/vote", content=_chunks(), headers=FORM),
    ),
    Attack(
        "body",
        "a length that is no number",
        413,
        lambda c, k: c.post(
            f"/a/{k['ann']}/vote", content=b"shown=1", headers={**FORM, "content-length": "-1"}
        ),
    ),
    Attack(
        "body",
        "a file, as multipart",
        415,
        lambda c, k: c.post(f"/a/{k['ann']}/vote", data=VOTE, files={"file": ("../../x.png", b"x")}),
    ),
    Attack("body", "JSON", 415, lambda c, k: c.post(f"/a/{k['ann']}/vote", json=VOTE)),
    Attack("body", "a thousand fields", 400, post("/a/{ann}/vote", {f"f{n}": "" for n in range(1000)}, FORM)),
    Attack("body", "nothing", 409, post("/a/{ann}/vote", {}, FORM)),
    Attack(
        "body", "an answer that is none", 409, post("/a/{ann}/vote", {"shown": "1", "answer-0": "up"}, FORM)
    ),
    Attack(
        "body",
        "a vote on a pair that was shown to somebody else",
        409,
        post("/a/{bob}/vote", VOTE, FORM),
    ),
    Attack(
        "body",
        "a vote on `1; DROP TABLE votes`",
        409,
        post("/a/{ann}/vote", {"shown": "1; DROP TABLE votes", "answer-0": "left"}, FORM),
    ),
    Attack("body", "an annotator without a name", 400, post("/admin/{admin}/people", {"name": " "}, FORM)),
    Attack("body", "an annotator's name twice", 400, post("/admin/{admin}/people", {"name": "ann"}, FORM)),
]
"""Requests that must not get anything."""

TEXTS = {
    "`<script>alert(1)</script>`": "<script>alert(1)</script>",
    "an attribute that is closed, and `onerror`": '"><img src=x onerror=alert(1)>',
    "the same with single quotes": "'><svg onload=alert(1)>",
    "htmx attributes": '<b hx-get="/admin" hx-trigger="load">x</b>',
    "a template: `{{ 7 * 7 }}`": "{{ 7 * 7 }}{% for x in (1,) %}{{ settings }}{% endfor %}",
    "`javascript:` and a closed comment": "javascript:alert(1) --><script>alert(1)</script>",
    "entities that are there already": "&lt;script&gt;&amp;#60;",
    "text from right to left, controls": "\u202egnp.evil\u0007\u2028<b>",
    "10,000 characters": "<i>" * 3333,
}
"""Prompts, questions and names of models and annotators: all are shown as text."""

FILES = {
    "`../secret.png`": ("../secret.png", "outside of"),
    "an absolute path": ("/etc/passwd", "outside of"),
    "a link to a file outside": ("link.png", "outside of"),
    "a NUL": ("a\0.png", "outside of|no picture|cannot"),
    "an SVG with a script": ("evil.svg", "browsers show"),
    "`metadata.jsonl` itself": ("metadata.jsonl", "browsers show"),
    "HTML that is called .png": ("html.png", "cannot be shown"),
    "half a PNG": ("half.png", "cannot be shown"),
    "a PNG of 30,000 by 30,000 pixels": ("bomb.png", "cannot be shown"),
    "a file that is not there": ("missing.png", "cannot be shown"),
}
"""File names in metadata.jsonl, and what making an arena says."""


@dataclass(frozen=True)
class Served:
    """What is tried on a server, with the words for what comes of it; tests/web/test_arena_served.py does it."""

    kind: str
    tried: str
    got: str


SERVED = [
    Served("connection", "half a body, and a byte now and then", "408 after 10 s, and closed"),
    Served("connection", "half a body of what is refused without it", "the refusal, and closed"),
    Served("connection", "a GET with half a body", "its answer; closed after 10 s"),
    Served("connection", "half a head, and a byte now and then", "closed after 10 s"),
    Served("connection", "nothing", "closed after 10 s"),
    Served("proxy", "the 61 with another X-Forwarded-For each time, without `--proxy`", "429"),
    Served("proxy", "the same from an address that `--proxy` does not name", "429"),
    Served("proxy", "addresses that a client writes before the one that the proxy adds", "429"),
]
"""Sockets and headers of a server in a process."""


def table() -> str:
    """The table of the docs."""
    rows = ["| what | tried | got |", "|---|---|---|"]
    rows += [f"| {one.kind} | {one.tried} | {one.got} |" for one in REQUESTS]
    rows += [f"| prompt, question, name | {tried} | shown as text |" for tried in TEXTS]
    rows += [f"| file name | {tried} | refused when the arena is made |" for tried in FILES]
    rows += [
        "| rate | 61 tokens of nobody in 20 s from one address | 429, Retry-After; links that exist still open |",
        "| rate | 601 requests in 20 s with one token | 429, Retry-After; other tokens are served |",
    ]
    rows += [f"| {one.kind} | {one.tried} | {one.got} |" for one in SERVED]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
