"""The rows of `VIEWS` against the values in the code of each method's authors, with the file that has them."""

import inspect
from typing import Any

import pytest

from jointembed.data.views import VIEWS

AUTHORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vicreg": (
        "facebookresearch/vicreg: augmentations.py",
        {
            "scale": [0.08, 1.0], "interpolation": "bicubic", "flip": 0.5, "jitter": [0.4, 0.4, 0.2, 0.1],
            "jitter_p": 0.8, "grey": 0.2, "blur": [1.0, 0.1], "sigma": [0.1, 2.0], "solarize": [0.0, 0.2],
        },
    ),
    "simclr": (
        "google-research/simclr: data_util.py",
        {
            "scale": [0.08, 1.0], "interpolation": "bicubic", "flip": 0.5, "jitter": [0.8, 0.8, 0.8, 0.2],
            "jitter_p": 0.8, "grey": 0.2, "blur": [0.5, 0.5], "sigma": [0.1, 2.0], "solarize": [0.0, 0.0],
        },
    ),
    "moco_v1": (
        "facebookresearch/moco: main_moco.py",
        {
            "scale": [0.2, 1.0], "interpolation": "bilinear", "grey": 0.2, "grey_first": True,
            "jitter": [0.4, 0.4, 0.4, 0.4], "jitter_p": 1.0, "blur": [0.0, 0.0], "flip": 0.5,
        },
    ),
    "moco_v2": (
        "facebookresearch/moco: main_moco.py",
        {
            "scale": [0.2, 1.0], "interpolation": "bilinear", "grey": 0.2, "grey_first": False,
            "jitter": [0.4, 0.4, 0.4, 0.1], "jitter_p": 0.8, "blur": [0.5, 0.5], "sigma": [0.1, 2.0], "flip": 0.5,
        },
    ),
    "swav": (
        "facebookresearch/swav: scripts/swav_400ep_2x224_pretrain.sh",
        {"sizes": [224], "counts": [2], "scales": [[0.08, 1.0]]},
    ),
    "multi_crop": (
        "facebookresearch/swav: scripts/swav_800ep_pretrain.sh, src/multicropdataset.py",
        {
            "sizes": [224, 96], "counts": [2, 6], "scales": [[0.14, 1.0], [0.05, 0.14]], "jitter": [0.8, 0.8, 0.8, 0.2],
            "jitter_p": 0.8, "grey": 0.2, "blur": 0.5, "sigma": [0.1, 2.0], "flip": 0.5,
        },
    ),
    "pirl": (
        "facebookresearch/vissl: configs/config/pretrain/pirl/pirl_jigsaw_4node_resnet50.yaml",
        {
            "size": 224, "scale": [0.08, 1.0], "patch_source": 255, "patch_size": 64, "patch_scale": [0.6, 1.0],
            "jitter": [0.4, 0.4, 0.4, 0.2], "jitter_p": 1.0, "photometric": 0.66, "grey": 0.2, "flip": 0.5,
        },
    ),
    "cmc": (
        "HobbitLong/CMC: train_CMC.py, ResNets on ImageNet",
        {"scale": [0.08, 1.0], "flip": 0.5, "jitter_p": 0.0, "space": "lab"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTHORS)
def test_a_row_has_the_values_of_its_authors(name: str) -> None:
    source, values = AUTHORS[name]
    row = {key: parameter.default for key, parameter in inspect.signature(VIEWS[name]).parameters.items()}
    assert {key: row[key] for key in values} == values, source
