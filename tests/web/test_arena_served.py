"""The arena as it is served: requests that do not come whole, and proxies whose headers are believed or not."""

from __future__ import annotations

import re
import resource
import socket
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from arena_attacks import SERVED
from PIL import Image

from unifl.web.arena.connections import Connection
from unifl.web.arena.results import read_votes
from unifl.web.arena.security import HEADERS, Limits
from unifl.web.arena.serve import allow_files


class Impatient(Connection):
    patience = 0.4


QUICK = Limits(patience=0.4)


def held(url, sent, *, drip=b"", longest=8.0):
    """Send a part of a request, and then a byte now and then; what is answered, and the seconds until it is closed."""
    address = urlsplit(url)
    began = time.monotonic()
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(sent)
        connection.settimeout(0.1)
        answer = b""
        while time.monotonic() - began < longest:
            try:
                if (more := connection.recv(65536)) == b"":
                    return answer.decode(), time.monotonic() - began
                answer += more
            except TimeoutError:
                if drip:
                    connection.sendall(drip)
            except ConnectionError:
                return answer.decode(), time.monotonic() - began
    raise AssertionError(f"the connection was still open after {longest} s; it said {answer!r:.200}")


def half_a_vote(token, *, length=100):
    head = f"POST /a/{token}/vote HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    return f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\nshown=1".encode()


CONNECTIONS = {
    "half a body, and a byte now and then": (half_a_vote("nobody"), "408"),
    "half a body of what is refused without it": (half_a_vote("nobody", length=10**7), "413"),
    "a GET with half a body": (
        b"GET /a/nobody HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
        "404",
    ),
    "half a head, and a byte now and then": (b"GET /a/nobody HTTP/1.1\r\nHost: x\r\nX-Slow: ", ""),
    "nothing": (b"", ""),
}


@pytest.mark.parametrize("tried", CONNECTIONS)
def test_what_does_not_come_whole_is_not_waited_for(make_arena, serving, tried):
    arena = make_arena()
    url, token = serving(arena, QUICK, http=Impatient), arena.add_annotator("ann")
    sent, status = CONNECTIONS[tried]
    for drip in (b"a", b"") if sent else (b"",):
        answer, seconds = held(
            url, sent.replace(b"nobody", token.encode()) if status == "408" else sent, drip=drip
        )
        assert seconds < 4 and (answer.split()[1:2] or [""])[0] == status
        if status:
            for name, value in HEADERS.items():
                assert f"{name.lower()}: {value}" in answer
    assert not list(read_votes(arena)) and httpx.get(f"{url}/a/{token}").status_code == 200


def test_who_judges_slowly_is_not_cut_off(make_arena, serving):
    """A connection on which whole requests come is kept, and one on which an answer is being made."""
    arena = make_arena()
    url, token = serving(arena, Limits(patience=5.0), http=Impatient), arena.add_annotator("ann")
    with httpx.Client() as client:
        for _ in range(5):
            assert client.get(f"{url}/a/{token}").status_code == 200
            time.sleep(0.2)
    address, vote = urlsplit(url), b"shown=1&answer-0=left"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(half_a_vote(token, length=len(vote)))
        time.sleep(1.0)  # longer than a head may take, shorter than a body
        connection.sendall(vote.removeprefix(b"shown=1"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 303 ")
    assert len(list(read_votes(arena))) == 1


def slowly(url, path, *, seconds):
    """What a phone on a bad line gets of a large answer that takes so long to arrive."""
    address = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.settimeout(5.0)
        began, found = time.monotonic(), b""
        while (
            time.monotonic() - began < seconds
        ):  # a trickle at first, the rest once the patience is long over
            found += connection.recv(4096)
            time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while more := connection.recv(1 << 20):
            found += more
            if found.endswith(b"0\r\n\r\n"):
                break
    head, _, body = found.partition(b"\r\n\r\n")
    return head, body


def test_a_slow_download_is_not_cut_off(make_arena, serving):
    """A picture is handed to the connection at once, an export piece by piece."""
    arena = make_arena(prompts=1)
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    for number in range(2):
        Image.fromarray(pixels).save(arena.picture(number), compress_level=0)
    url, token, admin = serving(arena, http=Impatient), arena.add_annotator("ann"), arena.new_admin()
    shown = arena.next(arena.annotator(token))
    head, body = slowly(url, f"/a/{token}/picture/{shown.id}/left", seconds=1.5)
    content = arena.picture(shown.left).read_bytes()
    assert b"200 OK" in head and len(content) > 6e6 and body == content
    arena.vote(arena.annotator(token), shown.id, {"overall": "left"})
    head, body = slowly(url, f"/admin/{admin}/votes.parquet", seconds=1.5)
    assert b"200 OK" in head and len(body) > 2 * len(content) and body.endswith(b"PAR1\r\n0\r\n\r\n")


def test_who_holds_all_connections_holds_them_for_a_while(make_arena, serving):
    arena = make_arena()
    url = serving(arena, http=Impatient, limit_concurrency=4)
    address = urlsplit(url)
    holding = [socket.create_connection((address.hostname, address.port)) for _ in range(4)]
    for connection in holding:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    assert httpx.get(f"{url}/a/nobody").status_code == 503
    time.sleep(1.0)
    assert httpx.get(f"{url}/a/nobody").status_code == 404
    for connection in holding:
        connection.close()


def test_who_comes_beyond_all_is_closed_at_once(make_arena, serving):
    """Otherwise the process runs out of files, and nobody who judges gets a picture."""
    arena = make_arena()
    few = type("Few", (Connection,), {"most": 6})
    url, token = serving(arena, http=few, limit_concurrency=4), arena.add_annotator("ann")
    address = urlsplit(url)
    with httpx.Client() as early:
        assert early.get(f"{url}/a/{token}").status_code == 200
        holding = [socket.create_connection((address.hostname, address.port)) for _ in range(9)]
        time.sleep(0.3)
        closed = []
        for connection in holding:
            connection.settimeout(0.1)
            try:
                closed.append(connection.recv(1) == b"")
            except TimeoutError:
                closed.append(False)
            except ConnectionError:
                closed.append(True)
            connection.close()
        assert closed == [False] * 5 + [True] * 4
        time.sleep(0.3)
        assert early.get(f"{url}/a/{token}").status_code == 200


def test_the_server_may_open_a_file_for_each_connection():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        allow_files(Connection.most + 500)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(2500, hard), hard)
        allow_files(100)  # never fewer
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(2500, hard), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def strangers(url, number, forwarded):
    """Statuses of requests with tokens of nobody, each with a header of its own."""
    with httpx.Client() as client:
        return [
            client.get(f"{url}/a/{n}", headers={"x-forwarded-for": forwarded(n)}).status_code
            for n in range(number)
        ]


PROXIES = {
    "the 61 with another X-Forwarded-For each time, without `--proxy`": (None, "192.0.2.{}"),
    "the same from an address that `--proxy` does not name": ("10.9.8.7,172.17.0.0/16", "192.0.2.{}"),
    "addresses that a client writes before the one that the proxy adds": (
        "127.0.0.1",
        "192.0.2.{}, 198.51.100.7",
    ),
}


@pytest.mark.parametrize("tried", PROXIES)
def test_a_forged_address_changes_nothing(make_arena, serving, tried):
    proxy, forwarded = PROXIES[tried]
    url = serving(make_arena(), proxy=proxy)
    assert strangers(url, 63, forwarded.format) == [404] * 60 + [429] * 3


@pytest.mark.parametrize("proxy", ["127.0.0.1", "10.9.8.7,127.0.0.0/8"])
def test_the_proxy_is_believed(make_arena, serving, proxy):
    arena = make_arena()
    url = serving(arena, proxy=proxy)
    assert strangers(url, 63, "192.0.2.{}".format) == [404] * 63
    assert strangers(url, 61, lambda n: "198.51.100.8") == [404] * 60 + [429]  # one of them goes on
    admin = httpx.post(
        f"{url}/admin/{arena.new_admin()}/people",
        data={"name": "ann"},
        headers={"x-forwarded-proto": "https", "host": "example.org"},
    )
    assert re.search(r'value="https://example\.org/a/[\w-]{32}"', admin.text)


def test_the_rows_of_the_docs_are_these():
    assert [one.tried for one in SERVED] == [*CONNECTIONS, *PROXIES]
