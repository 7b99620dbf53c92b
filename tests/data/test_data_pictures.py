import io
import os
import pickle
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jointembed.data.pictures import FORMATS, PictureFolder, inside, open_picture
from jointembed.errors import DataError

RED = (200, 30, 40)


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_of_zeros(width: int, height: int) -> bytes:
    """A grey PNG of any size, written row by row so that the test itself does not hold the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_rgb_comes_back_as_it_is_and_can_go_to_a_worker(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise()))
    picture = open_picture(tmp_path / "a.png")
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(noise()))
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(picture))), np.asarray(noise()))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_the_usual_formats_open(file_format: str) -> None:
    assert file_format in FORMATS
    picture = open_picture(encode(Image.new("RGB", (8, 6), RED), file_format))
    assert (picture.mode, picture.size) == ("RGB", (8, 6))
    assert np.allclose(np.asarray(picture)[3, 4], RED, atol=4)


@pytest.mark.fault(10, "RGBA, LA")
def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (*RED, 255))
    assert [open_picture(encode(clear)).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (90, 255))
    assert [open_picture(encode(grey)).getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (90,) * 3]


@pytest.mark.fault(10, "P and RGB with a transparent colour")
def test_transparent_colours_of_palette_and_rgb() -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, *RED])
    palette.putpixel((1, 0), 1)
    assert open_picture(encode(palette)).getpixel((0, 0)) == (10, 20, 30)
    assert [open_picture(encode(palette, transparency=0)).getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, RED]
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), RED)
    assert [open_picture(encode(rgb, transparency=(1, 2, 3))).getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, RED]


@pytest.mark.fault(10, "L, 1, CMYK")
def test_grey_black_and_white_and_cmyk() -> None:
    assert open_picture(encode(Image.new("L", (3, 3), 77))).getpixel((1, 1)) == (77, 77, 77)
    assert open_picture(encode(Image.new("1", (3, 3), 1))).getpixel((1, 1)) == (255, 255, 255)
    cyan = open_picture(encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))
    assert np.allclose(np.asarray(cyan)[4, 4], (0, 255, 255), atol=6)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.fault(10, "16 bits")
def test_sixteen_bits_are_scaled_not_clipped(file_format: str) -> None:
    values = np.array([[0, 128 * 257, 200 * 257, 65535]], dtype=np.uint16)
    picture = open_picture(encode(Image.fromarray(values), file_format))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 128, 200, 255]


@pytest.mark.fault(10, "floating-point and negative pixels")
def test_pixels_without_an_agreed_range_are_refused() -> None:
    with pytest.raises(DataError, match="a.tif: floating-point pixels"):
        open_picture(encode(Image.new("F", (2, 2), 0.5), "TIFF"), name="a.tif")
    with pytest.raises(DataError, match=r"a.tif: pixel values -5 \.\. -5"):
        open_picture(encode(Image.new("I", (2, 2), -5), "TIFF"), name="a.tif")


@pytest.mark.fault(10, "1x1, animated GIF")
def test_one_pixel_and_first_frame_of_an_animation() -> None:
    assert open_picture(encode(Image.new("RGB", (1, 1), RED))).getpixel((0, 0)) == RED
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    animation = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(animation).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.fault(10, "EXIF rotation, all eight")
def test_exif_rotation_is_undone(orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), (0, 0, 0))
    upright.paste((255, 0, 0), (0, 0, 8, 8))  # red, top left
    stored = {  # how a camera stores a picture that the tag then turns upright
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = open_picture(encode(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(picture), np.asarray(upright))


@pytest.mark.fault(10, "damaged EXIF")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    broken = PngInfo()
    broken.add_text("Raw profile type exif", "\nexif\n   3\nno hexadecimals")
    assert np.array_equal(np.asarray(open_picture(encode(noise(), pnginfo=broken))), np.asarray(noise()))
    plain = encode(noise(), "JPEG")
    body = b"Exif\0\0MM\0*" + b"\xff" * 40
    damaged = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's word on the EXIF
        assert np.array_equal(np.asarray(open_picture(damaged)), np.asarray(open_picture(plain)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not a picture but a web page"),
        (b'\n<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture but SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a picture but a Git LFS pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture; expected one of JPEG"),
        (b"\xff\xd8\xff\xe0", "picture"),
        (encode(noise(), "JPEG")[:-400], "cannot be decoded"),
        (encode(noise(), "PNG")[:-400], "cannot be decoded"),
        (encode(noise(), "GIF")[:-400], "cannot be decoded"),
        (encode(noise(), "WEBP")[:-400], "picture|cannot be decoded"),
    ],
)
@pytest.mark.fault(10, "truncated, empty, HTML, SVG, LFS pointer, PostScript")
def test_bad_files_are_named_with_their_fault(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(DataError, match=f"photo.jpg: .*({message})"):
        open_picture(tmp_path / "photo.jpg")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.jpg: no such picture"):
        open_picture(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        open_picture(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.fault(10, "100 megapixels in 12 kB")
def test_a_small_file_of_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    bomb = png_of_zeros(10000, 10000)
    assert len(bomb) < 20_000
    with pytest.raises(DataError, match="bomb.png: 10000 x 10000 pixels; 1 to 64000000"):
        open_picture(bomb, name="bomb.png")
    with pytest.raises(DataError, match="bomb.png: .*pixels"):
        open_picture(png_of_zeros(20000, 10000), name="bomb.png")  # Pillow itself refuses at this size
    with pytest.raises(DataError, match="a.png: 40 x 30 pixels; 1 to 1199 "):
        open_picture(encode(noise()), name="a.png", max_pixels=1199)
    assert open_picture(encode(noise()), max_pixels=1200).size == (40, 30)


@pytest.mark.filterwarnings("ignore")  # Pillow's own words on what it is given
@pytest.mark.fault(22, "pictures with bytes changed, 600 cases")
def test_damaged_bytes_raise_nothing_but_data_errors() -> None:
    chance = random.Random(0)
    palette = noise().quantize(16)
    originals = [encode(noise(), name) for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")] + [encode(palette, "GIF")]
    outcomes = {"opened": 0, "refused": 0}
    for _ in range(600):
        content = bytearray(chance.choice(originals))
        for _ in range(chance.randint(1, 12)):
            content[chance.randrange(min(len(content), chance.choice((64, 100_000))))] = chance.randrange(256)
        try:
            assert open_picture(bytes(content), max_pixels=10**6).mode == "RGB"
            outcomes["opened"] += 1
        except DataError as error:
            assert str(error).startswith("picture: ")
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


def folder_of(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(Image.new("RGB", (2, 2), RED)))


def test_picture_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "sub/b.png")
    pictures = PictureFolder(tmp_path, ["sub/b.png", "a.png"])
    assert len(pictures) == 2 and pictures.names == ("sub/b.png", "a.png")
    assert list(pictures.sizes()) == [(tmp_path / name).stat().st_size for name in pictures.names]
    assert pictures.open(0).getpixel((0, 0)) == RED


@pytest.mark.parametrize("name", ["../a.png", "sub/../../a.png", "/etc/passwd", "a\0.png", ""])
@pytest.mark.fault(11, "`../`, absolute, NUL in the name of a picture")
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, "root/sub/b.png", "a.png")
    with pytest.raises(DataError, match="must stay inside"):
        PictureFolder(tmp_path / "root", [name])
    with pytest.raises(DataError, match="must stay inside"):
        inside(tmp_path / "root", name)


@pytest.mark.fault(11, "symbolic link out of the root")
def test_symbolic_links_may_stay_but_not_lead_out(tmp_path: Path) -> None:
    folder_of(tmp_path, "root/a.png", "root/real/b.png", "secret/c.png")
    root = tmp_path / "root"
    os.symlink(root / "a.png", root / "same.png")
    os.symlink(tmp_path / "secret/c.png", root / "leak.png")
    os.symlink(tmp_path / "secret", root / "folder")
    os.symlink(root / "a.png", tmp_path / "secret/back.png")
    os.symlink(root, tmp_path / "link_to_root")
    assert len(PictureFolder(root, ["same.png", "real/b.png"])) == 2
    assert len(PictureFolder(tmp_path / "link_to_root", ["a.png"])) == 1
    # a link back into the root does not vouch for the folder it lies in
    for names in (["leak.png"], ["a.png", "leak.png"], ["folder/c.png"], ["folder/back.png", "folder/c.png"]):
        with pytest.raises(DataError, match="through a symbolic link"):
            PictureFolder(root, names)
    with pytest.raises(DataError, match="through a symbolic link"):
        inside(root, "folder/c.png")
    assert inside(root, "same.png") == root / "same.png"


@pytest.mark.fault(11, "a pipe, a folder, half a surrogate as a picture")
def test_folder_refuses_what_is_no_file_or_named_twice(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "sub/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    for names, message in (
        (["a.png", "none.png"], "none.png: no such picture"),
        (["sub"], "sub: not a file"),
        (["pipe.png"], "pipe.png: not a file"),
        (["a.png/b.png"], "a.png/b.png: Not a directory"),
        (["x" * 300], "File name too long"),
        (["\ud800.png"], "must be valid Unicode"),
        (["a.png", "sub/b.png", "a.png"], "'a.png': named twice"),
    ):
        with pytest.raises(DataError, match=message):
            PictureFolder(tmp_path, names)
    with pytest.raises(DataError, match="no such folder of pictures"):
        PictureFolder(tmp_path / "none", [])
