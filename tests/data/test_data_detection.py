import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_data import by_hand, coco_tree, objects, read_coco, write_coco
from PIL import Image
from pycocotools import mask as coco_mask

from jointembed.data.detection import DetectionData, box_fault
from jointembed.data.detection_coco import coco_detection
from jointembed.data.detection_samples import DetectionSamples, scaled_size
from jointembed.data.detection_voc import VOC_CATEGORIES, voc_devkit, voc_folder
from jointembed.data.loader import BatchPlan, Loader, to_device
from jointembed.data.masks import decode_masks, encode_masks, encode_segmentation, run_lengths
from jointembed.errors import DataError

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "toy")


# ---- COCO


def test_coco_boxes_labels_and_masks(root: Path) -> None:
    data = read_coco(root, masks=True)
    assert data.name == "instances" and len(data) == 6 and data.categories == ("red", "blue")
    target = data.target(1, masks=True)
    assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
    assert target["boxes"].tolist() == [[5, 9, 25, 33], [35, 9, 55, 33]]
    assert target["labels"].tolist() == [1, 2] and target["ids"].tolist() == [3, 4]
    assert target["masks"].shape == (2, 48, 64) and target["masks"].dtype == torch.uint8
    whole = torch.zeros(48, 64, dtype=torch.uint8)
    whole[9:33, 5:25] = 1
    assert torch.equal(target["masks"][0], whole)
    assert "masks" not in data.target(1)


def test_categories_are_numbered_by_their_ids_whatever_their_order(root: Path) -> None:
    tree = coco_tree()
    tree["categories"] = [{"id": 90, "name": "blue"}, {"id": 7, "name": "red"}]
    for annotation in tree["annotations"]:
        annotation["category_id"] = {1: 7, 2: 90}[annotation["category_id"]]
    data = read_coco(root, tree)
    assert data.categories == ("red", "blue") and data.category_ids == (7, 90)
    assert data.objects[0].labels.tolist() == [1, 2]


def test_what_is_handled_is_handled(root: Path) -> None:
    tree = coco_tree()
    first, second, third, *_ = tree["annotations"]
    first["id"], second["id"] = 0, -4  # ids that pycocotools miscounts
    del first["iscrowd"], first["area"]
    third["bbox"] = [-0.5, 20, 21, 28.75]  # half a pixel out to the left, three quarters below
    second["iscrowd"] = 1
    tree["annotations"] = [one for one in tree["annotations"] if one["image_id"] != 6]  # a picture without objects
    data = read_coco(root, tree)
    assert len(data.objects[5]) == 0 and data.target(5)["boxes"].shape == (0, 4)
    assert data.objects[0].ids.tolist() == [0, -4]
    assert data.objects[0].crowd.tolist() == [False, True] and data.objects[0].area.tolist() == [480, 480]
    assert data.objects[1].xywh[0].tolist() == [-0.5, 20, 21, 28.75]  # scored as it is
    assert data.target(1)["boxes"][0].tolist() == [0, 20, 20.5, 48]  # trained cut off
    with_masks = read_coco(root, tree, masks=True)
    assert with_masks.objects[0].area[0] == 480  # the mask's own


def test_crowds_as_run_lengths(root: Path) -> None:
    tree = coco_tree()
    counts = [10, 30, 64 * 48 - 40]
    tree["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": counts}}
    text = coco_mask.frPyObjects({"size": [48, 64], "counts": counts}, 48, 64)["counts"].decode()
    tree["annotations"][1] |= {"segmentation": {"size": [48, 64], "counts": text}}
    data = read_coco(root, tree, masks=True)
    target = data.target(0, masks=True)
    assert torch.equal(target["masks"][0], target["masks"][1]) and int(target["masks"][0].sum()) == 30
    assert target["masks"][0].T.flatten()[10:40].all()  # column by column
    samples = DetectionSamples(data, sizes=[48], max_size=64, flip=0, masks=True, seed=0)
    _, drawn = samples.draw((0, 0))
    assert drawn["labels"].tolist() == [2] and drawn["masks"].shape == (1, 48, 64)  # the crowd is no target


def _first(tree: dict[str, Any]) -> dict[str, Any]:
    return tree["annotations"][0]


REFUSED: list[tuple[str, Edit, str]] = [
    ("duplicate annotation", lambda t: t["annotations"].append(dict(_first(t))), r"annotations\[12\] \(id 1\).*twice"),
    ("unknown category", lambda t: _first(t).update(category_id=3), "category_id 3 is not among"),
    ("unknown image", lambda t: _first(t).update(image_id=77), "image_id 77 is not among"),
    ("no id", lambda t: _first(t).pop("id"), r"annotations\[0\]: has no 'id'"),
    ("id is true", lambda t: _first(t).update(id=True), "'id' is bool True"),
    ("no box", lambda t: _first(t).pop("bbox"), "has no 'bbox'"),
    ("short box", lambda t: _first(t).update(bbox=[1, 2, 3]), "not four finite numbers"),
    ("box of words", lambda t: _first(t).update(bbox=["1", 2, 3, 4]), "not four finite numbers"),
    ("infinite box", lambda t: _first(t).update(bbox=[1, 2, float("inf"), 4]), "Infinity, which is not JSON"),
    ("NaN box", lambda t: _first(t).update(bbox=[1, float("nan"), 3, 4]), "NaN, which is not JSON"),
    ("huge box", lambda t: _first(t).update(bbox=[1, 2, 10**400, 4]), "not four finite numbers"),
    ("negative side", lambda t: _first(t).update(bbox=[9, 9, -3, 4]), r"\(id 1\): its box .* negative side"),
    ("no area", lambda t: _first(t).update(bbox=[9, 9, 0, 4]), "has no area"),
    ("all but no area", lambda t: _first(t).update(bbox=[9, 9, 0.001, 4]), "has no area"),
    ("outside", lambda t: _first(t).update(bbox=[9, 9, 60, 4]), "reaches beyond the picture of 64 x 48"),
    ("wholly outside", lambda t: _first(t).update(bbox=[-0.9, 9, 0.9, 4]), "lies outside the picture"),
    ("negative area", lambda t: _first(t).update(area=-5), "'area' is -5"),
    ("area of words", lambda t: _first(t).update(area="5"), "'area' is '5'"),
    ("crowd", lambda t: _first(t).update(iscrowd=2), "'iscrowd' is 2"),
    ("no width", lambda t: t["images"][0].pop("width"), r"images\[0\] \(id 1\): has no 'width'"),
    ("no height", lambda t: t["images"][0].pop("height"), "has no 'height'"),
    ("width 0", lambda t: t["images"][0].update(width=0), "its size is 0 x 48"),
    ("width of words", lambda t: t["images"][0].update(width="64"), "'width' is str"),
    ("duplicate image", lambda t: t["images"].append(dict(t["images"][0])), r"images\[6\] \(id 1\).*twice"),
    ("duplicate category", lambda t: t["categories"].append({"id": 1, "name": "x"}), "id 1 or name 'x' is there twice"),
    ("duplicate name", lambda t: t["categories"].append({"id": 3, "name": "red"}), "name 'red' is there twice"),
    ("no category", lambda t: t.update(categories=[]), "no category in it"),
    ("no image", lambda t: t.update(images=[]), "no image in it"),
    ("no file", lambda t: t["images"][0].update(file_name="gone.png"), "gone.png: no such picture"),
    ("leads out", lambda t: t["images"][0].update(file_name="../x.png"), "must stay inside"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
@pytest.mark.fault(14, "truth: duplicate ids, unknown category, NaN, no area, outside, `../` ...")
def test_coco_faults_are_refused_by_name(root: Path, edit: Edit, message: str) -> None:
    tree = coco_tree()
    edit(tree)
    with pytest.raises(DataError, match=message) as found:
        read_coco(root, tree)
    assert "\n" not in str(found.value)


@pytest.mark.fault(14, "truth: 1e999")
def test_a_number_too_large_for_a_float_is_no_number(root: Path) -> None:
    text = json.dumps(coco_tree()).replace('"bbox": [4,', '"bbox": [1e999,')  # JSON's grammar allows it
    assert "1e999" in text
    (root / "instances.json").write_text(text)
    with pytest.raises(DataError, match=r"\(id 1\): its box \[inf, .* not four finite numbers"):
        read_coco(root)


SQUARE = [0, 0, 9, 0, 9, 9]
MASKS: list[tuple[str, Any, str]] = [
    ("empty", [], "the segmentation is empty"),
    ("none", None, "is NoneType; expected polygons"),
    ("four numbers, which pycocotools takes for a box", [[0, 0, 9, 9]], "polygon 0 is 4 numbers"),
    ("odd", [[*SQUARE, 4]], "polygon 0 is 7 numbers"),
    ("flat", SQUARE, "polygon 0 is int"),
    ("huge", [SQUARE, [*SQUARE[:-1], 10**400]], "polygon 1 holds a coordinate that is not a finite number"),
    ("wrong size", {"size": [64, 48], "counts": [64 * 48]}, r"run lengths of size \[64, 48\]; the picture's is"),
    ("wrong sum", {"size": [48, 64], "counts": [5, 6]}, "run lengths add up to 11; the picture has 3072 pixels"),
    ("negative", {"size": [48, 64], "counts": [-1, 48 * 64 + 1]}, "run lengths add up"),
    ("no counts", {"size": [48, 64]}, "counts of a mask are a list of whole numbers or a string"),
    ("fractions", {"size": [48, 64], "counts": [1.5, 3070.5]}, "counts of a mask"),
    ("string of another picture", {"size": [48, 64], "counts": "52203"}, "run lengths add up to"),
    ("broken string", {"size": [48, 64], "counts": "52 203"}, "broken run lengths at ' '"),
    ("cut string", {"size": [48, 64], "counts": "5R"}, "broken run lengths, they end within a number"),
    ("endless number", {"size": [48, 64], "counts": "o" * 40}, "broken run lengths"),
]  # fmt: skip


@pytest.mark.parametrize(("segmentation", "message"), [one[1:] for one in MASKS], ids=[one[0] for one in MASKS])
@pytest.mark.fault(14, "truth: broken masks")
def test_broken_masks_are_refused_by_name_and_only_where_masks_are_read(
    root: Path, segmentation: Any, message: str
) -> None:
    tree = coco_tree()
    _first(tree)["segmentation"] = segmentation
    with pytest.raises(DataError, match=message) as found:
        read_coco(root, tree, masks=True)
    assert "instances.json" in str(found.value)
    assert len(read_coco(root, tree)) == 6


@pytest.mark.fault(14, "truth: no mask")
def test_an_object_without_mask_is_refused_where_masks_are_read(root: Path) -> None:
    tree = coco_tree()
    del _first(tree)["segmentation"]
    with pytest.raises(DataError, match=r"annotations\[0\] \(id 1\): has no 'segmentation'"):
        read_coco(root, tree, masks=True)
    with pytest.raises(DataError, match="the masks were not read; set masks: true"):
        read_coco(root, tree).target(0, masks=True)


@pytest.mark.fault(14, "truth: boxes without area, counted")
def test_boxes_without_area_can_be_left_out_and_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = coco_tree()
    tree["annotations"][2]["bbox"] = [10, 10, 5, 0]
    with caplog.at_level(logging.WARNING):
        data = read_coco(root, tree, degenerate="drop")
    assert len(data.objects[1]) == 1 and data.objects[1].ids.tolist() == [4]
    assert "1 boxes without area left out" in caplog.text and "(id 3)" in caplog.text
    tree["annotations"][2]["bbox"] = [10, 10, 5, -1]  # not merely without area
    with pytest.raises(DataError, match="negative side"):
        read_coco(root, tree, degenerate="drop")


@pytest.mark.data
def test_the_official_files_are_read_whole(data_folder: Path) -> None:
    for split, pictures, count, crowds in (("train", 80, 739, 8), ("val", 79, 624, 5)):
        base = data_folder / "coco_mini"
        path = base / "annotations" / f"instances_{split}2017_official.json"
        data = coco_detection(images=str(base / f"images/{split}2017"), annotations=str(path), masks=True)
        assert len(data) == pictures and sum(map(len, data.objects)) == count
        assert sum(int(one.crowd.sum()) for one in data.objects) == crowds
    with pytest.raises(DataError, match="the segmentation is empty; this object has no mask"):
        coco_detection(images=str(base / "images/val2017"),
                       annotations=str(base / "annotations/instances_val2017.json"), masks=True)  # fmt: skip


@pytest.mark.data
def test_masks_are_those_of_pycocotools(data_folder: Path) -> None:
    from pycocotools.coco import COCO

    base = data_folder / "coco_mini"
    path = str(base / "annotations/instances_val2017_official.json")
    data = coco_detection(images=str(base / "images/val2017"), annotations=path, masks=True)
    official = COCO(path)
    for number in range(0, len(data), 7):
        target = data.target(number, masks=True)
        for annotation_id, mask in zip(target["ids"].tolist(), target["masks"].numpy(), strict=True):
            assert np.array_equal(mask, official.annToMask(official.anns[annotation_id]))


# ---- the record


def test_a_record_made_by_hand_is_checked_too() -> None:
    good = objects([([1, 1, 5, 5], 1)])
    assert by_hand(good).target(0)["labels"].tolist() == [1]
    faults: list[tuple[list[float], str]] = [
        ([1, 1, float("nan"), 5], "annotation 1: its box .* is not finite"),
        ([1, 1, float("inf"), 5], "is not finite"),
        ([1, 1, 0, 5], "has no area"),
        ([1, 1, -5, 5], "negative side"),
        ([1, 1, 500, 5], "reaches beyond"),
    ]
    for box, message in faults:
        with pytest.raises(DataError, match=message):
            by_hand(objects([(box, 1)]))
    for label in (0, 3):
        with pytest.raises(DataError, match=f"its label is {label}, of 2 categories"):
            by_hand(objects([([1, 1, 5, 5], label)]))
    with pytest.raises(DataError, match="categories must be there, each once"):
        by_hand(good, categories=("a", "a"))
    bad = objects([([1, 1, 5, 5], 1)])
    bad.area[0] = float("nan")
    with pytest.raises(DataError, match="its area is nan"):
        by_hand(bad)


def test_a_record_with_parts_that_do_not_fit() -> None:
    whole = by_hand(objects([([1, 1, 5, 5], 1)]))
    parts = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    for change, message in (
        ({"picture_ids": ("1", "2")}, "must be equally many"),
        ({"category_ids": (1,)}, "2 categories, but ids"),
        ({"sizes": np.array([[0, 5]])}, "its size is 0 x 5"),
    ):
        with pytest.raises(DataError, match=message):
            DetectionData(**(parts | change))
    broken = objects([([1, 1, 5, 5], 1)])
    object.__setattr__(broken, "labels", np.array([1, 1]))
    with pytest.raises(DataError, match="boxes, labels, flags, areas and ids must be equally many"):
        DetectionData(**(parts | {"objects": (broken,)}))
    object.__setattr__(broken, "labels", np.array([1]))
    object.__setattr__(broken, "masks", (b"x", b"y"))
    with pytest.raises(DataError, match="2 masks of 1 objects"):
        DetectionData(**(parts | {"objects": (broken,)}))


@pytest.mark.fault(14, "truth: a picture of another size than annotated")
def test_a_picture_of_another_size_is_refused_by_name(root: Path) -> None:
    data = read_coco(root)
    Image.new("RGB", (48, 64)).save(root / "images" / "000.png")
    with pytest.raises(DataError, match="000.png: 48 x 64 pixels, but its annotations are for 64 x 48"):
        data.open(0)


def test_the_fingerprint_sees_boxes_labels_and_masks(root: Path) -> None:
    tree = coco_tree()
    prints = {read_coco(root, tree).fingerprint, read_coco(root, tree, masks=True).fingerprint}
    tree["annotations"][0]["category_id"] = 2
    prints.add(read_coco(root, tree).fingerprint)
    tree["annotations"][0]["bbox"][0] += 0.5
    prints.add(read_coco(root, tree).fingerprint)
    assert len(prints) == 4
    assert read_coco(root, tree).fingerprint == read_coco(root, tree).fingerprint


def test_boxes_at_the_edge() -> None:
    assert box_fault([0, 0, 10, 10], 10, 10) is None
    assert box_fault([-1, -1, 12, 12], 10, 10) is None  # one pixel all round
    assert "beyond" in str(box_fault([-1.01, 0, 5, 5], 10, 10))
    assert "beyond" in str(box_fault([0, 0, 5, 11.01], 10, 10))
    assert "outside" in str(box_fault([10, 0, 1, 5], 10, 10))


def test_masks_survive_both_ways() -> None:
    masks = (np.random.default_rng(0).random((3, 7, 5)) < 0.5).astype(np.uint8)
    assert np.array_equal(decode_masks(encode_masks(masks), 5, 7), masks)
    assert decode_masks([], 5, 7).shape == (0, 7, 5)
    for one, mask in zip(encode_masks(masks), masks, strict=True):
        lengths = run_lengths(one.decode(), "here")
        assert sum(lengths) == 35
        bits = np.repeat(np.arange(len(lengths)) % 2, lengths)
        assert np.array_equal(bits.reshape(5, 7).T, mask)
    outside = encode_segmentation([[-5, -5, 3, -5, 3, 3, -5, 3]], 5, 7, "here")
    assert decode_masks([outside], 5, 7)[0].sum() == 9  # cut off at the edge


# ---- VOC


def voc_xml(boxes: list[tuple[str, list[Any]]], size: Any = (64, 48), filename: str = "000.png", **more: str) -> str:
    found = "".join(
        f"<object><name>{name}</name>{''.join(f'<{key}>{value}</{key}>' for key, value in more.items())}<bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for name, box in boxes
    )
    width, height = size
    size_of = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size_of}{found}</annotation>"


def read_voc(root: Path, *texts: str, **options: Any) -> DetectionData:
    (root / "xml").mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (root / "xml" / f"{number:03d}.xml").write_text(text)
    return voc_folder(images=str(root / "images"), annotations=str(root / "xml"), **options)


def test_voc_counts_pixels_from_one(root: Path) -> None:
    text = voc_xml([("dog", [1, 1, 64, 48]), ("cat", ["10.5", 2, 20, 3])])
    data = read_voc(root, text)
    assert data.categories == ("cat", "dog") and data.picture_ids == ("000",)
    assert data.objects[0].xyxy.tolist() == [[0, 0, 64, 48], [9.5, 1, 20, 3]]
    assert data.objects[0].labels.tolist() == [2, 1] and data.objects[0].ids.tolist() == [1, 2]
    assert data.objects[0].area.tolist() == [64 * 48, 21]
    plain = read_voc(root, voc_xml([("dog", [0, 1, 64, 48])]), one_based=False)
    assert plain.objects[0].xyxy.tolist() == [[0, 1, 64, 48]]


def test_voc_difficult_objects_and_pictures_without_objects(root: Path) -> None:
    texts = voc_xml([("dog", [1, 1, 9, 9])], difficult="1"), voc_xml([], filename="001.png")
    data = read_voc(root, *texts, categories=["dog", "cat"])
    assert data.objects[0].difficult.tolist() == [True] and not data.objects[0].crowd.any()
    assert len(data.objects[1]) == 0 and data.categories == ("dog", "cat")
    assert len(DetectionSamples(data, sizes=[32], max_size=64, flip=0, masks=False, seed=0)) == 1  # trained on


def test_voc_names_choose_and_order_the_pictures(root: Path) -> None:
    texts = [voc_xml([("dog", [1, 1, 9, 9])], filename=f"{number:03d}.png") for number in range(3)]
    (root / "list.txt").write_text("002\n000\n")
    data = read_voc(root, *texts, names=str(root / "list.txt"))
    assert data.picture_ids == ("002", "000") and data.pictures.names == ("002.png", "000.png")
    (root / "list.txt").write_text("../../secret\n")
    with pytest.raises(DataError, match="must stay inside"):
        read_voc(root, names=str(root / "list.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc_xml([("dog", [9, 1, 3, 9])]), "object 0: its box .* negative side"),
        (voc_xml([("dog", [9, 1, 8, 9])]), "has no area"),
        (voc_xml([("dog", [0, 1, 8, 9])]), "VOC counts pixels from 1; set one_based: false"),
        (voc_xml([("dog", [1, 1, 70, 9])]), "reaches beyond the picture"),
        (voc_xml([("dog", ["nan", 1, 8, 9])]), "'bndbox/xmin' is 'nan'; expected a finite number"),
        (voc_xml([("dog", ["inf", 1, 8, 9])]), "expected a finite number"),
        (voc_xml([("dog", ["three", 1, 8, 9])]), "'bndbox/xmin' is 'three'"),
        (voc_xml([("dog", ["", 1, 8, 9])]), "has no 'bndbox/xmin'"),
        (voc_xml([("", [1, 1, 8, 9])]), "has no 'name'"),
        (voc_xml([("cow", [1, 1, 8, 9])]), "category 'cow' is not among dog, cat"),
        (voc_xml([("dog", [1, 1, 8, 9])], difficult="yes"), "'difficult' is 'yes'"),
        (voc_xml([], size=(0, 48)), "the picture's size is 0 x 48"),
        (voc_xml([], size=("", 48)), "has no 'size/width'"),
        (voc_xml([], size=(64.5, 48)), "the picture's size is 64.5 x 48"),
        (voc_xml([], filename=""), "has no 'filename'"),
        (voc_xml([], filename="gone.png"), "gone.png: no such picture"),
        ("<annotation><object></annotation>", "broken XML"),
        ("", "broken XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares entities"),
    ],
)
@pytest.mark.fault(14, "truth: VOC XML")
def test_voc_faults_are_refused_by_name(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as found:
        read_voc(root, text, categories=["dog", "cat"])
    assert "\n" not in str(found.value)


def test_voc_folders_and_boxes_without_area(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="no such folder of annotations"):
        voc_folder(images=str(root / "images"), annotations=str(root / "nowhere"))
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="no annotation in it"):
        voc_folder(images=str(root / "images"), annotations=str(root / "empty"))
    text = voc_xml([("dog", [9, 1, 8, 9]), ("dog", [1, 1, 8, 9])])
    with caplog.at_level(logging.WARNING):
        assert len(read_voc(root, text, degenerate="drop").objects[0]) == 1
    assert "1 boxes without area left out" in caplog.text


def test_voc_devkit_joins_its_splits(tmp_path: Path) -> None:
    for year, names in (("VOC2007", ("000005", "000007")), ("VOC2012", ("2008_000008",))):
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (tmp_path / year / part).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (64, 48)).save(tmp_path / year / "JPEGImages" / f"{name}.jpg")
            text = voc_xml([("person", [1, 1, 8, 9])], filename=f"{name}.jpg")
            (tmp_path / year / "Annotations" / f"{name}.xml").write_text(text)
        (tmp_path / year / "ImageSets/Main/trainval.txt").write_text("\n".join(names) + "\n")
    data = voc_devkit(root=str(tmp_path), splits=["VOC2007/trainval", "VOC2012/trainval"])
    assert len(data) == 3 and data.categories == VOC_CATEGORIES and len(VOC_CATEGORIES) == 20
    assert data.objects[2].labels.tolist() == [15] and data.name == "VOC2007/trainval+VOC2012/trainval"
    assert data.open(2).size == (64, 48)
    for splits, message in (
        (["VOC2007"], "a split looks like"), (["VOC2007/test"], "no such file"), (["../x/y"], "must stay inside"),
        (["VOC2007/trainval"] * 2, "named twice"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            voc_devkit(root=str(tmp_path), splits=splits)


@pytest.mark.data
def test_both_forms_of_raccoons_and_kangaroos_agree(data_folder: Path) -> None:
    base = data_folder / "det_raccoon_kangaroo"
    voc = voc_folder(images=str(base / "images"), annotations=str(base / "voc_xml"), one_based=False,
                     categories=["raccoon", "kangaroo"])  # fmt: skip
    coco = coco_detection(images=str(base / "images"), annotations=str(base / "annotations/instances_all.json"))
    assert len(voc) == len(coco) == 358
    place = {name: number for number, name in enumerate(voc.pictures.names)}
    for number, name in enumerate(coco.pictures.names):
        ours, theirs = voc.objects[place[name]], coco.objects[number]
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert np.abs(ours.xyxy - theirs.xyxy).max(initial=0) <= 0.51  # the XML is rounded to whole pixels
    with pytest.raises(DataError, match="VOC counts pixels from 1"):
        voc_folder(images=str(base / "images"), annotations=str(base / "voc_xml"))


# ---- samples


def test_targets_follow_the_picture(root: Path) -> None:
    data = read_coco(root, masks=True)
    samples = DetectionSamples(data, sizes=[24, 36, 48, 96], max_size=1000, flip=0.5, masks=True, seed=3)
    sides, mirrored = set(), set()
    for epoch in range(6):
        for number in range(6):
            image, target = samples.draw((epoch, number))
            sides.add(image.shape[1])
            assert image.dtype == torch.uint8 and image.shape[1] * 64 == image.shape[2] * 48
            for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
                left, top, right, bottom = (int(side) for side in box.round())
                inside = image[:, top + 2 : bottom - 2, left + 2 : right - 2].float().mean((1, 2))
                assert inside[0 if label == 1 else 2] > 180  # the red one stays red
                rows, columns = mask.nonzero(as_tuple=True)
                assert abs(columns.min() - left) <= 1 and abs(columns.max() + 1 - right) <= 1
                assert abs(rows.min() - top) <= 1 and abs(rows.max() + 1 - bottom) <= 1
            mirrored.add(bool(target["boxes"][0, 0] > target["boxes"][1, 0]))
    assert sides == {24, 36, 48, 96} and mirrored == {True, False}


def test_a_sample_is_keyed_by_seed_epoch_and_index(root: Path) -> None:
    data = read_coco(root)

    def make(seed: int) -> DetectionSamples:
        return DetectionSamples(data, sizes=[24, 36, 48], max_size=1000, flip=0.5, masks=False, seed=seed)

    keys = [(epoch, number) for epoch in range(3) for number in range(6)]
    first = [make(0).draw(key)[0] for key in keys]
    torch.manual_seed(5)
    assert all(torch.equal(a, make(0).draw(key)[0]) for a, key in zip(first, keys, strict=True))
    assert any(a.shape != make(1).draw(key)[0].shape for a, key in zip(first, keys, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_lists_and_move_to_a_device(root: Path, workers: int) -> None:
    samples = DetectionSamples(read_coco(root), sizes=[24], max_size=64, flip=0, masks=False, seed=0)
    plan = BatchPlan(len(samples), 4, seed=0, start=0, stop=2, drop_last=True, rank=0, world=1)
    batches = list(Loader(samples, plan, workers=workers))
    assert [len(batch["images"]) for batch in batches] == [4, 4] and batches[0]["index"].shape == (4,)
    moved = to_device(batches[0], torch.device("meta"))
    assert moved["images"][3].is_meta and moved["targets"][3]["boxes"].is_meta
    assert samples.describe([(0, 2)]) == ["002.png"]


def test_pictures_without_anything_to_learn_from(root: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] != 3)
    data = read_coco(root, tree)
    samples = DetectionSamples(data, sizes=[24], max_size=64, flip=0, masks=False, seed=0)
    assert len(samples) == 1 and samples.describe([(0, 0)]) == ["002.png"]
    for annotation in tree["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(DataError, match="no picture with an object to learn from"):
        DetectionSamples(read_coco(root, tree), sizes=[24], max_size=64, flip=0, masks=False, seed=0)
    with pytest.raises(DataError, match="the masks were not read"):
        DetectionSamples(data, sizes=[24], max_size=64, flip=0, masks=True, seed=0)


def test_the_longer_side_is_bounded() -> None:
    assert scaled_size(640, 480, 240, 1333) == (320, 240)
    assert scaled_size(480, 640, 240, 1333) == (240, 320)
    assert scaled_size(1000, 100, 200, 500) == (500, 50)
    assert scaled_size(1000, 1, 1, 10) == (10, 1)
