"""The arena in a real browser: what people press is what is kept."""

from __future__ import annotations

import json
import re

import pytest
from arena_browsing import LEFT, READY, RIGHT, SAME, kept, press, seen, shown

from unifl.data.preferences import read_preferences
from unifl.web.arena.export import export_votes
from unifl.web.arena.results import read_votes

pytestmark = pytest.mark.browser


def test_judging_by_keyboard_is_what_the_export_says(make_arena, serving, open_page, tmp_path):
    arena = make_arena(prompts=7)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    pressed = []
    for key in (LEFT, RIGHT, SAME, "1", "2", "3", RIGHT):
        left, right = seen(page)
        winner = {LEFT: left, "1": left, RIGHT: right, "3": right}.get(key)
        pressed.append((page.inner_text("#prompt"), winner))
        assert page.inner_text("#progress") == f"{len(pressed) - 1} of 7"
        press(page, key)
    page.wait_for_selector("#done")
    assert "You judged 7 pairs" in page.inner_text("#done")
    assert kept(arena) == pressed
    assert len({prompt for prompt, _ in pressed}) == 7
    assert all(0 < vote.milliseconds < 20_000 for vote in read_votes(arena))
    assert export_votes(arena, tmp_path / "votes.jsonl") == 7
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    for row, (prompt, winner) in zip(rows, pressed, strict=True):
        assert row["caption"] == prompt
        assert row["label_0"] == (0.5 if winner is None else float(row["model_0"] == winner))
    assert len(read_preferences(tmp_path / "votes.jsonl")) == 7


def test_judging_by_touch_on_a_phone(make_arena, serving, open_page):
    arena = make_arena(prompts=3, size=(64, 96))
    url = f"{serving(arena)}/a/{arena.add_annotator('ann')}"
    page = open_page(url, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    won = []
    for said in ("left", "same", "right"):
        left, right = seen(page)
        won.append({"left": left, "right": right}.get(said))
        above, below = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
        assert above["y"] + above["height"] <= below["y"] and above["height"] > 250
        button = page.locator(f"#vote button[value={said}]")
        box = button.bounding_box()
        assert box["height"] >= 44 and box["y"] + box["height"] <= 844  # a thumb's size, without scrolling
        assert button.inner_text().strip() == {"left": "Upper", "same": "Same", "right": "Lower"}[said]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        before = shown(page)
        button.tap()
        page.wait_for_selector(f"#judge:not([data-shown='{before}'])")
    page.wait_for_selector("#done")
    assert [winner for _, winner in kept(arena)] == won


def test_undo_and_a_reload_in_the_middle(make_arena, serving, open_page):
    arena = make_arena(prompts=4)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    press(page, LEFT)
    second, sides, prompt = shown(page), seen(page), page.inner_text("#prompt")
    page.reload()
    assert (shown(page), seen(page), page.inner_text("#prompt")) == (second, sides, prompt)
    press(page, LEFT)
    press(page, RIGHT)
    for place in (2, 1):
        before = shown(page)
        page.keyboard.press("u")
        page.wait_for_selector(f"{READY}:not([data-shown='{before}'])")
        assert page.inner_text("#progress").startswith(f"{place} of")
    assert (shown(page), seen(page)) == (second, sides) and len(kept(arena)) == 1
    page.reload()
    assert shown(page) == second
    press(page, RIGHT)
    assert kept(arena)[1] == (prompt, sides[1])
    press(page, SAME)
    press(page, SAME)
    page.wait_for_selector("#done")
    page.click("#undo")
    page.wait_for_selector(READY)
    assert len(kept(arena)) == 3
    press(page, LEFT)
    assert len(kept(arena)) == 4


def test_two_annotators_at_once(make_arena, serving, open_page):
    arena = make_arena(prompts=5, overlap=2)
    url = serving(arena)
    pages = {name: open_page(f"{url}/a/{arena.add_annotator(name)}") for name in ("ann", "bob")}
    said = {name: {} for name in pages}
    for _ in range(5):
        for name, page in pages.items():
            left, right = seen(page)
            key = LEFT if (left == "good") == (name == "ann") else RIGHT  # bob likes what ann does not
            said[name][page.inner_text("#prompt")] = left if key == LEFT else right
            press(page, key)
    votes = list(read_votes(arena))
    assert len(votes) == 10 and {vote.annotator for vote in votes} == {"ann", "bob"}
    assert set(said["ann"].values()) == {"good"} and set(said["bob"].values()) == {"base"}
    for vote in votes:
        assert vote.models[0 if vote.answers["overall"] else 1] == said[vote.annotator][vote.prompt]


def test_a_key_that_is_hit_twice_judges_once(make_arena, serving, open_page):
    arena = make_arena(prompts=6)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    for count in (1, 2, 3):
        before = shown(page)
        page.keyboard.press(LEFT)
        page.keyboard.press(LEFT)
        page.keyboard.press(RIGHT)
        page.wait_for_selector(f"{READY}:not([data-shown='{before}'])")
        assert len(kept(arena)) == count and page.inner_text("#progress") == f"{count} of 6"
    before = shown(page)
    page.keyboard.down(LEFT)  # held down, it repeats
    for _ in range(20):
        page.keyboard.down(LEFT)
    page.keyboard.up(LEFT)
    page.wait_for_selector(f"{READY}:not([data-shown='{before}'])")
    page.locator("#vote button[value=left]").dblclick()
    page.wait_for_selector(f"{READY}[data-shown]")
    page.wait_for_timeout(300)
    assert len(kept(arena)) == 5


def test_two_tabs_do_not_contradict_each_other(make_arena, serving, open_page):
    arena = make_arena(prompts=3)
    url = f"{serving(arena)}/a/{arena.add_annotator('ann')}"
    one, other = open_page(url), open_page(url)
    assert shown(one) == shown(other)
    press(one, LEFT)
    press(other, RIGHT)
    assert "has your vote already" in other.inner_text("#notice")
    assert len(kept(arena)) == 1 and shown(other) == shown(one)
    assert any("409" in said for said in open_page.complaints)
    open_page.complaints.clear()


def test_several_axes_take_a_key_each(make_arena, serving, open_page):
    arena = make_arena(prompts=2, axes=("colour", "layout <b>"))
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    _, right = seen(page)
    page.keyboard.press(LEFT)
    assert page.locator("fieldset.current legend").inner_text() == "layout <b>"
    page.keyboard.press("u")  # of the line, not of a vote
    assert page.locator("fieldset.current legend").inner_text() == "colour"
    page.keyboard.press(RIGHT)
    press(page, SAME)
    assert [winner for _, winner in kept(arena)] == [right, None]
    before = shown(page)
    page.locator("fieldset").nth(1).locator("label").nth(0).click()
    page.locator("fieldset").nth(0).locator("label").nth(1).click()
    page.wait_for_selector(f"#judge:not([data-shown='{before}'])")
    assert len(kept(arena)) == 4 and kept(arena)[2][1] is None


def test_a_hostile_prompt_is_shown_as_text(make_arena, serving, open_page):
    hostile = [
        "<script>document.title='taken'</script>",
        '"><img src=x onerror="document.title=\'taken\'">',
        "<b hx-get='/static/icon.svg' hx-trigger='load'>{{ 7 * 7 }}</b> javascript:alert(1)",
    ]
    arena = make_arena(prompts=hostile, question="<i>Which?</i>")
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    read = []
    for _ in hostile:
        page.wait_for_selector(READY)
        read.append(page.text_content("#prompt"))
        assert page.locator("#prompt *").count() == 0 and page.title() == "<i>Which?</i>"
        press(page, LEFT)
    assert sorted(read) == sorted(hostile)


def test_an_answer_that_does_not_arrive_is_told(make_arena, serving, open_page):
    arena = make_arena(prompts=2)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    before = shown(page)
    page.context.set_offline(True)
    page.keyboard.press(LEFT)
    page.wait_for_selector("#notice:not(:empty)")
    assert "No connection. It may not be saved: please press again" in page.inner_text(
        "#notice"
    ) and not kept(arena)
    page.context.set_offline(False)
    page.keyboard.press(LEFT)
    page.wait_for_selector(f"#judge:not([data-shown='{before}'])")
    assert len(kept(arena)) == 1
    open_page.complaints.clear()


def test_the_admin_page_adds_somebody_and_exports(make_arena, serving, open_page):
    arena = make_arena(prompts=3, overlap=2)
    url = serving(arena)
    admin = open_page(f"{url}/admin/{arena.new_admin()}")
    admin.fill("input[name=name]", "<b>ann</b>")
    admin.click("text=Add annotator")
    link = admin.input_value("#link")
    assert re.fullmatch(rf"{url}/a/[\w-]{{32}}", link)
    assert admin.locator("table.people th[scope=row]").inner_text() == "<b>ann</b>"
    page = open_page(link)
    press(page, LEFT)
    press(page, RIGHT)
    admin.reload()
    assert admin.locator("table.people td.number").nth(0).inner_text() == "2"
    assert "2 of 6 votes" in admin.inner_text("section.tiles") and link not in admin.content()
    with admin.expect_download() as started:
        admin.click("#export")
    with open(started.value.path()) as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 2 and {row["user_id"] for row in rows} == {"<b>ann</b>"}
    admin.on("dialog", lambda dialog: dialog.accept())
    admin.click("text=New link")
    admin.wait_for_selector("#link")
    assert admin.input_value("#link") != link
    assert page.request.get(link).status == 404
