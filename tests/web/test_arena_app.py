"""The arena's pages, asked without a browser; and a disk that is full."""

from __future__ import annotations

import json
import re
import resource

import pytest
from fastapi.testclient import TestClient

from unifl.errors import UserError
from unifl.web.arena import pages
from unifl.web.arena.app import make_app
from unifl.web.arena.results import read_votes


def opened(arena, **options):
    return TestClient(make_app(arena), follow_redirects=False, **options)


def vote(client, token, answer="left", **headers):
    shown = re.search(r'data-shown="(\d+)"', client.get(f"/a/{token}").text)[1]
    return client.post(f"/a/{token}/vote", data={"shown": shown, "answer-0": answer}, headers=headers)


def test_without_scripts_the_page_works_by_forms(make_arena):
    arena = make_arena(prompts=2)
    client, token = opened(arena), arena.add_annotator("ann")
    answer = vote(client, token)
    assert answer.status_code == 303 and answer.headers["location"] == f"/a/{token}"
    vote(client, token)
    open_now = re.search(r'name="shown" value="(\d*)"', client.get(f"/a/{token}").text)[1]
    for _ in range(2):  # sent again, it takes nothing more back
        assert client.post(f"/a/{token}/undo", data={"shown": open_now}).status_code == 303
    assert len(list(read_votes(arena))) == 1
    vote(client, token)
    assert "That was all" in client.get(f"/a/{token}").text


def test_pictures_are_private_and_say_nothing_of_models(make_arena):
    arena = make_arena(prompts=1)
    client, token = opened(arena), arena.add_annotator("ann")
    page = client.get(f"/a/{token}").text
    assert "good" not in page and "base" not in page and ".png" not in page
    found = client.get(f"/a/{token}/picture/1/left")
    assert found.headers["content-type"] == "image/png"
    assert found.headers["cache-control"].startswith("private")
    assert client.get(f"/a/{token}/picture/1/right").content != found.content


def test_below_a_path_of_a_proxy(make_arena):
    arena = make_arena(prompts=2)
    client, token = opened(arena, root_path="/arena"), arena.add_annotator("ann")
    page = client.get(f"/arena/a/{token}").text
    paths = re.findall(r'(?:src|href|action|hx-post)="([^"]+)"', page)
    assert len(paths) > 6 and all(path.startswith("/arena/") for path in paths)
    shown = re.search(r'data-shown="(\d+)"', page)[1]
    answer = client.post(f"/arena/a/{token}/vote", data={"shown": shown, "answer-0": "same"})
    assert answer.headers["location"] == f"/arena/a/{token}"
    admin = arena.new_admin()
    added = client.post(f"/arena/admin/{admin}/people", data={"name": "bob"})
    assert re.search(r'value="http://testserver/arena/a/[\w-]{32}"', added.text)


def test_links_of_the_admin_page_begin_with_the_url_that_is_given(make_arena):
    arena = make_arena()
    client = TestClient(make_app(arena, url="https://example.org/arena/"))
    admin = arena.new_admin()
    added = client.post(f"/admin/{admin}/people", data={"name": "bob"}).text
    renewed = client.post(f"/admin/{admin}/people/1/link", data={}).text
    for page in (added, renewed):
        assert re.search(r'value="https://example\.org/arena/a/[\w-]{32}"', page)


def test_a_later_admin_link_closes_the_earlier_one(make_arena):
    arena = make_arena()
    assert not arena.is_admin() and not arena.is_admin("")
    first, second = arena.new_admin(), arena.new_admin()
    client = opened(arena)
    assert client.get(f"/admin/{first}").status_code == 404
    assert client.get(f"/admin/{second}").status_code == 200


def test_the_admin_page_has_the_figures(make_arena):
    arena = make_arena(prompts=4, overlap=2, gold=1, gold_every=2)
    client = opened(arena)
    for name, answer in (("ann", "left"), ("bob", "right")):
        token = arena.add_annotator(name)
        for _ in range(4):
            vote(client, token, answer)
    admin = arena.new_admin()
    page = client.get(f"/admin/{admin}").text
    assert "6</b> of 6 votes" in page and "Krippendorff" in page and "of 1</small>" in page
    rows = [json.loads(line) for line in client.get(f"/admin/{admin}/votes.jsonl").text.splitlines()]
    assert len(rows) == 6 and {row["user_id"] for row in rows} == {"ann", "bob"}


def test_a_full_disk_loses_nothing_and_says_so(make_arena):
    arena = make_arena(prompts=40)
    client, token = opened(arena), arena.add_annotator("ann")
    for _ in range(3):
        assert vote(client, token, **{"hx-request": "true"}).status_code == 200
    shown = re.search(r'data-shown="(\d+)"', client.get(f"/a/{token}").text)[1]
    sent = {"data": {"shown": shown, "answer-0": "left"}, "headers": {"hx-request": "true"}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # whatever is written now fails, as on a full disk
    try:
        answers = [client.post(f"/a/{token}/vote", **sent) for _ in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for answer in answers:
        assert answer.status_code == 507 and "disk is full" in answer.text
        assert answer.headers["hx-retarget"] == "#notice"
    assert len(list(read_votes(arena))) == 3
    assert client.post(f"/a/{token}/vote", **sent).status_code == 200  # and it goes on when there is room
    assert len(list(read_votes(arena))) == 4


def test_htmx_comes_from_the_package_that_is_installed(monkeypatch):
    assert pages.htmx().read_bytes().startswith(b"var htmx=")
    monkeypatch.setattr(pages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unifl\[web\]'"):
        pages.htmx()
