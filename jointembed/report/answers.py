"""The answers to one question as a page: self-contained, without a script."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from jointembed.errors import DataError
from jointembed.report.gallery import THUMB_SIZE
from jointembed.report.rendering import write_page

_QUALITY = 85


@dataclass(frozen=True)
class Shown:
    """One answer as a reader sees it."""

    rank: int
    score: float
    name: str
    text: str | None
    place: str | None  # of its picture


def write_answers(
    path: Path,
    *,
    question: str | Image.Image,
    subtitle: str,
    answers: Sequence[Shown],
    open_picture: Callable[[str], Image.Image],
) -> Path:
    """Write an HTML page of a question and its answers, best first.

    Args:
        path: of the page.
        question: words or a picture.
        subtitle: one line on what was searched.
        answers: in the order to show them.
        open_picture: gives the picture of a place; a picture that it cannot open is named in words instead.

    Returns:
        The path.
    """

    def source(answer: Shown) -> str | None:
        if answer.place is None:
            return None
        try:
            return data_address(open_picture(answer.place))
        except DataError:  # it was there when it was indexed; the page says that it is gone
            return None

    content = {
        "words": question if isinstance(question, str) else None,
        "picture": None if isinstance(question, str) else data_address(question),
        "subtitle": subtitle,
        "answers": [(answer, source(answer)) for answer in answers],
    }
    write_page(path, "answers.html.j2", content)
    return path


def data_address(picture: Image.Image) -> str:
    """A small copy of a picture as a `data:` address."""
    thumb = picture.convert("RGB")
    thumb.thumbnail((2 * THUMB_SIZE, 2 * THUMB_SIZE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    thumb.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
