"""What an arena is made of: pairs whose answer is known, votes from elsewhere, and mistakes that are told first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from arena_pictures import draw
from typer.testing import CliRunner

from unifl.assembly import arena as drawing
from unifl.cli import app
from unifl.errors import UserError
from unifl.testing import tiny_folder
from unifl.web.arena import Arena, ArenaSettings, read_results
from unifl.web.arena.judged_pairs import read_judged
from unifl.web.arena.make import make_arena, named_folders, read_known
from unifl.web.arena.results import read_votes

PROMPTS = ["a cat", "a dog", "a fox"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures of two models below the current folder; nothing may be drawn."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "before", "base", PROMPTS)
    draw(tmp_path / "after", "good", PROMPTS)

    def drawn(*arguments, **more):
        raise AssertionError("pictures were drawn before the mistake was told")

    monkeypatch.setattr(drawing, "open_model", drawn)
    return tmp_path


def write(folder, *rows):
    """Preference data of pictures after and before; a row is (prompt number, what after is worth, more columns)."""
    lines = [
        {
            "caption": PROMPTS[number],
            "jpg_0": f"after/{number:05d}_0.png",
            "jpg_1": f"before/{number:05d}_0.png",
            "label_0": value,
            "label_1": 1 - value,
            **more,
        }
        for number, value, more in rows
    ]
    (folder / "votes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "votes.jsonl"


def command(*arguments):
    result = CliRunner().invoke(app, ["arena", *arguments])
    return result.exit_code, " ".join(result.output.split())


NOBODY, ANN, BOB = {}, {"user_id": "ann"}, {"user_id": "bob"}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("who", [(NOBODY, NOBODY), (ANN, BOB), (ANN, ANN), (ANN, NOBODY)], ids=str)
def test_a_contradiction_is_no_known_answer(folder, turned, who):
    said = [(0, 1.0, who[0]), (0, 0.0, who[1])]
    judged = read_judged(write(folder, *(said[::-1] if turned else said), (1, 0.0, NOBODY)), "known")
    ((known),) = judged.known(10)
    winner = judged.candidates[(known.first if known.gold else known.second) - 10]
    assert winner.prompt == "a dog"
    assert judged.pictures[winner.file] == judged.index.win[2]  # before won


def test_the_later_vote_of_a_person_counts_whatever_the_order_of_rows(folder):
    rows = [(0, 1.0, ANN | {"ranking_id": 7}), (0, 0.0, ANN | {"ranking_id": 3})]
    judged = read_judged(write(folder, *rows), "imported")
    assert judged.repeated == 1 and len(judged.votes) == 1
    (vote,) = judged.votes
    pair = judged.pairs[vote.pair]
    winner = pair.first if vote.answers["overall"] else pair.second
    assert (
        judged.pictures[judged.candidates[winner].file] == judged.index.win[0]
    )  # of the row with ranking_id 7


@pytest.mark.parametrize("form", ["chosen", "best"])
def test_people_who_agree_about_imported_pairs_are_said_to(folder, form):
    """Were the winner always the first picture, agreement could not be told from chance."""
    rows = []
    for number in range(3):
        for who, sure in (("ann", True), ("bob", number > 0)):  # they differ about one of the three
            after, before = f"after/{number:05d}_0.png", f"before/{number:05d}_0.png"
            won, lost = (after, before) if sure else (before, after)
            if form == "chosen":
                row = {"prompt": PROMPTS[number], "chosen": won, "rejected": lost, "user": who}
            else:
                shown = (after, before) if number == 1 else (before, after)
                row = {
                    "caption": PROMPTS[number],
                    "jpg_0": shown[0],
                    "jpg_1": shown[1],
                    "best_image_uid": won,
                }
                row |= {"image_0_uid": shown[0], "image_1_uid": shown[1], "user_id": who}
                row |= {f"model_{at}": file.partition("/")[0] for at, file in enumerate(shown)}
            rows.append(row)
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("import", "arena", "votes.jsonl")[0] == 0
    arena = Arena(folder / "arena", look_only=True)
    votes = list(read_votes(arena))
    values = {(vote.annotator, vote.prompt): vote.answers["overall"] for vote in votes}
    assert [values["ann", one] == values["bob", one] for one in PROMPTS] == [False, True, True]
    if form == "best":
        assert [vote.models[0] for vote in votes] == [
            "before",
            "before",
            "after",
            "after",
            "before",
            "before",
        ]
        assert read_results(arena).wins["after", "before"].value == pytest.approx(5 / 6)
        assert 0 < read_results(arena).agreement < 1
    arena.close()


def test_sides_of_imported_pairs_are_as_good_as_a_coin(folder):
    rows = [
        {"prompt": f"prompt {n}", "chosen": "after/00000_0.png", "rejected": "before/00000_0.png"}
        for n in range(200)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = read_judged("pairs.jsonl", "imported")
    values = [vote.answers["overall"] for vote in judged.votes]
    assert 80 < sum(values) < 120 and len(values) == 200
    for vote in judged.votes:
        pair = judged.pairs[vote.pair]
        winner = judged.candidates[pair.first if vote.answers["overall"] else pair.second]
        assert judged.pictures[winner.file] == judged.index.win[0]


def test_an_import_that_is_stopped_leaves_no_arena_without_its_votes(folder, monkeypatch):
    data = write(folder, (0, 1.0, ANN), (1, 0.0, BOB))

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unifl.web.arena.new.hashed", stop)  # in the middle of what is written
        assert command("import", "arena", data)[0] == 130
    assert not (folder / "arena" / "arena.sqlite").exists()
    code, said = command("import", "arena", data)
    assert code == 0 and "2 votes on 2 pairs" in said


def test_an_import_tells_what_it_leaves_out(folder):
    rows = [(0, 1.0, NOBODY), (0, 0.0, NOBODY), (0, 1.0, NOBODY), (0, 1.0, ANN), (1, 1.0, BOB), (1, 0.0, BOB)]
    code, said = command("import", "arena", write(folder, *rows))
    assert code == 0 and "3 votes on 2 pairs" in said, said
    assert "3 more rows left out: an arena keeps one vote of each person about a pair, the last one" in said
    assert "without a user_id count as one person's" in said
    code, said = command("import", "clean", write(folder, (0, 1.0, ANN), (0, 0.0, BOB)))
    assert code == 0 and "2 votes on 1 pairs" in said and "left out" not in said
    arena = Arena(folder / "clean", look_only=True)
    assert read_results(arena).votes == 2
    arena.close()


def test_an_import_checks_its_settings_before_it_copies(folder):
    code, said = command("import", "arena", write(folder, (0, 1.0, ANN)), "--overlap", "0")
    assert code == 2 and "a pair needs 1 annotator or more" in said
    assert not (folder / "arena").exists()


@pytest.mark.parametrize(
    ("axes", "about", "message"),
    [
        (("overall",), "layout", "are about layout, and the arena asks for overall; ask for layout as well"),
        (("layout", "colour"), None, "does not say which of layout, colour its answers are about"),
        (("layout", "colour"), "overall", "are about overall, and the arena asks for layout, colour"),
    ],
)
def test_known_answers_about_something_else_are_refused(folder, axes, about, message):
    data = write(folder, (0, 1.0, {} if about is None else {"axis": about}))
    with pytest.raises(UserError, match=message):
        read_known(data, axes)


@pytest.mark.parametrize(("about", "answered"), [("colour", {"colour"}), (None, {"overall"})])
def test_known_answers_are_about_their_axis_alone(folder, about, answered):
    axes = ("overall",) if about is None else ("layout", "colour")
    gold = read_known(write(folder, (0, 1.0, {} if about is None else {"axis": about})), axes)
    candidates = named_folders(["before", "after"])
    settings = ArenaSettings(axes=axes, gold_every=2)
    assert make_arena(folder / "arena", candidates, settings, gold=gold) == (3, 1)
    arena = Arena(folder / "arena")
    ann = arena.annotator(arena.add_annotator("ann"))
    while (shown := arena.next(ann)) is not None:
        arena.vote(ann, shown.id, dict.fromkeys(axes, "left"))
    for axis in axes:
        right = read_results(arena, axis).right
        assert {name: number for name, (_, number) in right.items()} == (
            {"ann": 1} if axis in answered else {}
        )
    arena.close()


PAIR = ("--pictures", "before", "--pictures", "after")
DRAWN = ("--model", "one=world:pipeline", "--model", "two=world:pipeline", "--prompts", "prompts.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*DRAWN, "--gold", "nothing.jsonl"), "nothing.jsonl"),
        ((*DRAWN, "--gold", "ties.jsonl"), "has no pair whose answer is clear; give pairs that somebody won"),
        ((*DRAWN, "--gold", "broken.jsonl"), "cannot read the image"),
        ((*DRAWN, "--pictures", "nothing"), "nothing has no metadata.jsonl"),
        ((*DRAWN, "--pictures", "cut"), "1 of 3 pictures cannot be shown"),
        ((*DRAWN, "--pictures", "large"), "has the seed 9223372036854775808; arenas keep"),
        ((*DRAWN, "--overlap", "0"), "a pair needs 1 annotator or more"),
        ((*DRAWN, "--model", "one=world:pipeline"), "are both called 'one'; give them names"),
        (
            ("--model", "world:pipeline", "--prompts", "prompts.txt"),
            "one model has nothing to be compared with",
        ),
        ((*DRAWN[:2], *DRAWN[4:], "--between", "samples"), "--between samples --count 2"),
        (
            (*PAIR, "--gold-every", "5"),
            "--gold-every: only for pairs whose answer is known; give --gold as well",
        ),
        (
            (*PAIR, "--steps", "5", "--count", "2"),
            "--count, --steps: only for models that draw; give --model",
        ),
        ((*PAIR, "--prompts", "prompts.txt"), "--prompts: only for models that draw; give --model as well"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn_or_copied(folder, arguments, message):
    (folder / "prompts.txt").write_text("a cat\na dog\n")
    write(folder, (0, 0.5, NOBODY)), (folder / "votes.jsonl").rename(folder / "ties.jsonl")
    write(folder, (0, 1.0, NOBODY)), (folder / "votes.jsonl").rename(folder / "clear.jsonl")
    (folder / "cut.png").write_bytes((folder / "after" / "00000_0.png").read_bytes()[:60])
    row = {"prompt": "a cat", "chosen": "cut.png", "rejected": "before/00000_0.png"}
    (folder / "broken.jsonl").write_text(json.dumps(row) + "\n")
    (draw(folder / "cut", "better", PROMPTS) / "00001_0.png").write_bytes(b"no picture")
    draw(folder / "large", "better", PROMPTS)
    rows = (folder / "large/metadata.jsonl").read_text()
    (folder / "large/metadata.jsonl").write_text(rows.replace('"seed": 0', f'"seed": {2**63}'))
    code, said = command("make", "arena", *arguments)
    assert code == 2 and message in said and said.count("error:") == 1, said
    assert not (folder / "arena").exists()


def test_what_was_drawn_is_taken_again_only_where_the_same_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        tiny_folder("sd15", tmp_path / f"tiny{seed}", seed=seed)
    told = []

    def ask(model, prompt, **more):
        Path("prompts.txt").write_text(prompt)
        asked = {"count": 1, "seed": 0, "num_steps": 1, "progress": lambda *done: told.append(done), **more}
        return drawing.draw_models([f"a={model}"], Path("prompts.txt"), tmp_path / "drawn", **asked)

    first = ask("tiny0", "a cat")
    assert told == [("a", 0, 1), ("a", 1, 1)]
    assert ask("tiny0", "a cat") == first and told[2:] == [("a", 1, 1)]
    others = [ask("tiny1", "a cat"), ask("tiny0", "a dog"), ask("tiny0", "a cat", count=2)]
    others += [ask("tiny0", "a cat", seed=1), ask("tiny0", "a cat", num_steps=2)]
    shutil.rmtree("tiny0")
    Path("tiny1").rename("tiny0")  # trained further, say
    others.append(ask("tiny0", "a cat"))
    assert len({first[0], *(found[0] for found in others)}) == 7


def test_a_wrong_model_is_told_before_another_one_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder("sd15", tmp_path / "tiny")
    Path("prompts.txt").write_text("a cat")
    told = []
    with pytest.raises(UserError, match=r"no folder tinny here.*did you mean tiny\?"):
        drawing.draw_models(
            ["a=tiny", "b=tinny"], Path("prompts.txt"), tmp_path / "drawn", count=1, seed=0, num_steps=1,
            progress=lambda *done: told.append(done),
        )  # fmt: skip
    assert not told


def test_a_path_may_have_an_equals_sign(folder):
    (folder / "lr=0.1").mkdir()
    (folder / "after").rename(folder / "lr=0.1/after")
    found = named_folders(["lr=0.1/after", "old=before"])
    assert {one.model for one in found} == {"good", "old"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(0, 1.0, {"axis": "colour"}), (1, 1.0, {"axis": "layout"})],
            "colour, layout; keep the rows of one axis",
        ),
        (
            [{"prompt": "a cat", "image": "after/00000_0.png", "label": True}],
            "name data whose rows have pairs",
        ),
    ],
)
def test_data_that_are_no_pairs_say_what_to_change(folder, rows, message):
    if isinstance(rows[0], dict):
        (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write(folder, *rows)
    code, said = command("import", "arena", "votes.jsonl")
    assert code == 2 and message in said, said


def test_an_arena_of_another_version_says_what_to_do(folder):
    assert command("make", "arena", *PAIR)[0] == 0
    arena = Arena(folder / "arena")
    with arena._writing() as connection:
        connection.execute("UPDATE about SET value = '7' WHERE key = 'format'")
    arena.close()
    code, said = command("results", "arena")
    assert code == 2 and "open it with the version that made it, or make another arena" in said
