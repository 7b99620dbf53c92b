"""The published numbers of VICReg (Bardes, Ponce, LeCun, ICLR 2022), table by table, as plain data.

A cell is a number in the unit of its column, a word of the paper's ("collapse", "x", "yes", "no"), None where the
paper gives nothing, or a `Dagger` around a number that the paper marks with one.
"""

from dataclasses import dataclass

PAPER = "VICReg, ICLR 2022"


@dataclass(frozen=True)
class Dagger:
    """A number that carries a dagger in print; the table's notes say what it stands for."""

    value: float


Cell = float | str | Dagger | None


@dataclass(frozen=True)
class PaperRow:
    """One printed row: the method and a cell for each column."""

    method: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PaperTable:
    """One printed table: rows in printed order, each with as many cells as there are columns."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the rows fit the columns."""
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{self.name}: {row.method}: {len(row.cells)} cells for {len(self.columns)} columns")

    def value(self, method: str, column: str) -> float | str | None:
        """The cell of the first row of `method`, without its dagger. Raises KeyError where there is none."""
        for row in self.rows:
            if row.method == method and column in self.columns:
                cell = row.cells[self.columns.index(column)]
                return cell.value if isinstance(cell, Dagger) else cell
        raise KeyError(f"{self.name}: no cell {method!r}, {column!r}")


# Name of each method in a recipe's `objective` block; below the line those that the paper's tables have not.
OBJECTIVES = {
    "Supervised": "supervised",
    "MoCo": "moco",
    "PIRL": "pirl",
    "CPC v2": "cpc",
    "CMC": "cmc",
    "SimCLR": "simclr",
    "SimSiam": "simsiam",
    "SwAV": "swav",
    "InfoMin": "infomin",
    "OBoW": "obow",
    "BYOL": "byol",
    "Barlow Twins": "barlow_twins",
    "VICReg": "vicreg",
    "VSE++": "vse",
    # ---
    "W-MSE": "wmse",
    "DeepCluster": "deepcluster",
    "DeepCluster v2": "deepcluster_v2",
    "VICRegL": "vicregl",
    "SIGReg": "sigreg",
}

# What a direction of retrieval is asked with, and how the paper labels it: its two column groups are swapped in
# print, for it gives VSE++ 41.3 under "text-to-image" where VSE++ itself reports 41.3 with image queries.
DIRECTIONS = ("i2t", "t2i")
QUERY_MODALITY = {"i2t": "image query -> text (i2t)", "t2i": "text query -> image (t2i)"}
PRINTED_LABEL = {"i2t": "text-to-image", "t2i": "image-to-text"}


def _rows(cells_of: dict[str, tuple[Cell, ...]]) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(method, cells) for method, cells in cells_of.items())


IMAGENET = PaperTable(
    "imagenet",
    "Linear classification on ImageNet, ResNet-50",
    ("top-1", "top-5"),
    _rows(
        {
            "Supervised": (76.5, None),
            "MoCo": (60.6, None),
            "PIRL": (63.6, None),
            "CPC v2": (63.8, None),
            "CMC": (66.2, None),
            "SimCLR": (69.3, 89.0),
            "MoCo v2": (71.1, None),
            "SimSiam": (71.3, None),
            "SwAV": (71.8, None),
            "InfoMin": (73.0, 91.1),
            "OBoW": (73.8, None),
            "BYOL": (74.3, 91.6),
            "SwAV (multi-crop)": (75.3, None),
            "Barlow Twins": (73.2, 91.0),
            "VICReg": (73.2, 91.1),
        }
    ),
)

SEMI = PaperTable(
    "semi",
    "Semi-supervised classification on ImageNet, ResNet-50",
    ("top-1, 1%", "top-1, 10%", "top-5, 1%", "top-5, 10%"),
    _rows(
        {
            "Supervised": (25.4, 56.4, 48.4, 80.4),
            "PIRL": (None, None, 57.2, 83.8),
            "SimCLR": (48.3, 65.6, 75.5, 87.8),
            "OBoW": (None, None, 82.9, 90.7),
            "BYOL": (53.2, 68.8, 78.4, 89.0),
            "SwAV (multi-crop)": (53.9, 70.2, 78.5, 89.9),
            "Barlow Twins": (55.0, 69.7, 79.2, 89.3),
            "VICReg": (54.8, 69.5, 79.4, 89.5),
        }
    ),
)

TRANSFER = PaperTable(
    "transfer",
    "Transfer: linear classification, detection and segmentation, ResNet-50",
    ("Places205", "VOC07", "iNat18", "VOC07+12 det", "COCO det", "COCO seg"),
    _rows(
        {
            "Supervised": (53.2, 87.5, 46.7, 81.3, 39.0, 35.4),
            "MoCo": (46.9, 79.8, 31.5, None, None, None),
            "PIRL": (49.8, 81.1, 34.1, None, None, None),
            "SimCLR": (52.5, 85.5, 37.2, None, None, None),
            "MoCo v2": (51.8, 86.4, 38.6, 82.5, 39.8, 36.1),
            "SimSiam": (None, None, None, 82.4, None, None),
            "BYOL": (54.0, 86.6, 47.6, None, Dagger(40.4), Dagger(37.0)),
            "SwAV (multi-crop)": (56.7, 88.9, 48.6, 82.6, 41.6, 37.8),
            "OBoW": (56.8, 89.3, None, 82.9, None, None),
            "Barlow Twins": (54.1, 86.2, 46.5, 82.6, Dagger(40.0), Dagger(36.7)),
            "VICReg": (54.3, 86.6, 47.0, 82.4, 39.4, 36.4),
        }
    ),
    ("† marked with a dagger in the source.",),
)

FLEXIBILITY = PaperTable(
    "flexibility",
    "Branches that share weights, have different weights, or different architectures",
    ("shared weights R50", "different weights R50", "R50 + R101", "R50 + ViT-S"),
    _rows(
        {
            "BYOL": (69.3, "x", "x", "x"),
            "SimCLR": (64.4, 63.1, 63.9, 63.5),
            "Barlow Twins": (68.7, 64.2, 65.3, 63.9),
            "VICReg": (68.6, 66.5, 68.1, 66.2),
        }
    ),
    ("x: not possible with that method.",),
)

RETRIEVAL = PaperTable(
    "retrieval",
    "Image-text retrieval on MS-COCO 5K, ResNet-152 and word embedding + GRU, the VSE++ setting",
    tuple(f"{label} R@{k}" for label in ("image-to-text", "text-to-image") for k in (1, 5, 10)),
    _rows(
        {
            "VSE++": (30.3, 59.4, 72.4, 41.3, 71.1, 81.2),
            "Barlow Twins": (31.4, 60.4, 75.1, 42.9, 74.0, 83.5),
            "VICReg": (33.6, 62.7, 77.9, 45.2, 76.1, 84.2),
        }
    ),
    (
        "The paper's two column groups are swapped in print: what it prints as image-to-text is asked with a text, "
        "what it prints as text-to-image is asked with an image. Other papers give VSE++ 41.3 with image queries and "
        "30.3 with text queries.",
    ),
)

ABLATION = PaperTable(
    "ablation",
    "Variance and covariance regularisation added to other methods",
    ("momentum encoder", "stop-gradient", "predictor", "BN", "no reg", "var", "var + cov"),
    (
        PaperRow("BYOL", ("yes", "yes", "yes", "yes", Dagger(69.3), 70.2, 69.5)),
        PaperRow("SimSiam", ("no", "yes", "yes", "yes", Dagger(67.9), 68.1, 67.6)),
        PaperRow("SimSiam", ("no", "yes", "yes", "no", 35.1, 67.3, 67.1)),
        PaperRow("SimSiam", ("no", "yes", "no", "no", "collapse", 56.8, 66.1)),
        PaperRow("VICReg", ("no", "no", "yes", "no", "collapse", 56.2, 67.3)),
        PaperRow("VICReg", ("no", "no", "yes", "yes", "collapse", 57.1, 68.7)),
        PaperRow("VICReg", ("no", "no", "no", "yes", "collapse", 57.5, Dagger(68.6))),
        PaperRow("VICReg", ("no", "no", "no", "no", "collapse", 56.5, 67.4)),
    ),
    ("† the unmodified original setup.",),
)

COST = PaperTable(
    "cost",
    "Cost of pre-training on 32 V100",
    ("hours per 100 epochs", "GB per GPU", "top-1"),
    _rows(
        {
            "SwAV": (9, 9.5, 71.8),
            "SwAV (multi-crop)": (13, 12.9, 75.3),
            "BYOL": (10, 14.6, 74.3),
            "Barlow Twins": (12, 11.3, 73.2),
            "VICReg": (11, 11.3, 73.2),
        }
    ),
)

TABLES = {table.name: table for table in (IMAGENET, SEMI, TRANSFER, FLEXIBILITY, RETRIEVAL, ABLATION, COST)}
