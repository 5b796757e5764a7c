"""The arena's page for who has no mouse, or does not see it: keys, focus, names, contrast, and what is read aloud."""

from __future__ import annotations

import pytest
from arena_browsing import LEFT, READY, kept, press, shown

pytestmark = pytest.mark.browser

LONG = "a red circle left of a blue square, " * 200
OBSERVE = """() => {
  window.heard = [];
  new MutationObserver((all) => {
    for (const one of all) if (one.target.id === "notice") window.heard.push(one.target.textContent);
  }).observe(document.body, {childList: true, subtree: true});
}"""


def until(page, expression):
    """Wait for it; the page's policy forbids `wait_for_function`."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def test_a_long_text_is_read_by_keys_and_does_not_vote(make_arena, serving, open_page):
    arena = make_arena(prompts=[LONG, "a cat"])
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    for _ in range(2):
        page.wait_for_selector(READY)
        page.focus("#prompt")
        before, long = shown(page), page.inner_text("#prompt") != "a cat"
        page.keyboard.press("ArrowDown")
        if long:
            until(page, "document.getElementById('prompt').scrollTop > 0")
            assert shown(page) == before
            press(page, "2")
        else:  # with nothing to scroll, the key says what it says everywhere
            page.wait_for_selector("#judge[data-state=done], " + READY + f":not([data-shown='{before}'])")
    assert [winner for _, winner in kept(arena)] == [None, None]


def test_who_goes_by_tab_and_enter_stays_on_the_button(make_arena, serving, open_page):
    arena = make_arena(prompts=5)
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    page.wait_for_selector(READY)
    page.focus("#say-right")
    for count in (1, 2):
        press(page, "Enter")
        assert page.evaluate("document.activeElement.id") == "say-right" and len(kept(arena)) == count
    page.keyboard.down("Enter")
    for _ in range(30):  # held down, it repeats, for longer than a pair takes to come
        page.keyboard.down("Enter")
        page.wait_for_timeout(30)
    page.keyboard.up("Enter")
    shown(page)
    assert len(kept(arena)) == 3
    press(page, LEFT)
    assert len(kept(arena)) == 4


@pytest.mark.parametrize("status", [409, 429])
def test_what_the_arena_says_is_read_aloud(make_arena, serving, open_page, status):
    """It changes within a live region that was there before, and is shown."""
    from unifl.web.arena.security import Limits

    arena = make_arena(prompts=4)
    url = f"{serving(arena, Limits(requests=6 if status == 429 else 600))}/a/{arena.add_annotator('ann')}"
    page = open_page(url)
    shown(page)
    region = page.locator("#notice")
    assert region.get_attribute("role") == "status"
    assert region.evaluate("one => getComputedStyle(one).display") != "none"
    if status == 409:
        press(open_page(url), LEFT)
    else:
        press(page, LEFT)
    page.evaluate(OBSERVE)
    page.keyboard.press("ArrowRight")
    said = "has your vote already" if status == 409 else "too much at once"
    until(page, f"window.heard.some((one) => one.includes('{said}'))")
    assert region.is_visible() and said in region.inner_text()
    open_page.complaints.clear()


def test_an_empty_notice_takes_no_room(make_arena, serving, open_page):
    arena = make_arena()
    page = open_page(f"{serving(arena)}/a/{arena.add_annotator('ann')}")
    shown(page)
    header, prompt = (page.locator(one).bounding_box() for one in ("#judge > header", "#prompt"))
    assert prompt["y"] - header["y"] - header["height"] == pytest.approx(12)  # one gap, not two


NAMELESS = """() => [...document.querySelectorAll("button, a, input:not([type=hidden]), progress, img")].filter((one) =>
  !(one.getAttribute("aria-label") || one.alt || one.labels?.[0]?.innerText.trim() || one.innerText.trim())
).map((one) => one.outerHTML)"""


@pytest.mark.parametrize("axes", [("overall",), ("quality", "layout")])
def test_everything_that_is_pressed_has_a_name(make_arena, serving, open_page, axes):
    arena = make_arena(axes=axes)
    url, admin = serving(arena), arena.new_admin()
    token = arena.add_annotator("ann")
    arena.add_annotator("bob")
    for address in (f"{url}/a/{token}", f"{url}/admin/{admin}"):
        page = open_page(address)
        assert page.evaluate(NAMELESS) == []
    names = page.locator(".people button").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert names == ["New link for ann", "New link for bob"] and page.locator("th:empty").count() == 0


CONTRAST = """(dark) => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255);
    const [r, g, b] = parts.map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return colour.endsWith(", 0)") && one.parentElement ? behind(one.parentElement) : colour;
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const words = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!words || one.closest(":disabled") || !one.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${one.tagName} ${one.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out(make_arena, serving, open_page, scheme):
    """4.5 to 1, as the Web Content Accessibility Guidelines ask (level AA)."""
    arena = make_arena(prompts=2, axes=("quality", "layout"))
    url = serving(arena)
    for address in (f"{url}/a/{arena.add_annotator('ann')}", f"{url}/admin/{arena.new_admin()}"):
        page = open_page(address, color_scheme=scheme)
        assert page.evaluate(CONTRAST) == []
