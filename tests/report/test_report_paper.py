import pytest

from jointembed.report import paper


@pytest.mark.parametrize(
    ("table", "method", "column", "value"),
    [
        ("imagenet", "Supervised", "top-1", 76.5),
        ("imagenet", "BYOL", "top-5", 91.6),
        ("imagenet", "MoCo v2", "top-5", None),
        ("imagenet", "VICReg", "top-1", 73.2),
        ("semi", "VICReg", "top-5, 1%", 79.4),
        ("semi", "PIRL", "top-1, 1%", None),
        ("semi", "OBoW", "top-5, 10%", 90.7),
        ("transfer", "SimSiam", "VOC07+12 det", 82.4),
        ("transfer", "BYOL", "COCO det", 40.4),
        ("transfer", "VICReg", "COCO seg", 36.4),
        ("flexibility", "BYOL", "R50 + R101", "x"),
        ("flexibility", "VICReg", "R50 + ViT-S", 66.2),
        ("retrieval", "VSE++", "image-to-text R@1", 30.3),
        ("retrieval", "VSE++", "text-to-image R@1", 41.3),
        ("retrieval", "VICReg", "text-to-image R@10", 84.2),
        ("retrieval", "Barlow Twins", "image-to-text R@5", 60.4),
        ("ablation", "BYOL", "no reg", 69.3),
        ("cost", "SwAV (multi-crop)", "GB per GPU", 12.9),
        ("cost", "VICReg", "hours per 100 epochs", 11),
    ],
)
def test_published_numbers(table: str, method: str, column: str, value: float | str | None) -> None:
    assert paper.TABLES[table].value(method, column) == value


def test_sizes_of_the_tables() -> None:
    sizes = {name: (len(table.rows), len(table.columns)) for name, table in paper.TABLES.items()}
    assert sizes == {
        "imagenet": (15, 2), "semi": (8, 4), "transfer": (11, 6), "flexibility": (4, 4),
        "retrieval": (3, 6), "ablation": (8, 7), "cost": (5, 3),
    }  # fmt: skip


def test_ablation_rows() -> None:
    cells = [row.cells for row in paper.ABLATION.rows]
    assert cells[2] == ("no", "yes", "yes", "no", 35.1, 67.3, 67.1)
    assert cells[6] == ("no", "no", "no", "yes", "collapse", 57.5, paper.Dagger(68.6))
    assert [row[4] for row in cells].count("collapse") == 5


def test_recalls_rise_with_k_and_columns_are_labelled_by_what_is_printed() -> None:
    for row in paper.RETRIEVAL.rows:
        numbers = [cell for cell in row.cells if isinstance(cell, float)]
        assert numbers[:3] == sorted(numbers[:3]) and numbers[3:] == sorted(numbers[3:])
        # Asking with an image (printed "text-to-image") is the easier direction: five captions are right.
        assert numbers[3] > numbers[0]
    assert paper.PRINTED_LABEL == {"i2t": "text-to-image", "t2i": "image-to-text"}


def test_unknown_cell_and_ragged_row_are_refused() -> None:
    with pytest.raises(KeyError, match="VSE"):
        paper.COST.value("VSE++", "top-1")
    with pytest.raises(ValueError, match="BYOL: 1 cells for 2 columns"):
        paper.PaperTable("t", "t", ("a", "b"), (paper.PaperRow("BYOL", (1.0,)),))
