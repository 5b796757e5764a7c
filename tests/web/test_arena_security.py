"""The arena against people who mean harm; the list is in arena_attacks.py, and in the docs."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import time
import warnings
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from arena_attacks import FILES, REQUESTS, TEXTS, table
from arena_pictures import draw
from fastapi.testclient import TestClient

from unifl.errors import UserError
from unifl.web.arena.app import make_app
from unifl.web.arena.gather import read_folder, take_in
from unifl.web.arena.results import read_votes
from unifl.web.arena.security import HEADERS, Limits

DOCS = Path(__file__).parents[2] / "docs" / "arena.md"


@pytest.fixture
def attacked(make_arena):
    """An arena with a pair shown to ann, a client, and the tokens."""
    arena = make_arena(prompts=3)
    known = {"ann": arena.add_annotator("ann"), "bob": arena.add_annotator("bob"), "admin": arena.new_admin()}
    known["hash"] = hashlib.sha256(known["ann"].encode()).hexdigest()
    client = TestClient(make_app(arena), follow_redirects=False, raise_server_exceptions=False)
    assert client.get(f"/a/{known['ann']}").status_code == 200
    assert client.get(f"/a/{known['ann']}/picture/1/left").status_code == 200
    return arena, client, known


def require_headers(answer):
    for name, value in HEADERS.items():
        assert answer.headers[name] == value, name
    assert "cache-control" in answer.headers and "server" not in answer.headers


@pytest.mark.parametrize("attack", REQUESTS, ids=lambda one: f"{one.kind}: {one.tried}")
def test_what_is_tried_gets_nothing(attacked, attack):
    arena, client, known = attacked
    people = arena.rows("SELECT name, token FROM annotators")
    answer = attack.send(client, known)
    assert answer.status_code == attack.got, answer.text
    require_headers(answer)
    assert "Traceback" not in answer.text and "root:" not in answer.text and "SQLite" not in answer.text
    assert not list(read_votes(arena)) and arena.rows("SELECT name, token FROM annotators") == people
    if attack.got == 404:  # nothing tells what was nearly right
        assert answer.text == client.get("/a/nobody").text
    # the page goes on as if nothing had happened
    assert client.post(f"/a/{known['ann']}/vote", data={"shown": "1", "answer-0": "left"}).status_code == 303
    assert len(list(read_votes(arena))) == 1


class _Tags(HTMLParser):
    """Tags with the names of their attributes, and the text between."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data


def pages_with(arena, text):
    """Pages of all kinds of an arena whose prompts, question, axis, models and annotators are called `text`."""
    client = TestClient(make_app(arena))
    token, admin = arena.add_annotator("ann"), arena.new_admin()
    pages = [client.get(f"/a/{token}").text]
    vote = {"shown": "1", "answer-0": "left", "answer-1": "same"}
    pages.append(client.post(f"/a/{token}/vote", data=vote, headers={"hx-request": "true"}).text)
    client.post(f"/admin/{admin}/people", data={"name": text[:80]})
    return [*pages, client.get(f"/admin/{admin}").text]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_are_shown_as_texts(make_arena, text):
    """The page has the very tags and attributes that it has with harmless words."""
    made = {}
    for name, words in (("harmless", "a cat"), ("hostile", text)):
        arena = make_arena(name, prompts=[words], question=words, axes=(words, "layout"))
        with arena._writing() as connection:
            connection.execute("UPDATE pictures SET model = ? || model", (words,))
        made[name] = [_Tags(page) for page in pages_with(arena, words)]
    for harmless, hostile in zip(made["harmless"], made["hostile"], strict=True):
        assert hostile.tags == harmless.tags and len(hostile.tags) > 10
        # every place that holds the harmless words holds the hostile ones, letter for letter
        squeezed = " ".join(text.split())[:80]
        assert " ".join(hostile.text.split()).count(squeezed) >= harmless.text.count("a cat") > 0


def bomb():
    """A whole PNG of 30,000 by 30,000 grey pixels, in a megabyte."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    side, pack = 30_000, zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(side // 8 + 1)) for _ in range(side)) + pack.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("file", "message"), FILES.values(), ids=FILES)
def test_files_that_are_no_pictures_of_the_folder_are_refused(tmp_path, file, message):
    secret = tmp_path / "secret.png"
    folder = draw(tmp_path / "pictures", "base", ["a cat", "a dog"])
    (folder / "00000_0.png").rename(secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "html.png").write_text("<html><script>alert(1)</script></html>")
    (folder / "evil.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    )
    (folder / "half.png").write_bytes(secret.read_bytes()[:60])
    if file == "bomb.png":
        (folder / file).write_bytes(bomb())
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[0]["file_name"] = file
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with warnings.catch_warnings(), pytest.raises(UserError, match=message):
        warnings.simplefilter("ignore")
        take_in(read_folder(folder), tmp_path / "arena")
    assert not list(tmp_path.glob("arena/pictures/*"))


def test_who_guesses_waits_and_nobody_else(attacked):
    _, client, known = attacked
    answers = [client.get(f"/a/{n}", headers={"x-forwarded-for": f"10.0.0.{n}"}) for n in range(70)]
    assert [one.status_code for one in answers] == [404] * 60 + [429] * 10
    assert 0 < int(answers[-1].headers["retry-after"]) <= 20
    require_headers(answers[-1])
    assert client.get(f"/a/{known['ann']}").status_code == 200


def test_who_guesses_costs_no_query(attacked):
    arena, client, known = attacked
    asked = []
    arena._connection.set_trace_callback(asked.append)
    for number in range(100):
        assert client.get(f"/a/{number}").status_code in (404, 429)
        assert client.get(f"/admin/{number}").status_code in (404, 429)
    assert asked == []
    # and what is changed counts from the next request on
    cia = arena.add_annotator("cia")
    assert client.get(f"/a/{cia}").status_code == 200
    admin = client.post(f"/admin/{known['admin']}/people/3/link", data={})
    assert client.get(f"/a/{cia}").status_code == 429 and known["admin"] != (new := arena.new_admin())
    assert client.get(f"/admin/{known['admin']}").status_code == 429
    assert client.get(f"/admin/{new}").status_code == admin.status_code == 200


def test_one_token_asks_so_much_and_no_more(make_arena):
    arena = make_arena()
    client = TestClient(make_app(arena, Limits(requests=5, seconds=0.5)))
    ann, bob = arena.add_annotator("ann"), arena.add_annotator("bob")
    assert [client.get(f"/a/{ann}").status_code for _ in range(7)] == [200] * 5 + [429] * 2
    assert client.get(f"/a/{bob}").status_code == 200
    part = client.get(f"/a/{ann}", headers={"hx-request": "true"})
    assert part.headers["hx-retarget"] == "#notice" and part.text.startswith('<p id="notice"')
    time.sleep(0.6)
    assert client.get(f"/a/{ann}").status_code == 200


def test_a_window_forgets_old_strangers(monkeypatch):
    from unifl.web.arena import security

    monkeypatch.setattr(security, "_KEYS", 100)
    window = security.SlidingWindow(1, 60.0)
    for number in range(1000):
        assert window.wait(f"{number}") == 0
    assert len(window._times) == 100 and window.wait("999") > 59


def test_a_bug_has_the_headers_too(attacked, monkeypatch):
    arena, client, known = attacked
    monkeypatch.setattr(arena, "next", lambda annotator: 1 / 0)
    answer = client.get(f"/a/{known['ann']}")
    assert answer.status_code == 500 and "ZeroDivision" not in answer.text
    require_headers(answer)


def test_the_table_in_the_docs_is_this_list():
    found = re.search(r"<!-- attacks -->\n(.*)<!-- end of attacks -->", DOCS.read_text(), flags=re.S)
    assert found is not None and found[1].strip() == table().strip(), "python tests/web/arena_attacks.py"
