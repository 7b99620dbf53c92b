import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_data import by_hand, coco_tree, detections, objects, read_coco, the_truth, write_coco
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jointembed.data.detection import DetectionData
from jointembed.data.detection_coco import coco_detection
from jointembed.errors import DataError, EvaluationError
from jointembed.evaluation.detection import (
    STATS,
    Kind,
    check_detections,
    coco_average_precision,
    read_detections,
    save_detections,
)
from jointembed.evaluation.detection_voc import IGNORED, RIGHT, WRONG, judge, voc_average_precision
from jointembed.inference.detect import Detections

NONE = detections([])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "toy")


# ---- against pycocotools on the official annotations


@pytest.fixture(scope="module")
def official(data_folder: Path) -> tuple[DetectionData, Path]:
    base = data_folder / "coco_mini"
    path = base / "annotations/instances_val2017_official.json"
    data = coco_detection(images=str(base / "images/val2017"), annotations=str(path), masks=True)
    return data, path


def noisy_results(path: Path, *, masks: bool) -> list[dict[str, Any]]:
    """Results of a middling detector: truth moved, doubled, renamed or left out, strays, equal scores, crowds too."""
    tree, rng = json.loads(path.read_text()), np.random.default_rng(0)
    sizes = {image["id"]: (image["width"], image["height"]) for image in tree["images"]}
    categories = [category["id"] for category in tree["categories"]]
    results = []
    for annotation in tree["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            x, y, wide, high = annotation["bbox"]
            moved = np.array([x, y, wide, high]) + rng.normal(0, 0.06, 4) * [wide, high, wide, high]
            stray = rng.random() < 0.15
            width, height = sizes[annotation["image_id"]]
            if stray:
                moved = rng.random(4) * [width / 2, height / 2, width / 2, height / 2]
            box = [float(moved[0]), float(moved[1]), max(1.0, float(moved[2])), max(1.0, float(moved[3]))]
            entry = {
                "image_id": annotation["image_id"],
                "category_id": int(rng.choice(categories)) if rng.random() < 0.1 else annotation["category_id"],
                "score": round(float(rng.random()), 1),  # many are equal
            }
            if masks:
                left, top = max(0, round(box[0])), max(0, round(box[1]))
                drawn = np.zeros((height, width), dtype=np.uint8)
                drawn[top : top + max(1, round(box[3])), left : left + max(1, round(box[2]))] = 1
                encoded = coco_mask.encode(np.asfortranarray(drawn))
                entry |= {"segmentation": {"size": [height, width], "counts": encoded["counts"].decode()}}
            else:
                entry |= {"bbox": box}
            results.append(entry)
    return results


def with_boxes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results that have masks alone get their boxes too."""
    return [one | {"bbox": coco_mask.toBbox(one["segmentation"]).tolist()} for one in results]


@pytest.mark.data
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_equals_pycocotools_run_by_hand(official: tuple[DetectionData, Path], kind: Kind, tmp_path: Path) -> None:
    data, path = official
    results = noisy_results(path, masks=kind == "segm")
    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    (tmp_path / "results.json").write_text(json.dumps(with_boxes(results) if kind == "segm" else results))
    ours = coco_average_precision(data, read_detections(tmp_path / "results.json", data), kind=kind)
    assert 0.05 < ours.metrics[f"{kind}_AP"] < 0.9
    assert [ours.metrics[f"{kind}_{name}"] for name in STATS] == evaluation.stats[: len(STATS)].tolist()
    of_person = evaluation.eval["precision"][:, :, 0, 0, 2]
    assert ours.per_category["person"] == of_person[of_person > -1].mean()


@pytest.mark.data
def test_perfect_and_empty_on_the_official_annotations(official: tuple[DetectionData, Path]) -> None:
    data, _ = official
    perfect, empty = the_truth(data, masks=True), [NONE] * len(data)
    kinds: tuple[Kind, ...] = ("bbox", "segm")
    for kind in kinds:
        for name, value in coco_average_precision(data, perfect, kind=kind).metrics.items():
            assert value == pytest.approx(1.0, abs=1e-12), name
        without_masks = coco_average_precision(data, empty, kind=kind).metrics
        assert set(without_masks.values()) == {0.0} and len(without_masks) == 6
    assert voc_average_precision(data, perfect).metrics == {"voc_AP50": 1.0, "voc07_AP50": 1.0}
    assert voc_average_precision(data, empty).metrics == {"voc_AP50": 0.0, "voc07_AP50": 0.0}


# ---- what pycocotools does in silence


@pytest.mark.fault(14, "truth: annotation id 0, on which pycocotools miscounts")
def test_ids_from_zero_score_one_where_pycocotools_does_not(root: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["id"] -= 1
    data = read_coco(root, tree)
    assert coco_average_precision(data, the_truth(data)).metrics["bbox_AP"] == pytest.approx(1.0)
    truth = COCO(str(root / "instances.json"))
    results = [{key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1} for one in
               tree["annotations"]]  # fmt: skip
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] < 0.95  # the trap


def test_crowds_are_neither_asked_for_nor_held_against_anyone(root: Path) -> None:
    tree = coco_tree()
    tree["annotations"][0]["iscrowd"] = 1
    data = read_coco(root, tree)
    found = the_truth(data)
    assert coco_average_precision(data, found).metrics["bbox_AP"] == pytest.approx(1.0)
    inside = detections([([6, 10, 5, 5], 1.0, 1), ([34, 8, 20, 24], 0.9, 2)])  # a part of the crowd, best of all
    assert coco_average_precision(data, [inside, *found[1:]]).metrics["bbox_AP"] == pytest.approx(1.0)
    stray = detections([([50, 30, 5, 5], 1.0, 1), ([34, 8, 20, 24], 0.9, 2)])
    assert coco_average_precision(data, [stray, *found[1:]]).metrics["bbox_AP"] < 0.95


def test_a_size_of_object_that_does_not_occur_has_no_number(root: Path) -> None:
    data = read_coco(root)  # 20 x 24 px: small ones alone
    metrics = coco_average_precision(data, the_truth(data)).metrics
    assert set(metrics) == {"bbox_AP", "bbox_AP50", "bbox_AP75", "bbox_APs"}


def test_a_category_without_objects_has_no_part_in_the_mean() -> None:
    data = by_hand(objects([([0, 0, 10, 10], 1)]))
    found = [detections([([0, 0, 10, 10], 0.9, 1), ([50, 50, 10, 10], 0.95, 2)])]
    for result in (coco_average_precision(data, found), voc_average_precision(data, found)):
        assert set(result.per_category) == {"a"}
        assert max(result.metrics.values()) == pytest.approx(1.0)


BAD: list[tuple[str, list[Detections], str]] = [
    (
        "NaN score",
        [detections([([0, 0, 5, 5], float("nan"), 1)])],
        "picture 1: detection 0 .*: its score is not finite",
    ),
    ("NaN box", [detections([([0, 0, 5, 5], 0.5, 1), ([0, float("nan"), 5, 5], 0.5, 1)])], "detection 1 .*box is not"),
    ("infinite box", [detections([([0, 0, float("inf"), 5], 0.5, 1)])], "its box is not finite"),
    ("no area", [detections([([0, 0, 0, 5], 0.5, 1)])], "its box has no area"),
    ("negative", [detections([([0, 0, 5, -5], 0.5, 1)])], "its box has no area"),
    ("background", [detections([([0, 0, 5, 5], 0.5, 0)])], r"its label is not 1 .. 2"),
    ("unknown category", [detections([([0, 0, 5, 5], 0.5, 3)])], r"its label is not 1 .. 2"),
    ("one too many", [NONE, NONE], "detections of 2 pictures, but it has 1"),
    ("unequal", [Detections(np.zeros((1, 4)), np.zeros(2), np.ones(1, dtype=np.int64))], "must be equally many"),
    ("masks", [Detections(np.ones((1, 4)), np.ones(1), np.ones(1, dtype=np.int64), ())], "0 masks of 1 detections"),
]


@pytest.mark.parametrize(("found", "message"), [one[1:] for one in BAD], ids=[one[0] for one in BAD])
@pytest.mark.fault(14, "results: NaN, infinite, no area, unknown category")
def test_detections_that_are_none_are_refused_by_name(found: list[Detections], message: str) -> None:
    data = by_hand(objects([([0, 0, 10, 10], 1)]))
    for evaluate in (check_detections, coco_average_precision, voc_average_precision):
        with pytest.raises(EvaluationError, match=message):
            evaluate(data, found)


@pytest.mark.fault(14, "truth without objects: no number, not 0")
def test_nothing_to_find_is_no_zero() -> None:
    with pytest.raises(EvaluationError, match="no object in it"):
        coco_average_precision(by_hand(objects([])), [NONE])
    with pytest.raises(EvaluationError, match="no object in it"):
        voc_average_precision(by_hand(objects([([0, 0, 9, 9], 1)], crowd=(0,))), [NONE])
    with pytest.raises(EvaluationError, match="all objects are difficult"):
        voc_average_precision(by_hand(objects([([0, 0, 9, 9], 1)], difficult=(0,))), [NONE])


def test_masks_that_are_not_there_are_asked_for(root: Path) -> None:
    without, data = read_coco(root), read_coco(root, masks=True)
    with pytest.raises(EvaluationError, match="its masks were not read"):
        coco_average_precision(without, the_truth(without), kind="segm")
    with pytest.raises(EvaluationError, match="these detections have no masks"):
        coco_average_precision(data, the_truth(data), kind="segm")


# ---- VOC, worked by hand


def two_pictures() -> tuple[DetectionData, list[Detections]]:
    first = objects([([0, 0, 10, 10], 1), ([20, 0, 10, 10], 1), ([50, 50, 10, 10], 2)])
    second = objects([([0, 0, 10, 10], 1), ([50, 50, 10, 10], 1)], difficult=(1,))
    found = [
        detections([
            ([0, 0, 10, 10], 0.9, 1),  # right: 1 of 1, recall 1/3
            ([0, 0, 10, 10], 0.8, 1),  # the same object again: wrong
            ([70, 70, 10, 10], 0.5, 1),  # nothing there: wrong
            ([50, 50, 10, 10], 0.4, 2),  # right, the only one of its category
        ]),
        detections([
            ([50, 50, 10, 10], 0.7, 1),  # the difficult one: not counted
            ([0, 0, 10, 10], 0.6, 1),  # right: 2 of 3, recall 2/3
        ]),
    ]  # fmt: skip
    return by_hand(first, second), found


def test_both_voc_rules_on_a_case_worked_by_hand() -> None:
    data, found = two_pictures()
    result = voc_average_precision(data, found)
    # category a: precision 1 up to recall 1/3, 2/3 up to recall 2/3, nothing beyond; category b: 1
    assert result.per_category == {"a": pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3), "b": 1.0}
    assert result.metrics["voc_AP50"] == pytest.approx((5 / 9 + 1) / 2)
    # recalls 0, .1, .2, .3 have precision 1; .4, .5, .6 have 2/3; .7 ... 1 have none
    assert result.metrics["voc07_AP50"] == pytest.approx((6 / 11 + 1) / 2)


def test_verdicts() -> None:
    data, found = two_pictures()
    assert judge(data, 0, found[0]).tolist() == [RIGHT, WRONG, WRONG, RIGHT]
    assert judge(data, 1, found[1]).tolist() == [IGNORED, RIGHT]
    assert judge(by_hand(objects([])), 0, found[0]).tolist() == [WRONG] * 4
    assert judge(data, 0, NONE).tolist() == []


def test_an_overlap_of_exactly_one_half_is_enough() -> None:
    data = by_hand(objects([([0, 0, 10, 10], 1)]))
    for high, value in ((5.0, 1.0), (4.99, 0.0)):
        found = [detections([([0, 0, 10, high], 0.9, 1)])]
        assert voc_average_precision(data, found).metrics["voc_AP50"] == value


def test_voc_compares_with_the_best_object_only_and_coco_with_the_next_one_too() -> None:
    data = by_hand(objects([([0, 0, 10, 10], 1), ([0, 3, 10, 10], 1)]))
    found = [detections([([0, 0, 10, 10], 0.9, 1), ([0, 1, 10, 10], 0.8, 1)])]
    assert judge(data, 0, found[0]).tolist() == [RIGHT, WRONG]
    assert voc_average_precision(data, found).metrics["voc_AP50"] == pytest.approx(0.5)
    assert coco_average_precision(data, found).metrics["bbox_AP50"] == pytest.approx(1.0)


def test_recalls_of_tenths_are_exact() -> None:
    """Ten objects, three found: recall .3 is reached, though 3/10 < 3 * .1 in floating point."""
    data = by_hand(objects([([9 * number, 0, 8, 8], 1) for number in range(10)]))
    found = [detections([([9 * number, 0, 8, 8], 0.9 - number / 10, 1) for number in range(3)])]
    metrics = voc_average_precision(data, found).metrics
    assert metrics["voc07_AP50"] == pytest.approx(4 / 11) and metrics["voc_AP50"] == pytest.approx(0.3)


def test_the_order_of_detections_in_a_picture_does_not_matter() -> None:
    data, found = two_pictures()
    turned = [Detections(one.xywh[::-1], one.scores[::-1], one.labels[::-1]) for one in found]
    assert voc_average_precision(data, turned) == voc_average_precision(data, found)


# ---- files


def test_detections_survive_the_file(root: Path, tmp_path: Path) -> None:
    data = read_coco(root, masks=True)
    found = the_truth(data, masks=True)
    save_detections(tmp_path / "found.json", data, found)
    again = read_detections(tmp_path / "found.json", data)
    for one, other in zip(found, again, strict=True):
        assert np.array_equal(one.xywh, other.xywh) and np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.labels, other.labels) and one.masks == other.masks
    (tmp_path / "none.json").write_text("[]")
    assert [len(one) for one in read_detections(tmp_path / "none.json", data)] == [0] * 6


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"category_id": 9}, "detection 0: category_id 9 is no category"),
        (GOOD | {"image_id": 99}, "image_id 99 is no picture"),
        (GOOD | {"score": float("nan")}, "NaN, which is not JSON"),
        (GOOD | {"score": "0.5"}, "its score '0.5' is not a finite number"),
        (GOOD | {"score": None}, "its score None"),
        (GOOD | {"bbox": [1, 2, 3]}, "not four finite numbers"),
        (GOOD | {"bbox": [1, 2, None, 4]}, "not four finite numbers"),
        ({key: value for key, value in GOOD.items() if key != "score"}, "has no 'score'"),
        (GOOD | {"segmentation": {"size": [1, 1], "counts": [1]}}, "run lengths of size"),
        ([], "expected an object"),
    ],
)
@pytest.mark.fault(14, "results file: NaN, unknown category or picture, missing keys")
def test_broken_results_are_refused_by_name(root: Path, tmp_path: Path, row: Any, message: str) -> None:
    (tmp_path / "found.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=message):
        read_detections(tmp_path / "found.json", read_coco(root))


@pytest.mark.fault(14, "results file: no list, masks of some only")
def test_results_of_another_shape(root: Path, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text("{}")
    with pytest.raises(DataError, match="expected a list of detections"):
        read_detections(tmp_path / "found.json", read_coco(root))
    mask = {"segmentation": {"size": [48, 64], "counts": [3000, 72]}}
    (tmp_path / "found.json").write_text(json.dumps([GOOD, GOOD | mask]))
    with pytest.raises(DataError, match="some detections have masks and some have not"):
        read_detections(tmp_path / "found.json", read_coco(root))
