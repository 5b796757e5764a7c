"""What an arena remembers: every vote once, whatever happens."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from unifl.data.preferences import PreferenceSet, read_preferences
from unifl.errors import UserError
from unifl.web.arena import Arena, ArenaSettings, Candidate, PairPlan, plan_pairs, read_results
from unifl.web.arena.export import export_votes
from unifl.web.arena.results import read_votes

MODELS = ("base", "good", "better")


def candidates(prompts=6):
    return [
        Candidate(prompt=f"prompt {p}", file=f"{m}-{p}.png", model=m, seed=p)
        for p in range(prompts)
        for m in MODELS
    ]


@pytest.fixture
def make(tmp_path):
    made = []

    def build(name="arena", *, prompts=6, gold=(), **settings):
        found = candidates(prompts)
        pairs = [*plan_pairs(found), *gold]
        made.append(Arena.create(tmp_path / name, found, pairs, ArenaSettings(**settings)))
        return made[-1]

    yield build
    for arena in made:
        arena.close()


def test_a_full_disk_ends_in_one_line_and_leaves_the_folder_free(tmp_path):
    found = candidates()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # whatever is written now fails, as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write .*\(disk I/O error\); make room"):
            Arena.create(tmp_path / "arena", found, plan_pairs(found))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    Arena.create(tmp_path / "arena", found, plan_pairs(found)).close()


def test_a_log_that_outlived_its_arena_is_not_replayed_into_the_next(tmp_path):
    found = candidates()
    code = (
        "import os, signal, sys\n"
        "from unifl.web.arena import Arena, Candidate, plan_pairs\n"
        "found = [Candidate(prompt='old', file=f'{n}.png', model=str(n), seed=0) for n in range(3)]\n"
        "arena = Arena.create(sys.argv[1], found, plan_pairs(found))\n"
        "arena.add_annotator('ann')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "arena"
    assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == -signal.SIGKILL
    assert (folder / "arena.sqlite-wal").stat().st_size > 0
    (folder / "arena.sqlite").unlink()
    arena = Arena.create(folder, found, plan_pairs(found))
    assert arena.rows("SELECT COUNT(*) FROM annotators") == [(0,)]
    assert arena.rows("SELECT COUNT(*) FROM pictures") == [(len(found),)]
    assert arena.rows("PRAGMA integrity_check") == [("ok",)]
    with pytest.raises(UserError, match="holds an arena already"):
        Arena.create(folder, found, plan_pairs(found))
    (folder / "arena.sqlite").unlink()
    with pytest.raises(UserError, match="another process has the arena"):
        Arena.create(folder, found, plan_pairs(found))
    arena.close()


def join(arena, name):
    return arena.annotator(arena.add_annotator(name))


def judge_all(arena, annotator, choose, axis="overall", limit=10_000):
    """Vote until nothing is left; `choose` is told the files on the left and the right."""
    count = 0
    while count < limit and (shown := arena.next(annotator)) is not None:
        answer = choose(arena.picture(shown.left).name, arena.picture(shown.right).name)
        assert arena.vote(annotator, shown.id, {axis: answer})
        count += 1
    return count


def better(left, right):
    """Everybody who looks carefully."""
    order = [MODELS.index(file.partition("-")[0]) for file in (left, right)]
    return "left" if order[0] > order[1] else "right"


def test_pairs_compare_models_on_one_prompt_and_seed():
    found = candidates()
    pairs = plan_pairs(found)
    assert len(pairs) == 6 * 3
    for pair in pairs:
        one, other = found[pair.first], found[pair.second]
        assert one.prompt == other.prompt and one.seed == other.seed and one.model != other.model
    assert [pair.first for pair in pairs] != sorted(pair.first for pair in pairs)
    assert (
        plan_pairs(found) == pairs
        and plan_pairs(found, seed=1) != pairs
        and len(plan_pairs(found, limit=4)) == 4
    )
    alone = [Candidate(prompt="a", file=f"{n}.png", seed=n) for n in range(4)]
    with pytest.raises(UserError, match="no prompt has two pictures of two models"):
        plan_pairs(alone)
    assert len(plan_pairs(alone, between="samples")) == 6


def test_every_pair_is_judged_by_as_many_as_asked_and_by_nobody_twice(make):
    arena = make(overlap=2)
    people = [join(arena, name) for name in ("ann", "bob", "cia")]
    counts = [judge_all(arena, one, better, limit=12) for one in people]
    assert counts == [12, 12, 12] and arena.next(people[0]) is None  # 18 pairs, each by two
    votes = list(read_votes(arena))
    by_pair = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, set()).add(vote.annotator)
    assert len(votes) == 36 and len(by_pair) == 18 and all(len(names) == 2 for names in by_pair.values())


def test_sides_are_blind_and_votes_are_about_pictures(make):
    arena = make(prompts=60)
    ann = join(arena, "ann")
    on_the_left = []

    def look(left, right):
        on_the_left.append(better(left, right) == "left")
        return better(left, right)

    judge_all(arena, ann, look)
    assert 0.35 < np.mean(on_the_left) < 0.65 and len(on_the_left) == 180
    results = read_results(arena)
    assert all(interval.value in (0, 1) for interval in results.wins.values())
    assert results.wins["base", "good"].value == 0 and results.votes == 180


def test_a_reload_shows_the_same_pair_and_a_vote_sent_twice_counts_once(make):
    arena = make()
    ann, bob = join(arena, "ann"), join(arena, "bob")
    shown = arena.next(ann)
    assert arena.next(ann) == shown and arena.next(bob).id != shown.id
    assert arena.vote(ann, shown.id, {"overall": "left"}) is True
    assert arena.vote(ann, shown.id, {"overall": "left"}) is False
    assert arena.next(ann).done == 1
    with pytest.raises(UserError, match="has your vote already"):
        arena.vote(ann, shown.id, {"overall": "right"})
    with pytest.raises(UserError, match="was not shown to you"):
        arena.vote(bob, shown.id, {"overall": "left"})
    with pytest.raises(UserError, match="a vote says left, same, right for each of overall"):
        arena.vote(ann, arena.next(ann).id, {"overall": "up"})
    with pytest.raises(UserError, match="a vote says"):
        arena.vote(ann, arena.next(ann).id, {"overall": "left", "layout": "left"})
    assert len(list(read_votes(arena))) == 1


def test_undo_opens_the_last_pair_again(make):
    arena = make(prompts=2)
    ann = join(arena, "ann")
    assert arena.undo(ann, None) is None
    seen = []
    for answer in ("left", "right", "same"):
        seen.append(arena.next(ann))
        arena.vote(ann, seen[-1].id, {"overall": answer})
    waiting = arena.next(ann)
    again = arena.undo(ann, waiting.id)
    assert (again.id, again.left, again.right, again.done) == (seen[2].id, seen[2].left, seen[2].right, 2)
    assert arena.next(ann).id == again.id
    assert arena.undo(ann, again.id).id == seen[1].id and arena.next(ann).id == seen[1].id  # and once more
    for behind in (again.id, waiting.id, None):  # a page that did not get the answer
        assert arena.undo(ann, behind).id == seen[1].id
    assert len(list(read_votes(arena))) == 1
    count = judge_all(arena, ann, better)
    assert count == 5 and len(list(read_votes(arena))) == 6  # what was waiting came again
    assert waiting.id in {row[0] for row in arena.rows("SELECT id FROM shown WHERE state = 'judged'")}
    assert arena.next(ann) is None
    assert arena.undo(ann, None).done == 5  # from the page that says that all is done


def test_what_is_left_lying_goes_to_somebody_else(make, monkeypatch):
    arena = make(prompts=1)  # three pairs
    ann, bob = join(arena, "ann"), join(arena, "bob")
    lying = arena.next(ann)
    assert judge_all(arena, bob, better) == 2
    later = time.time() + 3600
    monkeypatch.setattr("unifl.web.arena.giving.time.time", lambda: later)
    assert judge_all(arena, bob, better) == 1
    # and the first one's vote is not refused when it comes after all
    assert arena.vote(ann, lying.id, {"overall": "same"})
    assert len(list(read_votes(arena))) == 4


def test_a_pair_that_two_left_lying_is_given_twice_again(make, monkeypatch):
    arena = make(prompts=1, overlap=2)  # three pairs, two votes each
    people = [join(arena, name) for name in ("ann", "bob")]
    lying = []
    for person in people:  # two of the three, so that the last one lies open with both
        for _ in range(2):
            arena.vote(person, arena.next(person).id, {"overall": "same"})
        lying.append(arena.next(person))
    assert len({frozenset((one.left, one.right)) for one in lying}) == 1
    later = time.time() + 3600
    monkeypatch.setattr("unifl.web.arena.giving.time.time", lambda: later)
    rest = [judge_all(arena, join(arena, name), better) for name in ("cat", "dan")]
    assert rest == [1, 1]


def test_known_pairs_come_now_and_then_and_tell_who_looks(make):
    gold = [PairPlan(first=0, second=1, gold=0.0), PairPlan(first=3, second=5, gold=0.0)]
    arena = make(gold=gold, gold_every=3, overlap=2)
    ann, bob = join(arena, "ann"), join(arena, "bob")
    judge_all(arena, ann, better)
    judge_all(arena, bob, lambda left, right: "left" if better(left, right) == "right" else "right")
    results = read_results(arena)
    assert results.right == {"ann": (1.0, 2), "bob": (0.0, 2)}
    assert results.votes == 36 and len(list(read_votes(arena))) == 40
    assert results.agreement == pytest.approx(-1, abs=0.1)


def test_ranks_agreement_and_several_axes(make):
    arena = make(prompts=40, overlap=2, axes=("quality", "layout"))
    rng = np.random.default_rng(9)
    for name in ("ann", "bob"):
        person = join(arena, name)
        while (shown := arena.next(person)) is not None:
            said = better(*(arena.picture(n).name for n in (shown.left, shown.right)))
            other = {"left": "right", "right": "left"}[said]
            quality = said if rng.random() < 0.85 else other
            layout = str(rng.choice(["left", "same", "right"]))
            arena.vote(person, shown.id, {"quality": quality, "layout": layout}, milliseconds=900)
    quality, layout = read_results(arena), read_results(arena, "layout")
    assert quality.ranking.names == ("better", "good", "base") and quality.unranked == ""
    assert quality.ranking.strengths[0].low > quality.ranking.strengths[2].high
    assert quality.agreement > 0.3 > abs(layout.agreement)
    assert all(interval.low < 0.5 < interval.high for interval in layout.wins.values())
    with pytest.raises(UserError, match="asks for quality, layout, not for 'colour'"):
        read_results(arena, "colour")


def test_too_few_votes_give_no_ranks_but_a_reason(make):
    arena = make()
    assert (
        read_results(arena).unranked == "no vote compares two models"
        and read_results(arena).agreement is None
    )
    judge_all(arena, join(arena, "ann"), better)
    assert "won or lost every comparison" in read_results(arena).unranked


def test_votes_are_preference_data(make, tmp_path):
    arena = make(prompts=3)
    for one in candidates(3):
        value = 40 + 60 * MODELS.index(one.model)
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(arena.folder / one.file)
    judge_all(arena, join(arena, "ann"), better, limit=8)
    assert export_votes(arena, tmp_path / "votes.jsonl") == 8
    pairs = PreferenceSet(read_preferences(tmp_path / "votes.jsonl"), resolution=16)
    assert len(pairs) == 8 and pairs.users == ["ann"]
    assert all(float(pair.win.mean()) > float(pair.lose.mean()) for pair in pairs)


def test_tokens_are_not_in_the_file(make):
    arena = make()
    token = arena.add_annotator("ann")
    assert arena.annotator(token).name == "ann" and arena.annotator(token + "x") is None
    assert arena.annotator("") is None and arena.annotator("\ud800") is None
    arena.rows("PRAGMA wal_checkpoint")
    assert token.encode() not in (arena.folder / "arena.sqlite").read_bytes()
    with pytest.raises(UserError, match="an annotator 'ann' already"):
        arena.add_annotator(" ann ")
    with pytest.raises(UserError, match="needs a name"):
        arena.add_annotator(" ")


def test_an_arena_is_opened_again_and_by_one_alone(make, tmp_path):
    arena = make()
    token = arena.add_annotator("ann")
    shown = arena.next(arena.annotator(token))
    with pytest.raises(UserError, match="another process has the arena"):
        Arena(arena.folder)
    with pytest.raises(UserError, match="holds an arena already"):
        Arena.create(arena.folder, candidates(), plan_pairs(candidates()))
    arena.close()
    again = Arena(arena.folder)
    assert again.next(again.annotator(token)) == shown and again.settings == ArenaSettings()
    again.close()
    with pytest.raises(UserError, match="holds no arena"):
        Arena(tmp_path / "nothing")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "arena.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="no database, or damaged|holds no arena"):
        Arena(tmp_path / "bad")
    with sqlite3.connect(tmp_path / "bad" / "other.sqlite") as other:
        other.execute("CREATE TABLE about (key TEXT, value TEXT)")
        other.execute("INSERT INTO about VALUES ('format', '9')")
    other.close()
    (tmp_path / "bad" / "other.sqlite").replace(tmp_path / "bad" / "arena.sqlite")
    with pytest.raises(UserError, match="has format 9"):
        Arena(tmp_path / "bad")
    with pytest.raises(UserError, match="whose answer is not known"):
        Arena.create(tmp_path / "none", candidates(), [PairPlan(first=0, second=1, gold=1.0)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": ()}, "name one or more"),
        ({"axes": ("a", "a")}, "each once"),
        ({"overlap": 0}, "1 annotator or more"),
        ({"gold_every": 1}, "2 or more"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        ArenaSettings(**settings)


def test_many_at_once_lose_and_double_nothing(make):
    arena = make(prompts=80, overlap=2)
    people = [join(arena, f"person {n}") for n in range(8)]
    acknowledged = [0] * len(people)

    def work(at):
        acknowledged[at] = judge_all(arena, people[at], better)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(people))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = list(read_votes(arena))
    assert len(votes) == sum(acknowledged) == 2 * 240
    assert len({(vote.pair, vote.annotator) for vote in votes}) == len(votes)


VOTER = """
import sys
from unifl.web.arena import Arena
arena = Arena(sys.argv[1])
ann = arena.annotator(sys.argv[2])
while (shown := arena.next(ann)) is not None:
    arena.vote(ann, shown.id, {"overall": "left"})
    print(shown.id, flush=True)
"""


def test_a_kill_loses_no_acknowledged_vote(make):
    arena = make(prompts=2000)
    token = arena.add_annotator("ann")
    arena.close()
    acknowledged = set()
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", VOTER, str(arena.folder), token], stdout=subprocess.PIPE
        )
        for _ in range(60):
            acknowledged.add(int(process.stdout.readline()))
        os.kill(process.pid, signal.SIGKILL)
        acknowledged |= {int(line) for line in process.stdout.read().split(b"\n")[:-1] if line}
        process.wait()
    again = Arena(arena.folder)
    kept = [row[0] for row in again.rows("SELECT shown FROM votes WHERE withdrawn = 0")]
    assert len(acknowledged) >= 180 and acknowledged <= set(kept) and len(kept) == len(set(kept))
    assert len(kept) <= len(acknowledged) + 3  # one per kill may be on the disk and not told
    again.close()
