"""Opening pictures safely: known formats, bounded size, RGB, upright, and one clear error for each bad file."""

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jointembed.errors import DataError

MAX_PIXELS = 64_000_000  # a 12 kB PNG can hold 100 megapixels
# Photographs come in these. Pillow's other readers are a needless risk: EPS, for one, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


Reduce = Callable[[int, int], tuple[int, int] | None]
_reduce: ContextVar[Reduce | None] = ContextVar("reduce", default=None)


@contextmanager
def reduced(choose: Reduce) -> Iterator[None]:
    """Inside, a JPEG that is opened may be decoded at a reduced size, whichever source it comes from.

    Args:
        choose: of the width and height of the upright picture, before it is decoded, the least width and height that
            will do, or None for the whole. The decoder takes the smallest of 1/8, 1/4, 1/2 and 1 that is no less.
    """
    token = _reduce.set(choose)
    try:
        yield
    finally:
        _reduce.reset(token)


def open_picture(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to upright RGB: transparency over white, 16 bits scaled to 8, first frame of an animation.

    Args:
        source: the file, or its bytes.
        name: what messages call the picture; the path where it is not given.
        max_pixels: a picture that declares more is refused before it is decoded.

    Raises:
        DataError: naming the picture, where it is missing, empty, truncated, too large or not a picture.
    """
    label = name or ("picture" if isinstance(source, bytes) else str(source))
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return _decode(file, label, max_pixels)
    except FileNotFoundError:
        raise DataError(f"{label}: no such picture") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{label}: cannot be read ({error})") from None


def _decode(file: IO[bytes], label: str, max_pixels: int) -> Image.Image:
    head = file.read(256)
    if not head:
        raise DataError(f"{label}: the file is empty")
    try:
        image = Image.open(file, formats=FORMATS)
        if not 0 < image.width * image.height <= max_pixels:
            raise DataError(f"{label}: {image.width} x {image.height} pixels; 1 to {max_pixels} can be used")
        choose = _reduce.get()
        if choose is not None and image.format == "JPEG":
            _draft(image, choose)
        image.load()
        return upright_rgb(image, label)
    except UnidentifiedImageError:
        raise DataError(f"{label}: not a picture{_looks_like(head)}; expected one of {', '.join(FORMATS)}") from None
    except DataError:
        raise
    except Exception as error:  # on damaged files decoders raise anything: struct.error, IndexError, zlib.error ...
        raise DataError(f"{label}: cannot be decoded ({error or type(error).__name__})") from None


def _looks_like(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return " but a web page (a download that failed?)"
    if text.startswith((b"<svg", b"<?xml")):
        return " but SVG or XML"
    if text.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer"
    return ""


def _draft(image: Image.Image, choose: Reduce) -> None:
    """Have a JPEG decoded at a reduced size; only the scale changes, never the colour space."""
    turned = _turned(image)
    size = choose(image.height, image.width) if turned else choose(image.width, image.height)
    if size is not None:
        image.draft(None, (size[1], size[0]) if turned else size)


def _turned(image: Image.Image) -> bool:
    """Whether EXIF says that width and height are to be exchanged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF: as in _upright
        return False


def upright_rgb(image: Image.Image, label: str) -> Image.Image:
    """An open picture as `open_picture` decodes one; a JPEG is turned in place.

    Raises:
        DataError: naming `label`, for pixels that are no 8 or 16 bits a channel.
    """
    return _to_rgb(_upright(image), label)


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.format == "JPEG":  # one frame: nothing is read from its file any more, and no copy is needed
            ImageOps.exif_transpose(image, in_place=True)
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF beside good pixels: the orientation is unknown, the picture is not lost
        return image.copy()


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{label}: floating-point pixels have no agreed range; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        image = _to_8_bits(image, label)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image, label: str) -> Image.Image:
    """Scale 0 .. 65535 to 0 .. 255 (Pillow would clip)."""
    wide = image.convert("I")
    low, high = wide.getextrema()
    if not (0 <= low and high <= 65535):  # type: ignore[operator]  # one band: two numbers
        raise DataError(f"{label}: pixel values {low} .. {high}; expected 8 or 16 bits a channel")
    grey = wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    grey.info.pop("transparency", None)  # a 16-bit value that no 8-bit pixel can be compared with
    return grey


def inside(root: Path, name: str) -> Path:
    """Path of `name` under `root`.

    Raises:
        DataError: where the name is absolute or leads out of the root, through `..` or a symbolic link.
    """
    _check_name(root, name)
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{name!r}: leads out of {root} through a symbolic link")
    return path


def _check_name(root: Path, name: str) -> None:
    if not name or os.path.isabs(name) or "\0" in name or ".." in Path(name).parts:
        raise DataError(f"{name!r}: a picture's file name must stay inside {root}")
    if not _is_encodable(name):
        raise DataError(f"{name!r}: a picture's file name must be valid Unicode")
    if not _has_a_name_here(name):
        encoding = sys.getfilesystemencoding()
        raise DataError(f"{ascii(name)}: no file can have this name under the locale's {encoding}; set PYTHONUTF8=1")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _has_a_name_here(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # as under LC_ALL=C where Python's UTF-8 mode is off
        return False
    return True


def first_twice(names: Sequence[str]) -> str:
    """The first of some names that is there already."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def stamp(path: Path) -> tuple[int, int]:
    """Bytes and time of change in nanoseconds: a file that is replaced shows it without being read.

    Raises:
        DataError: naming a file that is gone.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def status_inside(path: str, roots: Sequence[Path], folders: set[str]) -> os.stat_result | None:
    """Status of a file, behind a link that of what it leads to; None where it lies in none of the roots.

    Args:
        path: of the file.
        roots: folders without a symbolic link in their paths.
        folders: those found inside already, and those of this file from now on: many files lie in few folders.

    Raises:
        OSError: no file can be reached there.
    """
    folder = os.path.dirname(path)
    status = os.lstat(path)
    suspects = [] if folder in folders else [folder]
    if stat.S_ISLNK(status.st_mode):
        suspects.append(path)
        status = os.stat(path)
    for suspect in suspects:
        real = Path(os.path.realpath(suspect))
        if not any(real.is_relative_to(root) for root in roots):
            return None
    folders.add(folder)
    return status


class PictureFolder:
    """Pictures as files under one root, by relative names; a name that leads out of the root is refused."""

    def __init__(self, root: Path | str, names: Sequence[str]) -> None:
        """Check that every name stays inside the root and is a file; duplicates are refused.

        Raises:
            DataError: naming the picture, or the root where that is no folder.
        """
        self.root = Path(root)
        self.names: Sequence[str] = tuple(names)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder of pictures")
        if len(set(self.names)) < len(self.names):
            raise DataError(f"{first_twice(self.names)!r}: named twice among the pictures of {self.root}")
        real_root = Path(os.path.realpath(self.root))
        folders: set[str] = set()
        self._stamps = [self._check(name, real_root, folders) for name in self.names]

    def _check(self, name: str, real_root: Path, folders: set[str]) -> tuple[int, int]:
        _check_name(self.root, name)
        path = os.path.join(self.root, name)
        try:
            status = status_inside(path, [real_root], folders)
        except OSError as error:
            reason = "no such picture" if isinstance(error, FileNotFoundError) else error.strerror
            raise DataError(f"{path}: {reason}") from None
        if status is None:
            raise DataError(f"{name!r}: leads out of {self.root} through a symbolic link")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a file")
        return status.st_size, status.st_mtime_ns

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def open(self, number: int) -> Image.Image:
        """Decode one picture to RGB."""
        return open_picture(self.root / self.names[number])

    def sizes(self) -> Sequence[int]:
        """Bytes of each file."""
        return [size for size, _ in self._stamps]

    def stamps(self) -> Sequence[tuple[int, int]]:
        """Bytes and time of change of each file, as they were when this was made."""
        return self._stamps
