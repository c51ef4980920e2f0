"""The page for everyone: by keys alone, by touch, by ear, in poor light, and when something is missing."""

from typing import Any

import pytest

from tests.serve import browsing
from tests.serve.browsing import TOKEN, focused, found, search, until


def test_the_keyboard_reaches_everything(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("a black circle")
    page.keyboard.press("Enter")
    found(page, "a black circle")
    # no more results shall come while the keys are pressed
    until(page, "document.getElementById('more').hidden || (document.getElementById('more').scrollIntoView(), false)")
    captions = found(page)
    assert len(captions) == browsing.COUNT
    tops = page.evaluate("[...document.querySelectorAll('.hit')].map(hit => hit.offsetTop)")
    below = [number for number, top in enumerate(tops) if top > tops[1]]
    last = len(tops) - 1
    for key, number in (("ArrowDown", 0), ("ArrowRight", 1), ("End", last), ("ArrowRight", last), ("Home", 0)):
        page.keyboard.press(key)
        focused(page, number)
    page.keyboard.press("ArrowDown")
    lower = page.evaluate("[...document.querySelectorAll('.hit')].indexOf(document.activeElement.closest('.hit'))")
    assert tops[lower] == tops[below[0]]
    page.keyboard.press("ArrowUp")
    focused(page, 0)
    page.keyboard.press("Enter")
    assert page.locator("#view h2").inner_text() == captions[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    page.wait_for_selector("#view", state="hidden")
    focused(page, 1)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    until(page, "document.activeElement.id === 'words'")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    focused(page, 0)
    page.keyboard.press("f")
    page.wait_for_selector("#filters")
    assert page.locator(".hit button[tabindex='0']").count() == 2  # Tab stops at one result: at opening it, and at more
    page.keyboard.press("m")
    page.wait_for_selector(".term img")
    focused(page, 0)


def test_a_token_is_asked_for_and_a_wrong_one_refused(page: Any, said: list[str]) -> None:
    said.append("401")
    page.context.clear_cookies()
    page.reload()
    page.wait_for_selector("#token:not([hidden])")
    page.fill("#secret", "wrong")
    page.press("#secret", "Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.locator("#problem p").inner_text() == "That is not its token."
    page.fill("#secret", TOKEN)
    page.press("#secret", "Enter")
    page.wait_for_selector("#examples button")
    assert not page.locator("#token").is_visible() and not page.locator("#problem").is_visible()
    assert "token" not in page.url


def test_a_server_that_is_gone_or_busy_is_told(page: Any, said: list[str]) -> None:
    said.append("ERR_|503")
    page.context.set_offline(True)
    page.fill("#words", "anything")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.locator("#problem p").inner_text() == "The server does not answer. Is it still running?"
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    assert len(found(page)) == 24
    calls: list[int] = []

    def busy_once(route: Any) -> None:
        calls.append(1)
        full = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": "busy"}}
        route.continue_() if len(calls) > 1 else route.fulfill(**full)

    page.route("**/api/search", busy_once)
    page.fill("#words", "something else")
    page.wait_for_selector("#hits[aria-busy=true]")
    page.wait_for_selector("#hits[aria-busy=false]")
    assert len(calls) == 2 and not page.locator("#problem").is_visible()


def test_a_thumbnail_that_is_missing_leaves_a_place_that_says_so(page: Any, said: list[str]) -> None:
    said.append("ERR_FAILED")
    page.route("**/api/thumb/**", lambda route: route.abort())
    search(page, "a red circle")
    page.wait_for_selector(".frame.broken")
    box = page.locator(".frame.broken").first.bounding_box()
    assert box["width"] > 100 and box["height"] > 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_contrast(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def audit(where: str) -> None:
        assert browsing.nameless(page) == [], where
        measured = page.evaluate(browsing.CONTRASTS)
        assert measured["poor"] == [] and measured["measured"] > 5, where

    audit("start")
    page.fill("#words", "a red circle +gold -teal")
    page.press("#words", "Enter")
    found(page)
    page.get_by_role("button", name="Filters").click()
    audit("results and filters")
    page.locator(".hit .open").first.click()
    audit("a result")
    page.locator("#view .classify").click()
    page.fill("#labels", "a circle, a square")
    page.press("#labels", "Enter")
    page.wait_for_selector("#scores li")
    audit("classes")
    page.get_by_role("button", name="Help").click()
    audit("help")


def test_a_phone_has_no_sideways_scroll_and_room_for_fingers(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})

    def audit(where: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, where
        assert page.evaluate(browsing.SMALL) == [], where

    audit("start")
    page.fill("#words", f"a red circle +{'very ' * 20}long -{'w' * 80}")
    page.press("#words", "Enter")
    found(page)
    page.get_by_role("button", name="Filters").click()
    audit("results and filters")
    page.locator(".hit .open").first.click()
    audit("a result")
    page.locator("#view .classify").click()
    page.fill("#labels", "a circle, " + "b" * 80)
    page.press("#labels", "Enter")
    page.wait_for_selector("#scores li")
    audit("classes")
