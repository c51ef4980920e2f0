"""The page in a real browser before a real server: what is typed, dropped or chosen finds what the interface finds."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import samples
from tests.serve import browsing
from tests.serve.browsing import COUNT, HURTS, focused, found, search, told, until


def asked(page: Any, searched: str, **body: Any) -> list[str]:
    """The captions that the interface itself gives."""
    answer = page.request.post(f"{searched}api/search", data=body)
    assert answer.ok, answer.text()
    return [hit["caption"] for hit in answer.json()["hits"]]


def test_words_find_what_the_interface_finds(page: Any, searched: str) -> None:
    captions = search(page, "a red circle")
    assert captions == asked(page, searched, text="a red circle", k=24) and len(captions) == 24
    assert told(page) == f"24 results of {COUNT}" and re.fullmatch(r"\d+ ms", page.locator("#timing").inner_text())
    scores = [float(text) for text in page.locator("#hits .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    until(page, "[...document.images].filter(i => i.closest('.hit')).slice(0, 5).every(i => i.naturalWidth)")
    assert page.locator(".hit img").first.get_attribute("alt") == captions[0]


def test_typing_alone_searches_and_more_results_come_at_the_end(page: Any) -> None:
    page.locator("#words").press_sequentially("teal")
    found(page)
    assert "q=teal" in page.url
    for shown in (48, COUNT):
        page.locator("#more").scroll_into_view_if_needed()
        until(page, f"document.querySelectorAll('.hit').length === {shown}")
    numbers = page.evaluate("[...document.querySelectorAll('.hit img')].map(i => i.getAttribute('src'))")
    assert len(set(numbers)) == COUNT and not page.locator("#more").is_visible()


def test_words_just_typed_are_not_lost(page: Any) -> None:
    page.evaluate("""() => {
      const words = document.getElementById("words");
      words.value = "teal";
      words.dispatchEvent(new Event("input"));
      document.getElementById("unique").click(); // before what was typed is searched
    }""")
    until(page, "location.hash.includes('unique')")
    assert page.input_value("#words") == "teal" and "q=teal" in page.url and found(page)


def test_words_pasted_with_a_picture_of_them_stay_words(page: Any) -> None:
    page.evaluate("""() => {
      const clipboardData = new DataTransfer();
      clipboardData.setData("text/plain", "teal");
      clipboardData.items.add(new File(["x"], "words.png", { type: "image/png" }));
      const pasted = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData });
      window.left = document.getElementById("words").dispatchEvent(pasted);
    }""")
    page.wait_for_timeout(100)
    assert page.evaluate("window.left") and not page.locator("#problem").is_visible()


def test_what_is_excluded_alone_waits_for_something_that_is_wanted(page: Any, searched: str) -> None:
    page.fill("#words", "-gold")
    page.press("#words", "Enter")
    page.wait_for_selector(".term.against")
    assert told(page) == "Nothing to search for yet: add something that is wanted"
    assert not page.locator("#problem").is_visible()
    page.locator("#hits").focus()
    page.keyboard.press("m")  # like nothing
    page.fill("#words", "a circle")
    assert found(page) == asked(page, searched, text=["gold", "a circle"], weights=[-1, 1], k=24)


def test_an_index_of_captions_alone_is_asked_for_captions(page: Any, searched: str) -> None:
    about = page.request.get(f"{searched}api/about").json()
    page.route("**/api/about", lambda route: route.fulfill(json={**about, "kinds": ["text"]}))
    page.reload()
    until(page, "document.querySelector('#start h2').textContent.endsWith('captions')")
    page.get_by_role("link", name=about["name"]).click()
    assert search(page, "teal") == asked(page, searched, text="teal", kind="text")
    assert page.locator("#filtered").inner_text() == ""


def test_terms_are_added_excluded_and_weighted(page: Any, searched: str) -> None:
    page.fill("#words", "a circle +gold -a red square")
    page.press("#words", "Enter")
    page.wait_for_selector(".term >> nth=2")
    assert page.locator(".term .name").all_inner_texts() == ["a circle", "gold", "a red square"]
    texts, weights = ["a circle", "gold", "a red square"], [1, 1, -1]
    assert found(page) == asked(page, searched, text=texts, weights=weights, k=24)
    page.get_by_label("Weight of gold").fill("0.25")
    page.get_by_label("Weight of gold").press("Enter")
    until(page, "location.hash.includes('0.25')")
    assert found(page) == asked(page, searched, text=texts, weights=[1, 0.25, -1], k=24)
    page.get_by_role("button", name="Remove gold").click()
    page.fill("#words", "teal")
    page.get_by_role("button", name="Exclude", exact=True).click()
    until(page, "document.querySelectorAll('.term').length === 3")
    assert page.locator(".term.against .name").all_inner_texts() == ["a red square", "teal"]


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_finds_itself(page: Any, way: str) -> None:
    sample = browsing.sample(13)
    if way == "choose":
        page.set_input_files("#file", {"name": "13.jpg", "mimeType": "image/jpeg", "buffer": sample["jpg"]})
    else:
        browsing.give(page, way, sample["jpg"], "13.jpg")
    page.wait_for_selector(".term canvas")
    assert found(page)[0] == sample["txt"].decode()
    assert float(page.locator(".score").first.inner_text()) > 0.99


def test_a_picture_of_another_kind_is_sent_as_jpeg_and_what_is_none_is_refused(page: Any) -> None:
    image, caption = samples.shape(16)
    browsing.give(page, "drop", samples.encoded(image, "BMP"), "16.bmp", "image/bmp")
    page.wait_for_selector(".term canvas")
    assert caption in found(page)[:3]
    browsing.give(page, "drop", b"not a picture", "notes.txt", "text/plain")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.locator("#problem p").inner_text() == "notes.txt is not a picture that this browser can read."


def test_more_like_this_leaves_out_the_picture_itself(page: Any, searched: str) -> None:
    first = search(page, "a blue square")[0]
    page.locator(".hit").first.hover()
    page.locator(".hit .like").first.click()
    page.wait_for_selector(".term img")
    until(page, "document.activeElement.matches('.hit .open')")
    number = int(re.search(r"like=1%3A(\d+)", page.url)[1])  # type: ignore[index]
    captions = found(page)
    assert first not in captions and captions == asked(page, searched, ids=[number], k=24)


def test_a_result_opens_walks_and_closes_by_the_back_button(page: Any) -> None:
    captions = search(page, "a green triangle")
    page.locator(".hit .open").nth(1).click()
    title = page.locator("#view h2")
    assert title.inner_text() == captions[1] and "open=" in page.url
    until(page, "document.querySelector('#view img').naturalWidth > 0")
    names, values = (page.locator(f"#view {tag}").all_inner_texts() for tag in ("dt", "dd"))
    facts = dict(zip(names, values, strict=True))
    assert facts["size"] in ("48 × 40", "64 × 32", "32 × 64", "40 × 40") and "colour" in facts
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == captions[2]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == captions[0] and page.locator("#view .previous").is_disabled()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).format == "JPEG"
    page.go_back()
    page.wait_for_selector("#view", state="hidden")
    focused(page, 0)
    assert "q=" in page.url
    page.go_forward()
    page.wait_for_selector("#view[open]")
    page.get_by_role("button", name="Close").click()
    page.wait_for_selector("#view", state="hidden")


def test_a_link_to_a_result_opens_it_without_a_search(page: Any, searched: str) -> None:
    page.goto(f"{searched}#open=11")
    page.wait_for_selector("#view[open]")
    assert page.locator("#view h2").inner_text() == browsing.sample(11)["txt"].decode()
    page.locator("#view .like").click()
    assert found(page)


def test_a_dropped_picture_and_a_result_are_classified(page: Any, searched: str) -> None:
    page.get_by_role("link", name="Classify").click()
    browsing.give(page, "drop", browsing.sample(5)["jpg"], "5.jpg")
    page.wait_for_selector("#subject-drawn:not([hidden])")
    page.fill("#labels", "a circle, a square,, a circle , <b>bold</b>")
    page.press("#labels", "Enter")
    page.wait_for_selector("#scores li")
    labels = page.locator("#scores .label").all_inner_texts()
    assert sorted(labels) == ["<b>bold</b>", "a circle", "a square"]
    shares = [float(text.rstrip(" %")) for text in page.locator("#scores .share").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 100) < 0.2
    assert page.locator("#classified").inner_text().startswith(f"Most probable: {labels[0]}, ")
    page.fill("#labels", "typed, before")
    browsing.give(page, "drop", browsing.sample(6)["jpg"], "6.jpg")
    until(page, "document.querySelectorAll('#scores li').length === 2")
    assert page.input_value("#labels") == "typed, before"
    page.goto(f"{searched}#open=5")
    page.locator("#view .classify").click()
    page.wait_for_selector("#subject-picture:not([hidden])")
    page.fill("#labels", "a circle, a square, <b>bold</b>")
    page.press("#labels", "Enter")
    page.wait_for_selector("#scores li")
    assert page.locator("#scores .label").all_inner_texts() == labels


def test_filters_are_written_by_hand_or_by_the_form(page: Any) -> None:
    search(page, "a shape")
    page.get_by_role("button", name="Filters").click()
    page.fill("#where", "colour = 'gold'")
    page.press("#where", "Enter")
    until(page, "document.querySelector('#told').textContent.includes('filter')")
    gold = found(page)
    assert gold and all("gold" in caption for caption in gold)
    assert told(page) == f"{len(gold)} results of {len(gold)} that the filter leaves"
    page.select_option("#column", "number")
    page.fill("#low", "10")
    page.fill("#high", "30")
    page.get_by_role("button", name="Add condition").click()
    until(page, "document.querySelector('#where').value.includes('number')")
    assert page.input_value("#where") == "colour = 'gold' and number >= 10 and number <= 30"
    assert all(10 <= int(caption.rsplit(" ", 1)[1]) <= 30 for caption in found(page))
    page.select_option("#column", "note")
    page.fill("#value", 'it\'s "quoted"')
    page.get_by_role("button", name="Add condition").click()
    until(page, "document.querySelector('#where').value.includes('note')")
    assert [int(caption.rsplit(" ", 1)[1]) % 2 for caption in found(page)] == [1] * len(found(page))


def test_switches_choose_captions_fewer_results_and_less_alike_ones(page: Any, searched: str) -> None:
    search(page, "a circle")
    page.get_by_role("button", name="Filters").click()
    page.select_option("#k", "12")
    until(page, "location.hash.includes('k=12')")
    assert found(page) == asked(page, searched, text="a circle", k=12)
    page.get_by_label("Captions").check()
    until(page, "location.hash.includes('kind=text')")
    assert found(page) == asked(page, searched, text="a circle", k=12, kind="text")
    page.get_by_label("Hide near-duplicates").check()
    until(page, "location.hash.includes('unique')")
    assert found(page) == asked(page, searched, text="a circle", k=12, kind="text", unique=0.95)
    page.get_by_label("Diverse").check()
    until(page, "location.hash.includes('diverse')")
    assert found(page) == asked(page, searched, text="a circle", k=12, kind="text", unique=0.95, diverse=0.5)
    assert page.locator("#filtered").inner_text().strip() == "· 3"


def test_a_bad_filter_is_told_and_an_empty_one_can_be_cleared(page: Any, said: list[str]) -> None:
    said.append("400")
    search(page, "a shape")
    page.get_by_role("button", name="Filters").click()
    page.fill("#where", "color = 'gold'")
    page.press("#where", "Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert not page.get_by_role("button", name="Try again").is_visible()
    line = page.locator("#problem p").inner_text()
    assert "color" in line and "colour" in line and page.get_attribute("#where", "aria-invalid") == "true"
    page.fill("#where", "number > 1000")
    page.press("#where", "Enter")
    page.wait_for_selector("#nothing:not([hidden])")
    assert page.locator("#nothing p").inner_text() == f"The filter leaves 0 of {COUNT}."
    assert not page.locator("#problem").is_visible()
    page.get_by_role("button", name="Clear the filter").click()
    page.wait_for_selector(".hit:not(.waiting)")
    assert page.input_value("#where") == ""


def test_an_address_holds_the_search_and_back_leads_to_the_one_before(page: Any) -> None:
    first = search(page, "a red circle & more")
    second = search(page, "50% teal")
    page.go_back()
    until(page, "document.querySelector('#words').value === 'a red circle & more'")
    until(page, "first => document.querySelector('.caption')?.textContent === first", first[0])
    page.go_forward()
    until(page, "document.querySelector('#words').value === '50% teal'")
    page.reload()
    assert found(page) == second
    browsing.give(page, "drop", browsing.sample(3)["jpg"], "3.jpg")
    page.wait_for_selector(".term canvas")
    page.reload()
    page.wait_for_selector("#problem:not([hidden])")
    assert "lost when the page was loaded again" in page.locator("#problem p").inner_text()


def test_captions_and_fields_of_strangers_are_only_text(page: Any) -> None:
    page.goto(page.url.split("#")[0] + "#open=7")
    page.wait_for_selector("#view[open]")
    assert page.locator("#view h2").inner_text() == f"{HURTS} a teal circle, number 7"
    assert page.locator("#view h2 *").count() == 0
    page.keyboard.press("Escape")
    search(page, "a teal circle")
    for harm in (HURTS, "'); window.hurt=1; ('", "javascript:window.hurt=1"):
        search(page, harm)
    page.evaluate("location.hash = '#text=1:<img src=x onerror=window.hurt=1>&labels=<b>&where=1'")
    found(page)
    assert page.locator(".hit script, .hit img[onerror], #terms img[onerror]").count() == 0


def test_addresses_are_read_as_they_were_written(page: Any) -> None:
    equal = page.evaluate("""async () => {
      const { read, write, parse } = await import("./page/query.js");
      const full = { ...read(""), mode: "classify", words: "a +b -c & d=e #f 100%", where: "x > 1 and y = 'ü'",
        kind: "text", k: 96, unique: true, diverse: true, filters: true, open: 0, labels: "a, b",
        subject: { kind: "like", value: 3 },
        terms: [{ kind: "text", value: "1:2 + 3", weight: -0.5 }, { kind: "like", value: 0, weight: 1 }] };
      const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
      return [same(read(write(full)), full), write(read("")) === "#",
        same(read("#k=7&kind=none&like=x&open=-1&subject=text:1&mode=x"), read("")),
        parse("t-shirt - plain +red -blue  sky + -").map(({ value, weight }) => [value, weight])];
    }""")
    assert equal == [True, True, True, [["t-shirt - plain", 1], ["red", 1], ["blue  sky + -", -1]]]
