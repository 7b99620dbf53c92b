from pathlib import Path

import pytest
from PIL import Image

from jointembed.errors import DataError
from jointembed.inference.places import emoji_place, open_place, parquet_place, tar_place


def test_a_file_is_its_path_and_the_emoji_are_in_the_package(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    assert open_place(str(tmp_path / "a.png")).size == (3, 2)
    assert open_place(emoji_place("test", "1f9b4.noto")).size == (64, 64)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/absent/a.png", "a.png: no such picture"),
        ("http://example.org/a.png", "no such picture"),
        ("tar://a.png::/absent/0.tar", "0.tar: no such file"),
        ("tar://a.png", "a tar archive|no such file|cannot|directory"),
        ("parquet://image/0::/absent/0.parquet", "0.parquet: no such file"),
        ("emoji://test/absent.noto", "no such picture"),
        ("emoji://tset/1f643.noto", "no split 'tset'"),
    ],
)
def test_what_cannot_be_opened_is_named(place: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_place(place)


def test_a_path_that_looks_like_a_chain_is_refused() -> None:
    for place in (lambda path: tar_place(path, "a.png"), lambda path: parquet_place(path, "image", 0)):
        with pytest.raises(DataError, match="'::' in it"):
            place(Path("/a::b/0.tar"))
