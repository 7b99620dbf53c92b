import re
from pathlib import Path

from PIL import Image

from jointembed.errors import DataError
from jointembed.report.answers import Shown, write_answers

HOSTILE = '<script>alert("x")</script>'


def open_picture(place: str) -> Image.Image:
    if place == "gone":
        raise DataError("gone: no such picture")
    return Image.new("RGB", (600, 300), "teal")


def page(tmp_path: Path, question: str | Image.Image) -> str:
    answers = [
        Shown(1, 0.91, "a.png", None, "a"),
        Shown(2, 0.5, HOSTILE, None, "gone"),
        Shown(3, -0.25, "caption:1", "two dogs", None),
    ]
    path = write_answers(
        tmp_path / "page.html", question=question, subtitle="3 of 7", answers=answers, open_picture=open_picture
    )
    return path.read_text("utf-8")


def test_the_page_is_self_contained_escaped_and_in_order(tmp_path: Path) -> None:
    (tmp_path / ".page.html.part").write_text("of another process")
    html = page(tmp_path, HOSTILE + " zwei Hunde \ud800")
    assert "<script" not in html and html.count("&lt;script&gt;") >= 3
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", html) and "url(" not in html
    scores = re.findall(r'class="score">(\d)\. (-?[\d.]+)', html)
    assert scores == [("1", "0.910"), ("2", "0.500"), ("3", "-0.250")]
    assert html.count("data:image/jpeg;base64,") == 1 and "picture cannot be opened: gone" in html
    assert "two dogs" in html and "3 of 7" in html and len(list(tmp_path.glob("*.part"))) == 1


def test_a_picture_that_was_asked_with_is_shown(tmp_path: Path) -> None:
    html = page(tmp_path, Image.new("RGB", (10, 10)))
    assert html.count("data:image/jpeg;base64,") == 2 and "Search by a picture" in html
