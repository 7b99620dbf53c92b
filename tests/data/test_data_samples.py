from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jointembed.data.folder import image_folder
from jointembed.data.records import ImageData
from jointembed.data.samples import ImageSamples
from jointembed.data.views import VIEWS
from jointembed.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "set" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return image_folder(path=str(tmp_path / "set"))


class Counted:
    """Pictures that count how often each was decoded."""

    def __init__(self, data: ImageData) -> None:
        self.pictures, self.opened = data.pictures, [0] * len(data.pictures)
        self.names, self.sizes = data.pictures.names, data.pictures.sizes

    def __len__(self) -> int:
        return len(self.pictures)

    def open(self, number: int) -> Image.Image:
        self.opened[number] += 1
        return self.pictures.open(number)


def test_a_batch_holds_every_view_of_one_decode(data: ImageData) -> None:
    counted = Counted(data)
    samples = ImageSamples(replace(data, pictures=counted), VIEWS["multi_crop"](sizes=[16, 8], counts=[2, 3]), seed=0)
    batch = samples.__getitems__([(0, 4), (0, 1)])
    assert set(batch) == {"view1", "view2", "crop1", "crop2", "crop3", "index", "item", "label"}
    assert batch["view1"].shape == (2, 3, 16, 16) and batch["crop3"].shape == (2, 3, 8, 8)
    assert batch["index"].tolist() == batch["item"].tolist() == [4, 1] and batch["label"].tolist() == [1, 0]
    assert counted.opened == [0, 1, 0, 0, 1, 0]
    assert len(samples) == 6 and samples.describe([(3, 4)]) == ["b/3.png"]
    assert "label" not in ImageSamples(replace(data, labels=None, classes=None), samples.image, 0)[0, 1]


def test_views_keep_their_own_type_and_shape(data: ImageData) -> None:
    planes = ImageSamples(data, VIEWS["cmc"](size=16), seed=0).__getitems__([(0, 0), (0, 1)])
    assert planes["luminance"].shape == (2, 1, 16, 16) and planes["chroma"].shape == (2, 2, 16, 16)
    assert planes["luminance"].dtype == torch.float32
    patches = ImageSamples(data, VIEWS["pirl"](size=16, patch_size=4, patch_source=18), seed=0)[0, 0]
    assert patches["patches"].shape == (1, 9, 3, 4, 4) and patches["patches"].dtype == torch.uint8


def test_a_sample_depends_on_seed_epoch_and_index_alone(data: ImageData) -> None:
    view = VIEWS["vicreg"](size=16)
    samples = ImageSamples(data, view, seed=3)
    alone = samples[2, 5]
    torch.rand(7)
    together = samples.__getitems__([(2, 0), (2, 5)])
    assert torch.equal(together["view1"][1], alone["view1"][0])
    assert torch.equal(together["view2"][1], alone["view2"][0])
    assert not torch.equal(samples[1, 5]["view1"], alone["view1"])
    assert not torch.equal(ImageSamples(data, view, seed=4)[2, 5]["view1"], alone["view1"])


def test_labels_change_nothing_but_themselves(data: ImageData) -> None:
    assert data.labels is not None
    permuted = replace(data, labels=data.labels[::-1].copy())
    assert permuted.fingerprint == data.fingerprint and permuted.label_fingerprint != data.label_fingerprint
    view = VIEWS["vicreg"](size=16)
    one, other = (ImageSamples(some, view, seed=0).__getitems__([(0, 0), (0, 3)]) for some in (data, permuted))
    assert all(torch.equal(one[key], other[key]) for key in one if key != "label")
    assert not torch.equal(one["label"], other["label"])


def test_records_that_do_not_belong_together_are_refused(data: ImageData) -> None:
    assert data.labels is not None
    with pytest.raises(DataError, match="6 pictures and 1 picture ids"):
        replace(data, picture_ids=("a",))
    with pytest.raises(DataError, match="labels and the names of classes come together"):
        replace(data, classes=None)
    with pytest.raises(DataError, match=r"6 pictures, but labels are int64 \(2,\)"):
        replace(data, labels=np.zeros(2, dtype=np.int64))
    with pytest.raises(DataError, match="picture a/0.png has label 7, of 2 classes"):
        replace(data, labels=data.labels + 7)
    with pytest.raises(DataError, match="two classes have one name"):
        replace(data, classes=("a", "a"))
