"""The page of `jointembed serve` in a real browser: Debian's Chromium, without a window."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from serving import bomb, serving

from jointembed.inference.index import Index
from jointembed.inference.search import search
from jointembed.inference.serve_bounds import Limits

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of; empty it where a complaint is expected."""
    return []


@pytest.fixture
def visit(browser: "Browser", address: str, complaints: list[str]) -> Iterator[Open]:
    """Open a page; at the end nobody has complained, and nothing was asked from elsewhere."""
    contexts, foreign = [], []

    def open_page(path: str = "/", base: str = address, **settings: Any) -> "Page":
        context = browser.new_context(**settings)
        context.set_default_timeout(240_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: foreign.append(request.url) if base not in request.url else None)
        page.goto(base + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == [] and foreign == []


def shown(page: "Page") -> list[str]:
    return [one.get_attribute("alt") or "" for one in page.locator("#found img").all()]


def wait_for(page: "Page", status: str) -> None:
    page.locator("#status", has_text=status).wait_for()
    page.locator("#found:not([aria-busy])").wait_for()


def said(page: "Page", message: str) -> None:
    """The error appears, and no picture beside it."""
    page.get_by_role("alert").filter(has_text=message).wait_for()
    assert shown(page) == [] and page.locator("#status").inner_text() == ""


def best(index: Index, words: str) -> list[str]:
    return [one.id for one in search(index, words, 5)]


def test_one_types_and_sees_the_pictures_change(visit: Open, index: Index) -> None:
    page = visit()
    first = shown(page)
    assert len(first) == 5 and page.locator("#status").inner_text() == "5 of 24 pictures"
    page.keyboard.type("red")  # the box has the focus already
    wait_for(page, "for “red”")
    red = shown(page)
    assert red == best(index, "red") != first
    assert page.title() == "red – jointembed" and page.url.endswith("/?q=red")
    page.keyboard.type(" dark noise")
    wait_for(page, "for “red dark noise”")
    assert shown(page) == best(index, "red dark noise") != red
    page.wait_for_load_state("networkidle")
    assert all(one.evaluate("picture => picture.naturalWidth") == 24 for one in page.locator("#found img").all())
    page.reload()  # the address says what was asked
    assert (
        shown(page) == best(index, "red dark noise") and page.get_by_role("searchbox").input_value() == "red dark noise"
    )
    page.get_by_role("searchbox").fill("")
    wait_for(page, "5 of 24 pictures")
    assert shown(page) == first


def test_a_later_question_is_not_overtaken(visit: Open, index: Index) -> None:
    page = visit()
    held: list[Any] = []
    page.route("**/?q=first", lambda route: held.append(route))  # the answer to the first question does not come
    box = page.get_by_role("searchbox")
    box.fill("first")
    page.wait_for_url("**/?q=first")
    box.fill("green")
    wait_for(page, "for “green”")
    page.wait_for_timeout(300)
    assert shown(page) == best(index, "green") and len(held) == 1


def test_the_keyboard_is_enough(visit: Open, index: Index) -> None:
    page = visit()
    page.keyboard.type("light square")
    page.keyboard.press("Enter")
    wait_for(page, "for “light square”")
    focused = []
    for _ in range(4):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid", focused
    assert focused == ["BUTTON", "picture", "A", "A"]
    page.keyboard.press("Enter")  # the second picture, large
    page.wait_for_url("**/picture/*")
    page.go_back()
    assert shown(page) == best(index, "light square")


def test_an_uploaded_picture_finds_itself(visit: Open, index: Index) -> None:
    page = visit("/?q=red")
    assert index.paths[9] is not None
    page.get_by_label("Or show a picture like it").set_input_files(index.paths[9])
    wait_for(page, f"for {Path(index.paths[9]).name}")
    assert shown(page)[0] == index.ids[9]
    asked = page.get_by_alt_text("the picture you search with")
    assert asked.is_visible() and asked.evaluate("picture => picture.naturalWidth") == 24
    assert page.get_by_role("searchbox").input_value() == "" and page.url.endswith("/")
    page.get_by_role("searchbox").fill("red")
    wait_for(page, "for “red”")
    assert shown(page) == best(index, "red") and not asked.is_visible()


def test_words_that_cannot_be_searched_are_said(visit: Open, complaints: list[str], index: Index) -> None:
    page = visit()
    page.keyboard.press("Enter")
    said(page, "the query is empty; expected some words")
    box = page.get_by_role("searchbox")
    box.fill("🐶" * 10_000)
    said(page, "the query has 10,000 characters; at most 1,000 are taken")
    box.fill("<img src=x onerror=alert(1)>")
    wait_for(page, "for “<img src=x")
    assert page.get_by_role("alert").inner_text() == "" and len(shown(page)) == 5
    assert len(complaints) == 2 and all("400" in one for one in complaints)
    complaints.clear()


def test_files_that_are_no_pictures_are_said(visit: Open, complaints: list[str], index: Index) -> None:
    page = visit()
    chooser = page.get_by_label("Or show a picture like it")
    chooser.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"just words"})
    said(page, "notes.txt: not a picture; expected one of JPEG")
    assert not page.get_by_alt_text("the picture you search with").is_visible()
    chooser.set_input_files({"name": "bomb.png", "mimeType": "image/png", "buffer": bomb()})
    said(page, "bomb.png: 10000 x 10000 pixels; 1 to 64000000 can be used")
    assert chooser.get_attribute("data-most") == "16000000"
    chooser.evaluate("chooser => { chooser.dataset.most = 1e6 }")  # the test need not carry 16 MB
    chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"x" * 1_500_000})
    said(page, "The picture has 1.5 MB; at most 1 MB are taken.")
    page.get_by_role("searchbox").fill("red")
    wait_for(page, "for “red”")
    assert shown(page) == best(index, "red") and page.get_by_role("alert").inner_text() == ""
    assert len([one for one in complaints if "400" in one]) == 2
    complaints.clear()


def test_a_body_that_is_too_large_is_said(visit: Open, complaints: list[str], index: Index) -> None:
    with serving(index, Limits(upload=100_000)) as small:
        page = visit(base=small)
        page.locator("#picture").evaluate("chooser => { chooser.dataset.most = 1e9 }")  # as another client would
        page.get_by_label("Or show a picture like it").set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": b"x" * 3_000_000}
        )
        said(page, "the upload is too large; at most 0.1 MB are taken")
    complaints.clear()


def test_paths_lead_nowhere(visit: Open, complaints: list[str], address: str) -> None:
    page = visit()
    for path in ("/..%2f..%2fetc%2fpasswd", "/static/..%2fserve.py", "/thumbnail/%2fetc%2fpasswd", "/picture/999999"):
        answer = page.goto(address + path)
        assert answer is not None and answer.status == 404
        assert "there is no" in page.get_by_role("alert").inner_text()
    page.get_by_role("link", name="index").click()
    assert len(shown(page)) == 5
    complaints.clear()


def test_without_a_script_the_forms_do_it(visit: Open, index: Index, complaints: list[str]) -> None:
    page = visit(java_script_enabled=False)
    page.get_by_role("searchbox").fill("red")
    page.get_by_role("button", name="Search", exact=True).click()
    wait_for(page, "for “red”")
    assert shown(page) == best(index, "red") and page.url.endswith("/?q=red")
    page.get_by_label("Or show a picture like it").set_input_files(index.paths[3] or "")
    page.get_by_role("button", name="Search by picture").click()
    wait_for(page, f"for {Path(index.paths[3] or '').name}")
    assert shown(page)[0] == index.ids[3]
    page.get_by_role("button", name="Search by picture").click()
    said(page, "no picture was chosen")
    assert all("400" in one for one in complaints)
    complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_thumb(visit: Open, scheme: str, index: Index) -> None:
    page = visit("/?q=red", color_scheme=scheme, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for control in page.locator("input, button:visible").all():
        box = control.bounding_box()
        assert box is not None and box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 360
    page.get_by_role("searchbox").tap()
    page.get_by_role("searchbox").fill("green noise")
    page.get_by_role("button", name="Search", exact=True).tap()
    wait_for(page, "for “green noise”")
    assert shown(page) == best(index, "green noise")
    boxes = [one.bounding_box() for one in page.locator("#found li").all()]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"]  # two a row
    page.get_by_label("Or show a picture like it").set_input_files(index.paths[3] or "")
    wait_for(page, f"for {Path(index.paths[3] or '').name}")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


LIGHTNESS = """element => {
    const parse = colour => colour.match(/[\\d.]+/g).map(Number)
    const light = colour => parse(colour).slice(0, 3).map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, channel) => sum + value * [0.2126, 0.7152, 0.0722][channel], 0)
    let behind = element
    while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement
    return [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)]
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_has_a_name(visit: Open, scheme: str, complaints: list[str], index: Index) -> None:
    """Contrast of 4.5 (WCAG 2.2, 1.4.3) in both schemes; a label for each control, an alternative for each picture."""
    page = visit("/?q=red", color_scheme=scheme)
    page.get_by_role("searchbox").fill(" ")
    page.keyboard.press("Enter")
    said(page, "the query is empty")
    texts = ["h1 a", "header p", "label", "#q", "button:visible", "#error", "footer p"]
    page2 = visit("/?q=red", color_scheme=scheme)
    for one, selectors in ((page, texts), (page2, ["#status", ".score", ".name"])):
        for selector in selectors:
            ink, paper = one.locator(selector).first.evaluate(LIGHTNESS)
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector
            assert (paper > 0.5) == (scheme == "light") or "button" in selector
    assert page2.locator("img:not([alt]), img[alt='']").count() == 0
    assert (
        page2.get_by_role("search").count() == 1 and page2.get_by_role("status").get_attribute("aria-live") == "polite"
    )
    assert page2.get_by_label("Describe what you are looking for").get_attribute("type") == "search"
    assert page2.locator("#found li").first.inner_text().startswith(index.ids[search(index, "red", 1)[0].row])
    complaints.clear()


def test_a_picture_that_is_gone_and_a_server_that_is_gone_are_said(
    visit: Open, complaints: list[str], index: Index
) -> None:
    with serving(index) as soon_gone:
        page = visit(base=soon_gone)
        page.route("**/thumbnail/*", lambda route: route.fulfill(status=404))
        page.get_by_role("searchbox").fill("red")
        wait_for(page, "for “red”")
        first = best(index, "red")[0]
        page.locator(".gone").first.filter(has_text=f"{first}: the picture cannot be opened").wait_for()
    page.get_by_role("searchbox").fill("green")
    said(page, "The server does not answer. Is jointembed serve still running?")
    complaints.clear()


def test_a_screenshot_is_no_blank_sheet(visit: Open, tmp_path: Path) -> None:
    page = visit("/?q=red")
    page.wait_for_load_state("networkidle")
    page.screenshot(path=tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=10_000_000)
    assert colours is not None and len(colours) > 1000
