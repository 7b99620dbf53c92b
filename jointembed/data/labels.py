"""Labels as a source gives them, numbers or names, to classes 0 .. C-1."""

import logging
from collections.abc import Sequence

import numpy as np

from jointembed.errors import DataError

log = logging.getLogger(__name__)


def number_labels(
    labels: Sequence[int | str], names: Sequence[str] | None, *, source: str, pictures: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the labels.

    Args:
        labels: one a picture, whole numbers (as text, too) that count the classes from 0, or names of classes.
        names: of all classes, in their order. Without them numbers name themselves and names are sorted; then every
            class must have a picture, so a number is less than the number of pictures. With them a class without any
            is said in one line of the log.
        source: what messages call the data set.
        pictures: what messages call each picture.

    Returns:
        Labels (I,) int64 and the names of the classes.

    Raises:
        DataError: naming the picture whose label is negative or no class, or the class without a picture.
    """
    if all(isinstance(one, int) or one.removeprefix("-").isdecimal() for one in labels):
        given = [int(one) for one in labels]  # ids of another kind may have any size
        classes = tuple(names or map(str, range(min(max(given) + 1, len(given)))))
        found = [number if 0 <= number < len(classes) else -1 for number in given]
    else:
        classes = tuple(names or sorted({str(one) for one in labels}))
        position = {name: number for number, name in enumerate(classes)}
        found = [position.get(str(one), -1) for one in labels]
    numbers = np.array(found, dtype=np.int64)
    wrong = np.flatnonzero(numbers < 0)
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"{source}: {pictures[first]!r} has label {labels[first]!r}, which is none of {len(classes)} classes"
            + ("" if names else "; without names of classes, numbers count them from 0")
        )
    empty = np.setdiff1d(np.arange(len(classes)), numbers)
    if len(empty):
        message = f"{source}: class {classes[empty[0]]!r} has no picture ({len(empty)} of {len(classes)} have none)"
        if names is None:
            raise DataError(message)
        log.warning("%s", message)
    return numbers, classes
