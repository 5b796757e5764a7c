"""`unifl arena`."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from arena_pictures import draw
from typer.testing import CliRunner

from unifl.cli import app, arena_serving
from unifl.web.arena import Arena, read_results
from unifl.web.arena.gather import LONGEST_PROMPT


@pytest.fixture
def unifl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "before", "base", ["a cat", "a dog"])
    draw(tmp_path / "after", "good", ["a cat", "a dog"])
    return lambda *arguments: CliRunner().invoke(app, ["arena", *arguments])


def said(result):
    return " ".join(result.output.split())


def judged(folder, answer="left"):
    """Let ann judge everything."""
    arena = Arena(folder)
    ann = arena.annotator(arena.add_annotator("ann"))
    while (shown := arena.next(ann)) is not None:
        arena.vote(ann, shown.id, dict.fromkeys(arena.settings.axes, answer))
    return arena


def test_the_demo_leaves_an_arena_of_ones_own_alone(unifl, tmp_path, monkeypatch):
    assert unifl("make", "runs/arena", "--pictures", "before", "--pictures", "after").exit_code == 0
    drawn, served = [], []

    def draw_demo(folder, **_):
        drawn.append(folder)
        return {"first": tmp_path / "before", "second": tmp_path / "after"}

    monkeypatch.setattr("unifl.assembly.arena.draw_demo", draw_demo)
    monkeypatch.setattr(
        sys.modules["unifl.cli.arena"], "open_and_serve", lambda folder, *_: served.append(folder)
    )
    for _ in range(2):
        assert unifl("demo").exit_code == 0
    assert len(drawn) == 1 and served[0] == served[1] != Path("runs/arena")


def test_from_folders_to_an_export_and_back(unifl, tmp_path):
    made = unifl("make", "arena", "--pictures", "before", "--pictures", "new=after", "--question", "Which?")
    assert made.exit_code == 0 and "2 pairs of 4 pictures" in said(made), made.output
    with_votes = judged(tmp_path / "arena")
    results = unifl("results", "arena")  # while it is open
    assert results.exit_code == 0 and "2 of 2 votes on overall" in said(results), results.output
    assert unifl("export", "arena", "votes.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert {row["model_0"] for row in rows} | {row["model_1"] for row in rows} == {"base", "new"}
    again = unifl("import", "again", "votes.jsonl", "--overlap", "2")
    assert again.exit_code == 0 and "2 votes on 2 pairs" in said(again), again.output
    imported = Arena(tmp_path / "again")
    first, second = read_results(with_votes), read_results(imported)
    assert first.wins == second.wins and first.votes == second.votes
    bob = imported.annotator(imported.add_annotator("bob"))
    assert imported.next(bob).left_over == 2  # and they can be judged again
    with_votes.close()
    imported.close()


def test_an_export_with_pictures_goes_anywhere(unifl, tmp_path):
    unifl("make", "arena", "--pictures", "before", "--pictures", "after")
    judged(tmp_path / "arena").close()
    assert "2 votes in votes.parquet" in said(unifl("export", "arena", "votes.parquet"))
    (tmp_path / "arena").rename(tmp_path / "elsewhere")
    again = unifl("import", "again", "votes.parquet")
    assert again.exit_code == 0 and "2 votes on 2 pairs" in said(again), again.output
    assert unifl("export", "again", "again.parquet").exit_code == 0
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "votes.parquet").read_bytes()


def test_results_are_told_whatever_people_and_models_are_called(unifl, tmp_path):
    unifl("make", "arena", "--pictures", "[/b]old=before", "--pictures", "[red]new=after")
    empty = unifl("results", "arena")
    assert empty.exit_code == 0 and "no ranks: no vote compares two models" in said(empty), empty.output
    assert "against" not in empty.output and "annotator" not in empty.output  # no table without rows
    arena = Arena(tmp_path / "arena")
    person = arena.annotator(arena.add_annotator("ann [/b]"))
    while (shown := arena.next(person)) is not None:
        arena.vote(person, shown.id, {"overall": "left"})
    arena.close()
    results = unifl("results", "arena")
    assert results.exit_code == 0, results.output
    for name in ("[/b]old", "[red]new", "ann [/b]"):
        assert name in results.output


def test_known_pairs_come_from_preference_data(unifl, tmp_path):
    rows = [{"prompt": "a cat", "chosen": "after/00000_0.png", "rejected": "before/00000_0.png"}]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = unifl(
        *("make", "arena", "--pictures", "before", "--pictures", "after"),
        *("--gold", "known.jsonl", "--gold-every", "2"),
    )
    assert "and 1 whose answer is known" in said(made), made.output
    arena = judged(tmp_path / "arena", "left")
    ((right, number),) = read_results(arena).right.values()
    assert number == 1 and right in (0, 1) and read_results(arena).votes == 2
    arena.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "new"], "there are no pictures"),
        (["make", "new", "--pictures", "nothing"], "nothing has no metadata.jsonl"),
        (["make", "new", "--pictures", "before"], "no prompt has two pictures of two models"),
        (["make", "new", "--pictures", "before", "--model", "world:pipeline"], "models need prompts to draw"),
        (["make", "new", "--pictures", "before", "--pictures", "same"], "both have pictures of 'base'"),
        (["make", "new", "--pictures", "before", "--pictures", "long"], "a page shows 10000 at most"),
        (["make", "new", "--pictures", "before", "--pictures", "broken"], "1 of 4 pictures cannot be shown"),
        (["make", "there", "--pictures", "before"], "holds an arena already"),
        (["serve", "nothing"], "holds no arena"),
        (["serve", "there", "--port", "PORT"], "another program has it"),
        (["serve", "there", "--root-path", "arena/"], "begins with a slash"),
        (["serve", "there", "--url", "example.org/arena"], "begins with http:// or https://"),
        (["serve", "there", "--proxy", "nginx"], "give the address from which the proxy connects"),
        (
            ["serve", "there", "--annotator", "ann", "--annotator", " "],
            "an --annotator has no name; write one",
        ),
        (["results", "there", "--axis", "colour"], "asks for overall, not for 'colour'; name one of these"),
        (["export", "there", "votes.csv"], "cannot write pairs to votes.csv; use a .jsonl or .parquet file"),
        (["export", "there", "there.jsonl"], "is a folder; name a file"),
        (["import", "new", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_wrong_use_is_one_line(unifl, tmp_path, arguments, message):
    draw(tmp_path / "same", "base", ["a cat"])
    draw(tmp_path / "long", "good", ["a" * (LONGEST_PROMPT + 1)])
    draw(tmp_path / "broken", "good", ["a cat", "a dog"])
    (tmp_path / "there.jsonl").mkdir()
    (tmp_path / "broken" / "00001_0.png").write_bytes(b"no picture")
    assert unifl("make", "there", "--pictures", "before", "--pictures", "after").exit_code == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = unifl(*(port if word == "PORT" else word for word in arguments))
    assert result.exit_code == 2 and message in said(result), result.output
    assert said(result).count("error:") == 1
    there = Arena(tmp_path / "there", look_only=True)
    assert not there.rows("SELECT name FROM annotators") and not there.is_admin()  # no link is lost
    there.close()


def test_pictures_that_are_gone_stop_the_server_before_it_starts(unifl, tmp_path):
    unifl("make", "arena", "--pictures", "before", "--pictures", "after")
    files = sorted((tmp_path / "arena" / "pictures").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:50])
    result = unifl("serve", "arena", "--port", "0")
    assert result.exit_code == 2 and "2 of 4 pictures cannot be shown" in said(result), result.output


@pytest.fixture
def start(unifl, tmp_path):
    """Serve an arena by the command: `start("--annotator", "ann")` gives the process and what it printed."""
    assert unifl("make", "arena", "--pictures", "before", "--pictures", "after").exit_code == 0
    started = []

    def begin(*arguments, last="The arena is at", ignores=None):
        command = [sys.executable, "-m", "unifl.cli", "arena", "serve", "arena", "--port", "0", *arguments]
        if ignores is not None:
            deaf = f"import os, signal; signal.signal({int(ignores)}, signal.SIG_IGN); "
            command = [sys.executable, "-c", f"{deaf}os.execv({command[0]!r}, {command!r})"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        started.append(process)
        lines = []
        while not lines or not lines[-1].startswith(last):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        return process, "".join(lines)

    yield begin
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def test_serving_prints_links_once(start, tmp_path):
    process, printed = start("--annotator", "ann")
    links = dict(re.findall(r"^(ann|admin page): (http\S+)$", printed, flags=re.M))
    assert links.keys() == {"ann", "admin page"}
    for link in links.values():
        answer = httpx.get(link)
        assert answer.status_code == 200 and "server" not in answer.headers
    second = subprocess.run(
        [sys.executable, "-m", "unifl.cli", "arena", "serve", "arena"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert second.returncode == 2 and "another process has the arena" in second.stderr
    process.send_signal(signal.SIGINT)
    assert "stopped; every vote is in arena" in process.communicate(timeout=20)[0]
    _, printed = start("--annotator", "ann")
    assert "http" not in printed.partition("The arena is at")[0] and "ann is known here already" in printed
    port = re.search(r":(\d+);", printed)[1]
    assert httpx.get(re.sub(r":\d+/", f":{port}/", links["ann"])).status_code == 200


def test_links_for_other_machines_have_an_address_that_these_can_reach(start):
    _, printed = start("--host", "0.0.0.0", last="Where others")
    link = re.search(r"^annotator 1: (\S+)$", printed, flags=re.M)[1]
    assert "0.0.0.0" not in printed and "give it by --url" in printed
    assert httpx.get(link, trust_env=False).status_code == 200


def test_a_machine_without_a_network_goes_by_its_name(monkeypatch):
    def unreachable(self, address):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", type("Alone", (socket.socket,), {"connect": unreachable}))
    assert arena_serving._name("0.0.0.0") == socket.gethostname()
    assert arena_serving._name("::1") == "[::1]" and arena_serving._name("lab.local") == "lab.local"


def test_links_begin_with_the_url_that_is_given(start):
    _, printed = start("--annotator", "ann", "--url", "https://example.org/arena/", last="The arena is at")
    links = re.findall(r"https://\S+", printed)
    assert len(links) == 3 and all(link.startswith("https://example.org/arena") for link in links)
    assert "/arena//" not in printed


def test_a_signal_right_after_the_links_ends_the_server(start):
    """Also where Ctrl-C is ignored, as in the background of a shell: from the first line on the server handles it."""
    process, _ = start("--annotator", "ann", ignores=signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert "stopped; every vote is in arena" in process.communicate(timeout=20)[0]
