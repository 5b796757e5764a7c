"""The arena's page when things go wrong on the way: nothing is lost, nothing counts twice, and it says so."""

from __future__ import annotations

import pytest
from arena_browsing import LEFT, READY, RIGHT, SAME, kept, press, seen, shown

pytestmark = pytest.mark.browser

BAD_GATEWAY = "<html><body><center><h1>502 Bad Gateway</h1></center><hr>nginx</body></html>"


def break_once(page, path, *, status=502, body=BAD_GATEWAY, arrives=False):
    """Let the next request to a path come back with the page of a proxy, whether or not it reached the arena."""

    def answer(route):
        if arrives:
            route.fetch(max_redirects=0)
        route.fulfill(status=status, content_type="text/html", body=body)

    page.route(f"**{path}*", answer, times=1)


def told(page, text):
    page.wait_for_selector("#notice:not(:empty)")
    assert text in page.inner_text("#notice")
    assert "nginx" not in page.content() and page.is_visible("#prompt")


@pytest.mark.parametrize("arrives", [False, True], ids=["before the arena", "after it"])
@pytest.mark.parametrize("status", [502, 200])
def test_the_page_of_a_proxy_leaves_pair_and_choice(make_arena, serving, open_page, arrives, status):
    arena = make_arena(prompts=2)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    before, (_, right) = shown(page), seen(page)
    break_once(page, "/vote", status=status, arrives=arrives)
    page.keyboard.press(RIGHT)
    told(page, f"did not answer ({status}). Your answer may not be saved. Please press again")
    assert shown(page) == before and len(kept(arena)) == arrives
    assert page.get_attribute("#judge", "data-chosen") == "right"
    press(page, RIGHT)
    assert [winner for _, winner in kept(arena)] == [right] and page.inner_text("#notice") == ""
    open_page.complaints.clear()


@pytest.mark.parametrize("again", ["the last key", "another key", "Enter", "a click"])
def test_a_vote_on_several_axes_that_was_lost_is_sent_again(make_arena, serving, open_page, again):
    arena = make_arena(prompts=2, axes=("colour", "layout"))
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    before, (left, right) = shown(page), seen(page)
    assert page.locator("#send").is_disabled()
    break_once(page, "/vote")
    page.keyboard.press(RIGHT)
    page.keyboard.press(LEFT)
    told(page, "did not answer (502)")
    assert shown(page) == before and not kept(arena)
    assert page.locator("#vote :checked").evaluate_all("all => all.map(one => one.value)") == [
        "right",
        "left",
    ]
    if again == "a click":
        page.click("#send")
    else:
        page.keyboard.press({"the last key": LEFT, "another key": SAME}.get(again, again))
    page.wait_for_selector(f"{READY}:not([data-shown='{before}'])")
    assert [winner for _, winner in kept(arena)] == [right, None if again == "another key" else left]
    assert page.locator("#send").is_disabled()
    open_page.complaints.clear()


def test_an_undo_whose_answer_was_lost_takes_back_one_vote(make_arena, serving, open_page):
    arena = make_arena(prompts=3)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    press(page, LEFT)
    second = shown(page)
    press(page, LEFT)
    break_once(page, "/undo", arrives=True)
    page.keyboard.press("u")
    told(page, "Please press again")
    before = shown(page)
    page.keyboard.press("u")
    page.wait_for_selector(f"{READY}:not([data-shown='{before}'])")
    assert shown(page) == second and len(kept(arena)) == 1
    open_page.complaints.clear()


def test_the_admin_page_outlives_the_page_of_a_proxy(make_arena, serving, open_page):
    arena = make_arena()
    phone = {"width": 390, "height": 600}
    page = open_page(f"{serving(arena)}/admin/{arena.new_admin()}", viewport=phone)
    break_once(page, "/people")
    page.fill("input[name=name]", "ann")
    page.click("text=Add annotator")
    page.wait_for_selector("#notice:not(:empty)")
    assert "did not answer (502). This may not be saved" in page.inner_text("#notice")
    box = page.locator("#notice").bounding_box()
    assert 0 <= box["y"] < 600  # where who pressed looks
    assert page.input_value("input[name=name]") == "ann" and page.is_visible("#export")
    page.click("text=Add annotator")
    assert "/a/" in page.input_value("#link") and page.inner_text("#notice") == ""
    page.fill("input[name=name]", "ann")
    page.click("text=Add annotator")
    page.wait_for_selector("#notice:not(:empty)")
    assert "there is an annotator 'ann' already" in page.inner_text("#notice")
    open_page.complaints.clear()
