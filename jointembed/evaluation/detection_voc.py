"""Pascal VOC's average precision at one IoU, by the rule of 2007 (eleven points) and by the area under the curve.

Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2010, section 4.2; the area rule is that of the
challenges from 2010 on. Written here because pycocotools has neither: it never ignores `difficult` objects, lets a
detection take a worse object where the best one is taken, and reads precision at 101 recalls.
"""

from collections.abc import Sequence

import numpy as np
from torch import from_numpy
from torchvision.ops import box_iou

from jointembed.data.detection import DetectionData
from jointembed.errors import EvaluationError
from jointembed.evaluation.detection import AveragePrecision, check_detections
from jointembed.inference.detect import Detections

RIGHT, WRONG, IGNORED = 1, -1, 0


def voc_average_precision(data: DetectionData, found: Sequence[Detections], *, iou: float = 0.5) -> AveragePrecision:
    """Mean over categories of AP at one IoU; crowds are treated as `difficult` objects.

    Args:
        data: pictures and objects.
        found: one entry a picture.
        iou: a detection is right where it overlaps an object of its category at least so much.

    Returns:
        Metrics `voc_AP50` (area) and `voc07_AP50` (eleven points), 0 .. 1; per category the area.

    Raises:
        EvaluationError: see `check_detections`; only difficult objects.
    """
    check_detections(data, found)
    judged = [judge(data, number, one, iou) for number, one in enumerate(found)]
    verdicts, scores = np.concatenate(judged), np.concatenate([one.scores for one in found])
    labels = np.concatenate([one.labels for one in found])
    counts = sum(
        np.bincount(one.labels[~(one.difficult | one.crowd)], minlength=len(data.categories) + 1)
        for one in data.objects
    )
    area, eleven = {}, {}
    for label, name in enumerate(data.categories, 1):
        total = int(np.asarray(counts)[label])
        if total:
            own = labels == label
            order = np.argsort(-scores[own], kind="stable")
            curve = precision_recall(verdicts[own][order], total)
            area[name], eleven[name] = area_rule(*curve, total), eleven_point_rule(*curve, total)
    if not area:
        raise EvaluationError(f"{data.name}: all objects are difficult; there is no precision by the VOC rule")
    suffix = f"AP{round(100 * iou)}"
    means = {f"{rule}_{suffix}": float(np.mean(list(one.values()))) for rule, one in (("voc", area), ("voc07", eleven))}
    return AveragePrecision(means, area)


def judge(data: DetectionData, number: int, one: Detections, iou: float = 0.5) -> np.ndarray:
    """What each detection in a picture is: RIGHT, WRONG, or IGNORED because its best object is difficult.

    Best first, a detection is compared with the object of its category that it overlaps most, and is wrong where an
    earlier one has taken that.

    Returns:
        (n,) int64, in the order of the detections.
    """
    truth = data.objects[number]
    verdict = np.full(len(one), WRONG, dtype=np.int64)
    if not len(truth) or not len(one):
        return verdict
    overlap = box_iou(from_numpy(one.xyxy), from_numpy(truth.xyxy)).numpy()
    ignored, taken = truth.difficult | truth.crowd, np.zeros(len(truth), dtype=bool)
    for row in np.argsort(-one.scores, kind="stable"):
        own = np.where(truth.labels == one.labels[row], overlap[row], -1.0)
        best = int(own.argmax())
        if own[best] < iou:
            continue
        if ignored[best]:
            verdict[row] = IGNORED
        elif not taken[best]:
            taken[best], verdict[row] = True, RIGHT
    return verdict


def precision_recall(verdicts: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and the number of objects found, after each detection that counts, best first."""
    counted = verdicts[verdicts != IGNORED]
    right = np.cumsum(counted == RIGHT)
    return right / np.arange(1, len(counted) + 1), right


def area_rule(precision: np.ndarray, right: np.ndarray, total: int) -> float:
    """Area under the curve: each object found adds the best precision at its recall or at a higher one."""
    if not len(right):
        return 0.0
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(right, prepend=0) * falling).sum() / total)


def eleven_point_rule(precision: np.ndarray, right: np.ndarray, total: int) -> float:
    """Mean of the best precision at a recall of at least 0, .1 ... 1."""
    points = [precision[10 * right >= tenths * total] for tenths in range(11)]  # whole numbers: .3 is not exact
    return float(np.mean([point.max() if len(point) else 0.0 for point in points]))
