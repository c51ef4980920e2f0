"""A browser without a window, and what is measured in it: names, contrast, sizes."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests import samples

TOKEN = "open-sesame-the-door"
COUNT = 60
HURTS = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
NAMED = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "radio", "spinbutton", "image", "dialog"}
"""Roles that a person must be told the name of."""

CONTRASTS = """() => {
  const parsed = (color) => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, under) => under.map((value, i) => (i < 3 ? top[3] * top[i] + (1 - top[3]) * value : 1));
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(parsed(getComputedStyle(each).backgroundColor));
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const poor = [];
  const measure = (element, style, words) => {
    const under = ground(element);
    const [a, b] = [light(over(parsed(style.color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    if (ratio < needed) poor.push(`${words.trim().slice(0, 40)}: ${ratio.toFixed(2)} of ${needed}`);
  };
  let measured = 0;
  for (const element of document.body.querySelectorAll("*")) {
    const seen = element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    if (!seen || element.closest(":disabled, template")) continue;
    const own = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (own) measure(element, getComputedStyle(element), own), measured++;
    const hint = !element.value && element.placeholder;
    if (hint) measure(element, getComputedStyle(element, "::placeholder"), hint);
  }
  return { poor, measured };
}"""
"""Texts with less contrast than WCAG 2.2 AA asks for (1.4.3), and how many were measured."""

SMALL = """() => [...document.querySelectorAll("button, select, input, label:has(input), nav a, .button")]
  .filter((element) => !["checkbox", "radio"].includes(element.type)) // their labels are pressed
  .filter((element) => element.checkVisibility())
  .map((element) => ({ element, box: element.getBoundingClientRect() }))
  .filter(({ box }) => box.width && (box.width < 43.5 || box.height < 43.5))
  .map(({ element, box }) => `${element.id || element.className || element.tagName}: ${box.width} x ${box.height}`)"""
"""What is smaller than a finger (44 pixels)."""


def chromium() -> str:
    """The program; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium or google-chrome in PATH")


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium that is driven by playwright."""
    program = chromium()
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=[*arguments, "--disable-dev-shm-usage"])
        try:
            yield found
        finally:
            found.close()


def nameless(page: Any) -> list[str]:
    """Roles, as the browser computes them, that ask for a name and have none."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    shown = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in NAMED]
    assert shown
    return [str(node) for node in shown if not node.get("name", {}).get("value", "").strip()]


def give(page: Any, event: str, data: bytes, name: str, kind: str = "image/jpeg") -> None:
    """Drop a file on the page, or paste it."""
    script = """([event, data, name, type]) => {
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const carried = new DataTransfer();
      carried.items.add(new File([bytes], name, { type }));
      const more = { bubbles: true, cancelable: true };
      const made = event === "paste" ? new ClipboardEvent("paste", { ...more, clipboardData: carried })
        : new DragEvent(event, { ...more, dataTransfer: carried });
      document.body.dispatchEvent(made);
    }"""
    page.evaluate(script, [event, base64.b64encode(data).decode(), name, kind])


def sample(number: int) -> dict[str, Any]:
    """Pictures of several shapes; number 7's caption, and the note of every other, hurt who takes them for HTML."""
    width, height = ((48, 40), (64, 32), (32, 64), (40, 40))[number % 4]
    image, caption = samples.shape(number, width, height)
    note = 'it\'s "quoted"' if number % 2 else HURTS
    facts = {"colour": samples.COLORS[number % 8], "number": number, "note": note}
    caption = f"{HURTS} {caption}" if number == 7 else caption
    members = {"jpg": samples.encoded(image), "txt": caption.encode(), "json": json.dumps(facts).encode()}
    return samples.sample(number, **members)


def until(page: Any, truth: str, argument: Any = None) -> None:
    """Wait until a JavaScript expression (or function of `argument`) is true. Not playwright's wait_for_function: that
    evaluates in the page, where the page's own policy forbids it."""
    for _ in range(1200):
        if page.evaluate(truth, argument):
            return
        page.wait_for_timeout(25)
    raise AssertionError(truth)


def search(page: Any, words: str) -> list[str]:
    """Type words and press Enter; gives the captions that are found."""
    page.fill("#words", words)
    page.press("#words", "Enter")
    return found(page, words)


def found(page: Any, words: str | None = None) -> list[str]:
    """The captions on the screen, when the search is over; and it is the one for `words`, not one for a part of them
    that a page begins while they are typed."""
    if words is not None:
        until(page, "words => new URLSearchParams(location.hash.slice(1)).get('q') === words", words)
    page.wait_for_selector("#hits[aria-busy=false] .hit:not(.waiting), #nothing:not([hidden])")
    return page.locator("#hits .caption").all_inner_texts()


def told(page: Any) -> str:
    """What is told to those who do not see."""
    return page.locator("#told").inner_text()


def focused(page: Any, number: int) -> None:
    """Wait until the result with this number has the focus; -1: none of them."""
    script = "[...document.querySelectorAll('.hit')].indexOf(document.activeElement.closest('.hit'))"
    until(page, f"number => {script} === number", number)
