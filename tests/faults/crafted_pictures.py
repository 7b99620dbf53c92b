"""Pictures of every mode, and files that are none, written to disk as they are found on the web."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def bomb() -> bytes:
    """A PNG of 100 megapixels in 12 kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 10_000 // 8)) for _ in range(10_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def good() -> dict[str, bytes]:
    """Names and contents of pictures that must come out right."""
    palette = noise().quantize(16)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    return {
        "rgb.jpg": encoded(noise(), "JPEG"),
        "p.png": encoded(palette),
        "la.png": encoded(noise().convert("LA")),
        "rgba.png": encoded(noise().convert("RGBA")),
        "cmyk.jpg": encoded(noise().convert("CMYK"), "JPEG"),
        "16bit.png": encoded(Image.fromarray(np.linspace(0, 65535, 1024, dtype=np.uint16).reshape(32, 32))),
        "1x1.png": encoded(Image.new("RGB", (1, 1), RED)),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "rotated.jpg": encoded(noise(), "JPEG", exif=rotated),
    }


def bad() -> dict[str, bytes]:
    """Names and contents of files that are no pictures."""
    return {
        "truncated.jpg": encoded(noise(), "JPEG")[:-300],
        "truncated.png": encoded(noise())[:-300],
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "drawing.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "bomb.png": bomb(),
    }


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
