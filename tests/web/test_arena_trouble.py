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


def require_in_view(page, selector):
    box, height = page.locator(selector).bounding_box(), page.viewport_size["height"]
    assert 0 <= box["y"] and box["y"] + box["height"] <= height, (selector, box, height)


@pytest.mark.parametrize("arrives", [False, True], ids=["before the arena", "after it"])
@pytest.mark.parametrize("status", [502, 200])
def test_the_page_of_a_proxy_leaves_pair_and_choice(make_arena, serving, open_page, arrives, status):
    arena = make_arena(prompts=2)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    before, (_, right) = shown(page), seen(page)
    break_once(page, "/vote", status=status, arrives=arrives)
    page.keyboard.press(RIGHT)
    told(page, f"No answer from the arena ({status}). It may not be saved: please press again")
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
    told(page, "No answer from the arena (502)")
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
    told(page, "please press again")
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
    page.wait_for_selector(
        "#notice:has-text('No answer from the arena (502). It may not be saved: please reload')"
    )
    require_in_view(page, "#notice")  # where who pressed looks
    assert page.input_value("input[name=name]") == "ann" and page.is_visible("#export")
    page.click("text=Add annotator")
    assert "/a/" in page.input_value("#link") and page.inner_text("#notice") == ""
    # before that it is a form without htmx
    page.wait_for_selector("#people:not(.htmx-added):not(.htmx-settling)")
    page.fill("input[name=name]", "ann")
    page.click("text=Add annotator")
    # said again for screen readers, after a blank
    page.wait_for_selector("#notice:has-text('there is an annotator')")
    open_page.complaints.clear()


@pytest.mark.parametrize("status", [502, 429])
def test_a_picture_that_does_not_load_is_asked_for_again(make_arena, serving, open_page, status):
    arena = make_arena(prompts=3)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    press(page, LEFT)
    break_once(page, "/picture/*/right", status=status)
    page.keyboard.press(LEFT)
    told(page, "A picture did not load. It is tried again")
    page.keyboard.press(LEFT)  # which cannot count, as one picture is not seen
    page.wait_for_selector(READY)
    assert len(kept(arena)) == 2 and page.inner_text("#notice") == ""
    press(page, LEFT)
    assert len(kept(arena)) == 3
    open_page.complaints.clear()


def test_a_network_that_is_gone_for_a_while_between_two_pairs(make_arena, serving, open_page):
    arena = make_arena(prompts=3)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    first = shown(page)
    page.route("**/picture/**", lambda route: route.abort("internetdisconnected"))
    page.keyboard.press(LEFT)
    told(page, "It is tried again")
    assert page.get_attribute("#judge", "data-shown") != first and len(kept(arena)) == 1
    page.unroute("**/picture/**")
    press(page, LEFT)
    assert len(kept(arena)) == 2
    open_page.complaints.clear()


def test_back_and_forward_show_the_pair_that_is_open(make_arena, serving, open_page):
    arena = make_arena(prompts=4)
    url = serving(arena)
    page, elsewhere = open_page(f"{url}/a/{arena.add_annotator('ann')}"), f"{url}/admin/{arena.new_admin()}"
    press(page, LEFT)
    now = shown(page)
    page.goto(elsewhere)
    page.go_back()
    assert shown(page) == now
    press(page, RIGHT)
    now = shown(page)
    page.goto(elsewhere)
    page.go_back()  # whichever page the browser kept
    assert shown(page) == now
    press(page, LEFT)
    assert len(kept(arena)) == 3 and page.inner_text("#progress") == "3 of 4"


def test_an_undo_in_a_tab_that_is_behind_takes_nothing_back(make_arena, serving, open_page):
    arena = make_arena(prompts=4)
    url = f"{serving(arena)}/a/{arena.add_annotator('ann')}"
    one = open_page(url)
    press(one, LEFT)
    other = open_page(url)
    shown(other)
    press(one, LEFT)
    press(other, "u")
    assert shown(other) == shown(one) and len(kept(arena)) == 2
    other.keyboard.press("u")
    other.keyboard.press("u")  # hit twice, it takes one back
    other.wait_for_selector(f"{READY}:not([data-shown='{shown(one)}'])")
    assert len(kept(arena)) == 1


def test_adding_somebody_by_a_double_click_adds_them_once(make_arena, serving, open_page):
    arena = make_arena()
    page = open_page(f"{serving(arena)}/admin/{arena.new_admin()}")
    page.fill("input[name=name]", "ann")
    page.locator("text=Add annotator").dblclick()
    link = page.input_value("#link")
    page.wait_for_timeout(500)
    assert page.input_value("#link") == link and page.request.get(link).status == 200
    assert arena.rows("SELECT name FROM annotators") == [("ann",)]


LONG = "a red circle left of a blue square, " * 277
ARABIC = "دائرة حمراء صغيرة (2) إلى يسار مربع أزرق"


@pytest.mark.parametrize("size", [(390, 780), (360, 640), (844, 390), (1280, 800)], ids=str)
@pytest.mark.parametrize("axes", [("overall",), ("quality", "follows the text", "layout of the objects")])
def test_pictures_and_words_are_seen_on_any_screen(make_arena, serving, open_page, size, axes):
    width, height = size
    arena = make_arena(prompts=[LONG, ARABIC], axes=axes)
    options = {"viewport": {"width": width, "height": height}, "is_mobile": width < 1000}
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}", **options)
    for _ in range(2):
        page.wait_for_selector(READY)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".pictures").bounding_box()["height"] >= 0.44 * height
        words = page.locator("#prompt").evaluate(
            "one => [one.scrollHeight, one.clientHeight, one.innerText.length]"
        )
        lines = words[1] / page.locator("#prompt").evaluate(
            "one => parseFloat(getComputedStyle(one).lineHeight)"
        )
        if words[2] > 1000:  # a line that is cut says that there are more
            assert words[0] > 5 * words[1] and 0.3 < lines % 1 < 0.7
        else:
            assert words[0] == words[1] and page.locator("#prompt").evaluate(
                "one => one.matches(':dir(rtl)')"
            )
        break_once(page, "/vote")
        for _ in axes:
            page.keyboard.press(SAME)
        told(page, "No answer")
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        require_in_view(page, "#notice")
        require_in_view(page, "#send" if len(axes) > 1 else "#vote")
        press(page, SAME)
    page.wait_for_selector("#done")
    open_page.complaints.clear()


def test_the_admin_page_fits_a_phone(make_arena, serving, open_page):
    arena = make_arena(prompts=3, gold=1, gold_every=2)
    for name in ("W" * 80, "ann"):
        person = arena.annotator(arena.add_annotator(name))
        while (pair := arena.next(person)) is not None:
            arena.vote(person, pair.id, {"overall": "left"}, milliseconds=1500)
    page = open_page(f"{serving(arena)}/admin/{arena.new_admin()}", viewport={"width": 390, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("input[name=name]", "V" * 80)
    page.click("text=Add annotator")
    page.wait_for_selector("#link")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    require_in_view(page, "#link")
