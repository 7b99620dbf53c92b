"""The page of `jointembed serve` and its JSON, asked over a real socket: answers and errors."""

import io
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from embedding_runs import write_pictures
from PIL import Image
from serving import PATIENCE, ROWS, bomb, encoded, error_of, get, make_index, names, raw, serving

from jointembed.data.emoji import emoji
from jointembed.errors import WeightsError
from jointembed.inference import serve_app
from jointembed.inference.index import Index
from jointembed.inference.search import search


def test_the_page_shows_pictures_before_it_is_asked(client: httpx2.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "5 of 24 pictures" in answer.text and error_of(answer.text) == ""
    assert names(answer.text) == ["a/00.png", "a/10.png", "a/22.png", "b/11.png", "b/23.png"]


def test_words_find_what_the_index_finds(client: httpx2.Client, index: Index) -> None:
    expected = search(index, "a red photo", 5)
    page = client.get("/", params={"q": " a red photo "})
    assert names(page.text) == [one.id for one in expected]
    assert re.findall(r"</span>(-?\d\.\d{3})</span>", page.text) == [f"{one.score:.3f}" for one in expected]
    assert "5 best of 24 pictures for “a red photo”" in page.text and 'value="a red photo"' in page.text
    found = client.get("/api/search", params={"q": "a red photo", "top": "3"}).json()
    assert found["query"] == "a red photo" and found["rows"] == ROWS and len(found["answers"]) == 3
    for answer, one in zip(found["answers"], expected, strict=False):
        assert (answer["rank"], answer["row"], answer["id"], answer["text"]) == (one.rank, one.row, one.id, None)
        assert answer["score"] == pytest.approx(one.score, abs=1e-6)
        assert answer["picture"].startswith(f"/picture/{one.row}?") and client.get(answer["thumbnail"]).is_success


def test_words_in_a_form_are_words_too(client: httpx2.Client) -> None:
    asked = client.get("/api/search", params={"q": "green noise"}).json()
    assert client.post("/api/search", data={"q": "green noise"}).json() == asked
    assert client.post("/api/search", files={"q": (None, "green noise"), "top": (None, "5")}).json() == asked


def test_a_picture_finds_itself(client: httpx2.Client, index: Index) -> None:
    path = index.paths[7]
    assert path is not None
    content = Path(path).read_bytes()
    found = client.post("/api/search", files={"picture": ("mine.png", content)}, data={"top": "2"}).json()
    assert found["query"] is None and found["answers"][0]["row"] == 7
    assert found["answers"][0]["score"] == pytest.approx(1, abs=1e-4)
    page = client.post("/", files={"picture": (r"C:\photos\mine.png", content)})
    assert names(page.text)[0] == index.ids[7] and "5 best of 24 pictures for mine.png" in page.text


def test_pictures_are_encoded_again_and_bounded(
    model_path: Path, tmp_path: Path, client: httpx2.Client, index: Index
) -> None:
    (tmp_path / "pictures").mkdir()
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "pictures" / "wide.jpg", exif=exif)
    with serving(Index.open(make_index(model_path, tmp_path / "pictures", tmp_path))) as address:
        for kind, size in (("thumbnail", (320, 160)), ("picture", (1600, 800))):
            answer = httpx2.get(f"{address}/{kind}/0", timeout=PATIENCE)
            assert answer.headers["content-type"] == "image/jpeg" and b"a secret" not in answer.content
            assert Image.open(io.BytesIO(answer.content)).size == size
    assert Image.open(io.BytesIO(client.get("/picture/0").content)).size == (24, 20)  # never larger than it was
    version = re.findall(r"\?v=(\w+)", client.get("/").text)[0]
    assert "max-age" in client.get(f"/thumbnail/0?v={version}").headers["cache-control"]
    assert client.get("/thumbnail/0?v=other").headers["cache-control"] == "no-cache"  # perhaps of another index


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs_inline(client: httpx2.Client) -> None:
    answer = client.get("/", params={"q": "<script>alert(1)</script>"})
    assert "<script>alert" not in answer.text and "&lt;script&gt;alert" in answer.text
    assert re.findall(r"<script[^>]*>", answer.text) == ['<script src="/static/serve.js" defer>']
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?:|src=\"//", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    for path in ("/static/serve.js", "/static/serve.css", "/static/icon.svg", "/api/search", "/absent"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == policy and headers["x-content-type-options"] == "nosniff"
    for name in ("serve.js", "serve.css"):
        assert "http" not in client.get(f"/static/{name}").text


def test_an_index_of_texts_shows_texts(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red photo\n<b>green</b> noise\n")
    with serving(Index.open(make_index(model_path, tmp_path / "captions.txt", tmp_path))) as address:
        page = httpx2.get(f"{address}/?q=red", timeout=PATIENCE).text
        assert "2 best of 2 texts" in page and "a red photo" in page and "&lt;b&gt;green&lt;/b&gt; noise" in page
        found = httpx2.get(f"{address}/api/search?q=red", timeout=PATIENCE).json()["answers"][0]
        assert found["picture"] is None and found["text"] in ("a red photo", "<b>green</b> noise")
        assert httpx2.get(f"{address}/thumbnail/0", timeout=PATIENCE).status_code == 404


def test_the_page_offers_what_the_model_can_take(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(model: object) -> str:
        raise WeightsError("the model has no view for texts")

    monkeypatch.setattr(serve_app, "text_view", absent)
    with serving(index) as address:
        page = httpx2.get(address, timeout=PATIENCE).text
    assert 'name="picture"' in page and 'name="q"' not in page


def test_emoji_go_by_their_labels() -> None:
    data = emoji(split="test")  # captions "label: tag, tag"
    for number in (0, 1, len(data.pictures) - 1):
        key = data.picture_ids[number]
        label = data.captions[data.item[number]][0].partition(":")[0]
        assert serve_app.row_name(f"test/{key}", f"emoji://test/{key}") == label
    assert serve_app.row_name("a.png", "/pictures/a.png") == "a.png"


def test_a_model_that_tells_nothing_apart_is_said(
    client: httpx2.Client, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "collapsed" not in client.get("/?q=red").text
    monkeypatch.setattr(serve_app, "encode_query", lambda model, query: np.zeros((1, index.width), np.float32))
    assert "does not tell them apart" in client.get("/?q=red").text


NO_WORDS = "the query is empty; expected some words"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("q=", NO_WORDS),
        ("q=%20%0a%E3%80%80", NO_WORDS),
        ("q=" + "x" * 10_000, "the query has 10,000 characters; at most 1,000 are taken"),
        ("q=" + "%F0%9F%90%B6" * 10_000, "the query has 10,000 characters; at most 1,000 are taken"),
        ("q=a&top=0", "top is '0'; expected 1 to 100"),
        ("q=a&top=101", "top is '101'; expected 1 to 100"),
        ("q=a&top=ten", "top is 'ten'; expected 1 to 100"),
        ("q=a&top=" + "9" * 5000, "expected 1 to 100"),
    ],
)
def test_a_query_that_cannot_be_searched_is_one_message(address: str, query: str, message: str) -> None:
    status, page = get(address, f"/?{query}")
    assert status == 400 and message in error_of(page).replace("&#39;", "'") and names(page) == []
    status, found = get(address, f"/api/search?{query}")
    assert status == json.loads(found)["status"] == 400 and message in json.loads(found)["error"]


@pytest.mark.parametrize("query", ["q=%00", "q=%ed%a0%80", "q=%ff%fe", "q=" + "word+" * 199, "q=%F0%9F%90%B6", "q=🐶"])
def test_odd_words_are_words(client: httpx2.Client, query: str) -> None:
    assert client.get(f"/api/search?{query}").status_code == 200


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"picture": ("notes.txt", b"just words")}, "notes.txt: not a picture; expected one of JPEG, PNG"),
        ({"picture": ("a.jpg", b"<html>gone</html>")}, "a.jpg: not a picture but a web page"),
        ({"picture": ("a.svg", b"<svg/>")}, "a.svg: not a picture but SVG"),
        ({"picture": ("a.png", b"")}, "a.png: the file is empty"),
        ({"picture": ("a.png", encoded(Image.new("RGB", (60, 60), "red"))[:90])}, "a.png: cannot be decoded"),
        ({"picture": ("\x1b[2J\r\n../../a.png", b"x")}, "a.png: not a picture"),
        ({"picture": ("x" * 500 + ".png", b"x")}, "…xxxxxxxxxxxx.png: not a picture"),
        ({"picture": (None, "words")}, "picture is a file"),
        ({"q": ("q.txt", b"words")}, "q and top are texts"),
        ({"q": (None, "a dog"), "picture": ("a.png", b"x")}, "words and a picture were given"),
        ({"other": (None, "x")}, "no picture was chosen"),
        ({"q": (None, " ")}, NO_WORDS),
    ],
)
def test_an_upload_that_is_no_picture_is_one_message(client: httpx2.Client, files: Any, message: str) -> None:
    page, found = client.post("/", files=files), client.post("/api/search", files=files)
    assert page.status_code == found.status_code == 400
    assert message in error_of(page.text).replace("&#39;", "'") and message in found.json()["error"]
    assert "\x1b" not in page.text


def test_no_file_chosen_as_a_browser_says_it(address: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="picture"; filename=""\r\n\r\n\r\n--x--\r\n'
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    answer = raw(address, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b" 400 " in answer and b"no picture was chosen" in answer


@pytest.mark.fault(20, "a picture of 100 megapixels in 12 kB")
def test_a_bomb_is_refused_before_it_is_decoded(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL.PngImagePlugin import PngImageFile

    loaded: list[object] = []
    monkeypatch.setattr(PngImageFile, "load", loaded.append)
    found = client.post("/api/search", files={"picture": ("bomb.png", bomb())})
    assert found.status_code == 400 and loaded == []
    assert found.json()["error"] == "bomb.png: 10000 x 10000 pixels; 1 to 64000000 can be used"


@pytest.mark.fault(20, "paths that lead out of the site")
@pytest.mark.parametrize(
    "target",
    [
        "/../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd",
        "/static/../serve.py", "/static/..%2fserve.py", "/static/%2e%2e/serve.py", "/static//etc/passwd", "/static/",
        "/static/%00", "/static/" + "a" * 5000, "/static/..\\serve.py", "/templates/serve.html.j2",
        "/picture/../../../etc/passwd", "/picture/%2fetc%2fpasswd", "/thumbnail//etc/passwd", "/thumbnail/-1",
        "/thumbnail/1e0", "/thumbnail/0x1", "/thumbnail/%D9%A3", "/thumbnail/%00", "/thumbnail/0.png", "/thumbnail/24",
        "/thumbnail/" + "9" * 5000, "/thumbnail/0/../1", "/picture/a/00.png", "/picture/", "/index.json", "/api/",
        "/api/../picture/0", "file:///etc/passwd", "*", "/;/etc/passwd", "/?q=../../etc/passwd&file=/etc/passwd&row=0",
    ],
)  # fmt: skip
def test_no_path_leads_out(address: str, target: str) -> None:
    status, body = get(address, target)
    assert status in (400, 404) or target.startswith("/?q")
    assert "root:" not in body and "import " not in body and "{%" not in body and str(Path.cwd()) not in body


def test_a_picture_that_is_gone_is_named_by_its_row(
    model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 2)
    with serving(Index.open(make_index(model_path, pictures, tmp_path))) as address:
        (pictures / "a" / "00.png").unlink()
        answer = httpx2.get(f"{address}/thumbnail/0", timeout=PATIENCE)
        assert answer.status_code == 404 and str(tmp_path) not in answer.text
        assert error_of(answer.text) == "the picture of row 0 cannot be opened any more"
        assert str(pictures / "a" / "00.png") in caplog.text  # the terminal may know
        assert httpx2.get(f"{address}/thumbnail/1", timeout=PATIENCE).status_code == 200


def test_other_methods_and_pages_are_one_message(client: httpx2.Client) -> None:
    assert error_of(client.get("/absent").text) == "there is no page &#39;/absent&#39;"
    assert client.get("/api/absent").json() == {"error": "there is no page '/api/absent'", "status": 404}
    answer = client.delete("/api/search")
    assert answer.status_code == 405 and answer.json()["error"] == "DELETE is not done here"
    assert client.head("/?q=a").status_code == 200


def test_our_own_faults_are_said_without_their_traceback(
    client: httpx2.Client, index: Index, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("a secret inside")

    monkeypatch.setattr(index, "search", broken)
    page, found = client.get("/?q=a"), client.get("/api/search?q=a")
    assert page.status_code == found.status_code == 500 and "secret" not in page.text + found.text
    assert "something went wrong here" in error_of(page.text) and "something went wrong" in found.json()["error"]
    assert "default-src" in page.headers["content-security-policy"] and page.headers["connection"] == "close"
    assert "a secret inside" in caplog.text
