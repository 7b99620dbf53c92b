"""The page of `jointembed serve`: words or a picture in, a grid of indexed pictures with scores out; the same as JSON.

`/` is the page, `/api/search` the JSON, `/thumbnail/ROW` and `/picture/ROW` are re-encoded copies of indexed pictures.
A row number is all that can be asked for: no path ever comes from a request.
"""

import hashlib
import io
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from anyio import Semaphore, WouldBlock, fail_after
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive

from jointembed.data.emoji import emoji
from jointembed.data.pictures import open_picture
from jointembed.errors import DataError, JointEmbedError
from jointembed.inference.index import Index
from jointembed.inference.places import open_place
from jointembed.inference.search import Answer, answers_of, encode_query, picture_view, text_view
from jointembed.inference.serve_bounds import Guard, Limits, Queue, busy

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
# of a picture that is a document of its own: Chromium centres it by inline style
ALONE = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"
THUMBNAIL, LARGE = 320, 1600  # pixels, the longer side


@dataclass(frozen=True)
class Question:
    """What one request asks for."""

    words: str | None
    picture: IO[bytes] | None
    name: str  # of the picture, for messages
    top: int


@dataclass(frozen=True)
class Card:
    """One row as the page shows it."""

    row: int
    rank: int | None
    score: float | None
    name: str
    text: str | None
    thumbnail: str | None
    picture: str | None


class Site:
    """An index and the handlers of its pages."""

    def __init__(self, index: Index, top: int, limits: Limits) -> None:
        """Load the model and search once, so that whatever is missing is said before anybody asks."""
        self.index, self.top, self.limits = index, top, limits
        self.model = index.model()
        self.takes_words, self.takes_pictures = (_has(view, self.model) for view in (text_view, picture_view))
        if len(index):
            index.search(np.zeros((1, index.width), np.float32), 1)
        self.version = hashlib.sha256((index.folder / "index.json").read_bytes()).hexdigest()[:12]
        self.searches = Queue(1, limits.searches, limits.queue_seconds)
        self.pictures = Queue(2, limits.pictures, limits.queue_seconds)
        self.uploads = Semaphore(limits.uploads)
        self.template = Environment(
            loader=PackageLoader("jointembed.inference"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        ).get_template("serve.html.j2")  # fmt: skip

    # -- handlers ---------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """The page: a few rows of the index, or the answers to a question."""
        if request.method != "POST" and "q" not in request.query_params:
            rows = np.unique(np.linspace(0, len(self.index) - 1, min(self.top, len(self.index))).astype(int))
            shown = answers_of(self.index, np.zeros(len(rows)), rows)
            return self.html(status=f"{len(rows)} of {len(self.index):,} {self.noun}", cards=self.cards(shown, False))
        question, answers = await self.ask(request)
        asked = question.name if question.words is None else f"“{shortened(question.words)}”"
        status = f"{len(answers)} best of {len(self.index):,} {self.noun} for {asked or 'your picture'}"
        if len(answers) > 1 and answers[0].score == answers[-1].score:
            status += ". They all score the same: the model does not tell them apart. Has it collapsed?"
        return self.html(status=status, cards=self.cards(answers, True), words=question.words or "")

    async def api(self, request: Request) -> Response:
        """The same as JSON; docs/search_your_pictures.md describes it."""
        question, answers = await self.ask(request)
        found = [
            {"rank": one.rank, "score": round(one.score, 6), "row": one.row, "id": one.id, "text": one.text}
            | {"picture": card.picture, "thumbnail": card.thumbnail}
            for one, card in zip(answers, self.cards(answers, True), strict=True)
        ]
        return JSONResponse({"query": question.words, "rows": len(self.index), "answers": found})

    async def picture(self, request: Request, side: int) -> Response:
        """One indexed picture, re-encoded, its longer side at most so many pixels."""
        number = request.path_params["row"]
        row = int(number) if number.isascii() and number.isdecimal() and len(number) <= 12 else len(self.index)
        place = self.index.paths[row] if row < len(self.index) else None
        if place is None:
            raise HTTPException(404, "there is no such picture in the index")
        try:
            content = await self.pictures.run(partial(_encoded, place, side))
        except DataError as error:
            logger.warning("row %d: %s", row, error)
            raise HTTPException(404, f"the picture of row {row} cannot be opened any more") from None
        headers = {"Content-Security-Policy": ALONE}
        if request.query_params.get("v") == self.version:
            headers["Cache-Control"] = "private, max-age=86400"
        return Response(content, media_type="image/jpeg", headers=headers)

    async def failed(self, request: Request, error: Exception) -> Response:
        """One clear error, as a page or as JSON."""
        if isinstance(error, ClientDisconnect):
            return Response(status_code=400)  # nobody is there to read it
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if isinstance(error, HTTPException):
            status, message = error.status_code, _said(error, request)
        elif isinstance(error, JointEmbedError):
            status, message = 400, str(error)
        else:
            status, message = 500, "something went wrong here; the terminal of `jointembed serve` says what"
            headers = {"Connection": "close"}  # as uvicorn will do
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": message, "status": status}, status, headers)
        return self.html(error=message, code=status, words=request.query_params.get("q", ""), headers=headers)

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def noun(self) -> str:
        """What the rows are."""
        return "pictures" if self.index.texts is None else "texts"

    async def ask(self, request: Request) -> tuple[Question, list[Answer]]:
        """A request's question and its answers. Raises HTTPException or JointEmbedError."""
        if request.method != "POST":
            question = self.checked(request.query_params.get("q"), None, "", request.query_params.get("top"))
            return question, await self.searches.run(partial(self.answers, question))
        if int(request.headers.get("content-length", "0")) > self.limits.upload:  # h11 has checked that it is a number
            raise self.too_large()
        try:
            self.uploads.acquire_nowait()
        except WouldBlock:
            raise busy() from None
        try:
            form = await self.form(Request(request.scope, self.bounded(request.receive)))
            try:
                question = self.form_question(form)
                return question, await self.searches.run(partial(self.answers, question))
            finally:
                await form.close()
        finally:
            self.uploads.release()

    async def form(self, request: Request) -> FormData:
        """The form of a request, a file of which beyond 1 MB is on disk."""
        try:
            with fail_after(self.limits.upload_seconds):
                return await request.form(max_files=1, max_fields=4, max_part_size=100_000)
        except TimeoutError:
            message = f"the upload took longer than {self.limits.upload_seconds:g} seconds"
            raise HTTPException(408, message, {"Connection": "close"}) from None
        except FormParserError:  # starlette 1.0 lets it through
            raise HTTPException(400, "the form is malformed") from None

    def form_question(self, form: FormData) -> Question:
        """The question of a form. Raises DataError."""
        words, picture, top = form.get("q"), form.get("picture"), form.get("top")
        if isinstance(words, UploadFile) or isinstance(top, UploadFile) or isinstance(picture, str):
            raise DataError("q and top are texts, picture is a file")
        if picture is None or not (picture.size or picture.filename):  # so a browser says that none was chosen
            if words is None:
                raise DataError("no picture was chosen")
            return self.checked(words, None, "", top)
        return self.checked(words, picture.file, picture.filename or "", top)

    def checked(self, words: str | None, picture: IO[bytes] | None, name: str, top: str | None) -> Question:
        """A question that may be asked. Raises DataError."""
        limits = self.limits
        words = (words or "").strip() or None
        if words is not None and picture is not None:
            raise DataError("words and a picture were given; expected one of them")
        if words is None and picture is None:
            raise DataError("the query is empty; expected some words")
        if words is not None and len(words) > limits.characters:
            raise DataError(f"the query has {len(words):,} characters; at most {limits.characters:,} are taken")
        if top and not (top.isascii() and top.isdecimal() and len(top) < 9 and 1 <= int(top) <= limits.answers):
            raise DataError(f"top is {top[:20]!r}; expected 1 to {limits.answers}")
        last = name.replace("\\", "/").rpartition("/")[2]  # some browsers send whole paths
        return Question(words, picture, shortened(last), int(top) if top else self.top)

    def bounded(self, receive: Receive) -> Receive:
        """A body that ends with an error where it is larger than it may be."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limits.upload:
                raise self.too_large()
            return message

        return counted

    def too_large(self) -> HTTPException:
        """The error of a body that is larger than it may be."""
        return HTTPException(413, f"the upload is too large; at most {self.limits.upload / 1e6:g} MB are taken")

    def answers(self, question: Question) -> list[Answer]:
        """Encode and search: the work of the one thread that the model has."""
        if question.picture is None:
            query: Any = question.words
        else:  # read here: one at a time is in memory
            query = open_picture(question.picture.read(), name=question.name)
        scores, rows = self.index.search(encode_query(self.model, query), question.top)
        return answers_of(self.index, scores[0], rows[0])

    def cards(self, answers: list[Answer], ranked: bool) -> list[Card]:
        """Rows as the page shows them."""
        cards = []
        for one in answers:
            thumbnail, picture = (
                None if one.path is None else f"/{kind}/{one.row}?v={self.version}" for kind in ("thumbnail", "picture")
            )
            rank, score = (one.rank, one.score) if ranked else (None, None)
            cards.append(Card(one.row, rank, score, row_name(one.id, one.path), one.text, thumbnail, picture))
        return cards

    def html(
        self, *, status: str = "", error: str = "", cards: Collection[Card] = (), words: str = "", code: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Response:  # fmt: skip
        """The page."""
        page = self.template.render(site=self, status=status, error=error, cards=cards, words=words)
        return HTMLResponse(page.encode("utf-8", "xmlcharrefreplace"), code, headers)


def make_app(
    index: Index, *, top: int = 24, names: Collection[str] = ("localhost",), limits: Limits | None = None
) -> ASGIApp:
    """The ASGI application.

    Args:
        index: opened.
        top: answers to a question that does not say how many.
        names: host names under which the page may be asked for, besides addresses in numbers.
        limits: what a request may cost.

    Raises:
        JointEmbedError: where the index cannot be searched here.
    """
    site = Site(index, top, limits or Limits())
    app = Starlette(
        routes=[
            Route("/", site.page, methods=["GET", "POST"]),
            Route("/api/search", site.api, methods=["GET", "POST"]),
            Route("/thumbnail/{row}", partial(site.picture, side=THUMBNAIL)),
            Route("/picture/{row}", partial(site.picture, side=LARGE)),
            Route("/favicon.ico", lambda request: FileResponse(STATIC / "icon.svg")),  # asked for beside a bare picture
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={
            kind: site.failed for kind in (HTTPException, JointEmbedError, ClientDisconnect, Exception)
        },
    )
    return Guard(app, frozenset(names), site.failed)


def row_name(identity: str, place: str | None) -> str:
    """What people call a row: its id, but the English label of an emoji."""
    if place is None or not place.startswith("emoji://"):
        return identity
    split, _, picture = place.removeprefix("emoji://").partition("/")
    return _emoji_labels(split).get(picture, identity)


@lru_cache
def _emoji_labels(split: Any) -> dict[str, str]:
    data = emoji(split=split, tags=False, captions="one")
    return {name: data.captions[item][0] for name, item in zip(data.picture_ids, data.item.tolist(), strict=True)}


def _encoded(place: str, side: int) -> bytes:
    picture = open_place(place)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def _has(find: Callable[[Any], str], model: Any) -> bool:
    try:
        return bool(find(model))
    except JointEmbedError:
        return False


def shortened(text: str) -> str:
    """A text from outside as a message can show it: in 60 characters, none of them a control character."""
    shown = "".join(one if one.isprintable() else " " for one in text)
    return shown if len(shown) <= 60 else f"{shown[:40]}…{shown[-16:]}"


def _said(error: HTTPException, request: Request) -> str:
    """The message of an error; starlette's own are the bare phrases of their codes."""
    if error.status_code == 404 and error.detail == "Not Found":
        return f"there is no page {request.url.path[:80]!r}"
    if error.status_code == 405:
        return f"{request.method[:20]} is not done here"
    return error.detail
