import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from reference import views_reference as reference
from reference.views_reference import photo
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop

from jointembed.data.crops import Plan
from jointembed.data.folder import image_folder
from jointembed.data.loader import BatchPlan, Loader
from jointembed.data.pictures import open_picture, reduced
from jointembed.data.pipeline import MARGIN, Views
from jointembed.data.records import Pictures
from jointembed.data.samples import ImageSamples, draw_view, open_view
from jointembed.data.views import VIEWS
from jointembed.errors import DataError, RecipeError


def off(found: Tensor, expected: Tensor) -> Tensor:
    return (found.float() - expected.float()).abs()


def jpeg(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def sizes_of(views: Views, source: bytes) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The views, and the size that the picture was decoded at."""
    seen: list[tuple[int, int]] = []

    def source_of() -> Image.Image:
        picture = open_picture(source)
        seen.append(picture.size)
        return picture

    return views.opened(source_of), seen[0]


# -- which size -----------------------------------------------------------------------------------------------------


def test_decode_size_keeps_the_margin_for_every_crop() -> None:
    pipeline = VIEWS["resize"](size=64)
    assert pipeline.decode_size(pipeline.draw(640, 480)) == (320, 240)
    assert pipeline.decode_size(pipeline.draw(640, 480), 1.0) == (160, 120)
    assert pipeline.decode_size(pipeline.draw(640, 480), None) is None
    assert pipeline.decode_size(pipeline.draw(641, 255)) is None
    assert pipeline.decode_size(pipeline.draw(2401, 1601), 2.0) == (300, 200)
    torch.manual_seed(0)
    pipeline = VIEWS["multi_crop"](sizes=[32, 16])
    for _ in range(200):
        plan = pipeline.draw(500, 375)
        widest = min(min(c.place.box[2] / c.place.width, c.place.box[3] / c.place.height) for c in plan.changes)
        assert (pipeline.decode_size(plan, 1.0) is None) == (widest < 2)


@pytest.mark.parametrize("size", [(640, 480), (641, 479), (803, 602)])
@pytest.mark.parametrize("margin", [1.0, 2.0])
def test_the_decoder_takes_the_size_that_was_asked_for(size: tuple[int, int], margin: float) -> None:
    for side in (32, 64, 100):
        views = VIEWS["resize"](size=side, margin=margin)
        room = min(size) / side / margin
        part = next((part for part in (8, 4, 2) if room >= part), 1)
        assert sizes_of(views, jpeg(photo(0, *size)))[1] == tuple(-(-one // part) for one in size)


def test_rows_that_are_random_reduce_and_the_others_do_not() -> None:
    for name, row in VIEWS.items():
        pipeline = row()
        assert pipeline.margin == (MARGIN if pipeline.random else None), name
    with pytest.raises(RecipeError, match="margin"):
        VIEWS["crop"](margin=0.5)


def test_a_picture_of_another_format_is_decoded_whole() -> None:
    buffer = io.BytesIO()
    photo(0, 640, 480).save(buffer, "PNG")
    assert sizes_of(VIEWS["resize"](size=32, margin=1.0), buffer.getvalue())[1] == (640, 480)


def test_only_what_is_opened_inside_is_reduced() -> None:
    data = jpeg(photo(0, 320, 240))
    with reduced(lambda width, height: (width // 2, height // 2)):
        assert open_picture(data).size == (160, 120)
    assert open_picture(data).size == (320, 240)
    with pytest.raises(ValueError, match="here"), reduced(lambda width, height: (1, 1)):
        raise ValueError("here")
    assert open_picture(data).size == (320, 240)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_drawn_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(3, 640, 320), exif=exif)
    views = VIEWS["vicregl"](size=24, scale=[0.5, 1.0], blur=[0.0, 0.0], jitter_p=0.0)
    upright = open_picture(data).size
    assert upright == ((320, 640) if orientation > 4 else (640, 320))
    torch.manual_seed(1)
    whole = views(open_picture(data))
    torch.manual_seed(1)
    found, seen = sizes_of(views, data)
    assert max(seen) < 640 and (seen[0] > seen[1]) == (upright[0] > upright[1])
    for key in ("view1", "view2"):
        assert torch.equal(found[f"{key}_box"], whole[f"{key}_box"])  # of the whole picture, whatever was decoded
        assert off(found[key], whole[key]).mean() < 6


def test_a_damaged_jpeg_is_named_at_any_size() -> None:
    data = jpeg(photo(0, 640, 480))
    views = VIEWS["resize"](size=32, margin=1.0)
    for broken in (data[:400], data[: len(data) // 2], b""):
        with pytest.raises(DataError, match="left.jpg"):
            views.opened(partial(open_picture, broken, name="left.jpg"))


# -- the same draws -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(8):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo(number, 400 + number, 300)))
    return tmp_path / "set"


def drawn(pipeline: Views, pictures: Pictures, number: int) -> Plan:
    plans: list[Plan] = []
    draw = pipeline.draw
    pipeline.draw = lambda *size: plans.append(draw(*size)) or plans[-1]  # type: ignore[method-assign, func-returns-value]
    open_view(pipeline, pictures, number, seed=number)
    return plans[0]


@pytest.mark.parametrize("name", ["vicreg", "vicregl", "multi_crop", "pirl", "obow", "crop"])
def test_what_is_drawn_does_not_depend_on_what_is_decoded(folder: Path, name: str) -> None:
    pictures = image_folder(path=str(folder)).pictures
    fixed = {"sizes": [24, 12]} if name == "multi_crop" else {"size": 24}
    for number in range(8):
        plans = [drawn(VIEWS[name](**fixed, margin=margin), pictures, number) for margin in (None, 1.0)]
        assert plans[0] == plans[1] and plans[0].size[0] >= 400


def test_where_nothing_is_reduced_opened_is_call_to_the_bit(folder: Path) -> None:
    pictures = image_folder(path=str(folder)).pictures
    for views in (VIEWS["vicreg"](size=24, margin=None), VIEWS["vicreg"](size=280, scale=[0.9, 1.0])):
        for number in range(4):
            one = open_view(views, pictures, number, seed=number)
            two = draw_view(views, pictures.open(number), number)
            assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_same_views_in_any_worker_and_after_a_resume(folder: Path) -> None:
    data = image_folder(path=str(folder))
    samples = ImageSamples(data, VIEWS["multi_crop"](sizes=[24, 12], margin=1.0), seed=3)

    def batches(workers: int, start: int) -> list[dict]:
        plan = BatchPlan(8, 2, seed=3, start=start, stop=6, drop_last=True, rank=0, world=1)
        return list(Loader(samples, plan, workers=workers))

    here = batches(0, 0)
    for other in (batches(2, 0), here[:2] + batches(0, 2)):
        assert len(here) == len(other) == 6
        for one, two in zip(here, other, strict=True):
            assert set(one) == set(two) and all(torch.equal(one[key], two[key]) for key in one)


# -- the same distribution ------------------------------------------------------------------------------------------


def detail(view: Tensor) -> float:
    return float(np.log(1 + reference.laplacian_energy(view)))


@pytest.mark.parametrize("name", ["resize", "center", "crop"])
def test_a_reduced_picture_gives_nearly_the_same_view(name: str) -> None:
    options = {"scale": [0.5, 1.0]} if name == "crop" else {}
    pipeline = VIEWS[name](size=64, margin=MARGIN, **options)
    for seed in range(4):
        data = jpeg(photo(seed, 640, 480).filter(ImageFilter.GaussianBlur(1.0)))
        torch.manual_seed(seed)
        whole = pipeline(open_picture(data))["image"]
        torch.manual_seed(seed)
        found, size = sizes_of(pipeline, data)
        assert size == (320, 240)
        assert off(found["image"], whole).mean() < 1.5
        assert abs(detail(found["image"]) - detail(whole)) < 0.2


@pytest.mark.data
def test_reduced_views_of_photographs_are_distributed_as_the_authors(data_folder: Path) -> None:
    """Crops of 64 px out of COCO's photographs: most are decoded at a half, some at a quarter."""
    paths = sorted((data_folder / "coco_mini" / "images").rglob("*.jpg"))[:160]
    files = [path.read_bytes() for path in paths]
    views = VIEWS["crop"](size=64, scale=[0.2, 1.0])
    crop, flip = RandomResizedCrop(64, scale=(0.2, 1.0)), RandomHorizontalFlip()
    reference.seeded(4)
    theirs, ours, wholes, parts = [], [], [], 0
    for number, file in enumerate(files):
        picture = open_picture(file)
        theirs.append(torch.from_numpy(np.array(flip(crop(picture)))).permute(2, 0, 1))
        torch.manual_seed(number)
        found, size = sizes_of(views, file)
        torch.manual_seed(number)
        whole = views(picture)
        ours.append(found["image"])
        wholes.append(whole["image"])
        parts += size != picture.size
    assert parts > len(files) / 2
    for measure in (detail, lambda x: x.float().mean().item(), lambda x: x.float().std().item()):
        part, expected, full = (np.array([measure(view) for view in side]) for side in (ours, theirs, wholes))
        assert ks_2samp(part, expected).pvalue > 1e-3
        shift = (part - full).mean()
        assert abs(shift) < 0.1 * np.std(full)  # pair by pair: far less than pictures differ
