"""The cells of the paper's tables as data: the recipe and overrides that produce each, at full and at small scale.

Full scale is what the paper ran, on the data that the recipes name by environment variables. Small scale is the same
on a subset of CIFAR-10, for two cores: imagenet, flexibility and ablation.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jointembed.report import paper

Scale = Literal["full", "small"]
SCALES: dict[str, tuple[Scale, ...]] = {
    "imagenet": ("full", "small"),
    "semi": ("full",),
    "transfer": ("full",),
    "flexibility": ("full", "small"),
    "retrieval": ("full",),
    "ablation": ("full", "small"),
    "cost": ("full", "small"),
}


@dataclass(frozen=True)
class Command:
    """One call of `jointembed`: what trains or evaluates one run."""

    verb: Literal["train", "evaluate", "detect"]
    run: str  # the run's folder, below the folder of all runs
    recipe: str  # of the run, or of the detector
    overrides: tuple[str, ...] = ()
    task: str = ""  # of an evaluation: linear, semi1 ...; `retrieval`
    start: str = ""  # of a detector or a second stage: the run it starts from

    def words(self, runs: str, *, processes: int = 1, seed: int | None = None) -> list[str]:
        """The command line.

        Args:
            runs: folder of all runs.
            processes: GPUs of a training; an evaluation takes one.
            seed: of a training; its run folder is then `RUN/seedN`.
        """
        folder = f"{runs}/{self.run}" + ("" if seed is None else f"/seed{seed}")
        if self.verb == "evaluate":
            how = ["--split", "test", "--protocol", "coco_5k"] if self.task == "retrieval" else ["--task", self.task]
            return ["jointembed", "evaluate", folder, *how, *(f"--set={one}" for one in self.overrides)]
        several = ["accelerate", "launch", "--num_processes", str(processes), "-m"] if processes > 1 else []
        start = [f"init_from={runs}/{self.start}"] if self.start else []
        seeds = [] if seed is None else [f"seed={seed}"]
        return [*several, "jointembed", self.verb, self.recipe, *start, *self.overrides, *seeds, "--out", folder]

    def line(self, runs: str, *, processes: int = 1, seed: int | None = None) -> str:
        """The same as one types it."""
        return " ".join(map(_quoted, self.words(runs, processes=processes, seed=seed)))


def _quoted(word: str) -> str:
    """A word for the shell; one with a variable stays open to it."""
    return f'"{word}"' if "$" in word else shlex.quote(word)


@dataclass(frozen=True)
class Cell:
    """One cell of a table, or several that one run fills: where it stands, and the commands that fill it."""

    table: str
    row: tuple[str, ...]  # the method; in the ablation its switches too
    column: str  # `*` for all
    commands: tuple[Command, ...]  # in order; cells may share some
    seeds: int = 1  # worth running at small scale


def cells(table: str, scale: Scale = "full") -> list[Cell]:
    """The cells of a table that can be run, in printed order. Raises KeyError for a table without this scale."""
    if scale not in SCALES[table]:
        raise KeyError(f"{table} has no {scale} scale")
    return _CELLS[table](scale)


# -- one run a row --------------------------------------------------------------------------------------------------

IMAGENET = {  # row -> recipe, in recipes/imagenet and, as cifar10_..., in recipes/small
    "Supervised": "supervised",
    "MoCo": "moco_v1",
    "PIRL": "pirl",
    "CPC v2": "cpc",
    "CMC": "cmc",
    "SimCLR": "simclr",
    "MoCo v2": "moco_v2",
    "SimSiam": "simsiam",
    "SwAV": "swav",
    "InfoMin": "infomin",
    "OBoW": "obow",
    "BYOL": "byol",
    "SwAV (multi-crop)": "swav_multicrop",
    "Barlow Twins": "barlow_twins",
    "VICReg": "vicreg",
}
BEYOND = {  # methods that the paper's table has not
    "W-MSE": "w_mse",
    "DeepCluster": "deepcluster",
    "DeepCluster v2": "deepcluster_v2",
    "VICRegL": "vicregl",
    "SIGReg": "sigreg",
}
_JUDGED = ("knn", "linear", "collapse")  # of the small runs: the paper's number on cached features too


def _evaluators(*names: str) -> str:
    return f"evaluation.evaluators=[{', '.join(f'{{name: {name}}}' for name in names)}]"


JUDGED = _evaluators(*_JUDGED)  # the override that says so


def _pretrain(row: str) -> Command:
    """The full pre-training of a row, shared by the tables that use it."""
    recipe = IMAGENET[row]
    own = {"Supervised": ("classifier", "knn", "collapse"), "CMC": _JUDGED}
    judged = (_evaluators(*own[row]),) if row in own else ()
    return Command("train", f"imagenet/{recipe}", f"recipes/imagenet/{recipe}.yaml", judged)


def _after(first: Command, task: str, *overrides: str) -> Command:
    return Command("evaluate", first.run, first.recipe, overrides, task)


def _imagenet(scale: Scale) -> list[Cell]:
    if scale == "small":
        return [Cell("imagenet", (row,), "*", (_small(row, recipe),)) for row, recipe in (IMAGENET | BEYOND).items()]
    found = []
    for row in IMAGENET:
        train = _pretrain(row)
        # the supervised row's own classifier is the linear one; CMC's encoders see two planes, which no task shows
        tasks = () if row in ("Supervised", "CMC") else (_after(train, "linear"),)
        found.append(Cell("imagenet", (row,), "*", (train, *tasks)))
    return found


def _small(row: str, recipe: str) -> Command:
    judged = ("classifier", *_JUDGED) if row == "Supervised" else _JUDGED
    select = ("evaluation.select=knn20_top1",) if row == "Supervised" else ()
    return Command("train", f"small/{recipe}", f"recipes/small/cifar10_{recipe}.yaml", (_evaluators(*judged), *select))


def _semi(scale: Scale) -> list[Cell]:
    found = []
    for row in (one.method for one in paper.SEMI.rows):
        for share, column in (("1", "1%"), ("10", "10%")):
            listed = f"data.train.subset=${{IMAGENET}}/{share}percent.txt"
            if row == "Supervised":  # from random weights, on that share alone
                train = _pretrain(row)
                alone = Command("train", f"semi/supervised{share}", train.recipe, (*train.overrides, listed))
                found.append(Cell("semi", (row,), column, (alone,)))
            else:
                tune = _after(_pretrain(row), f"semi{share}", "data.train.fraction=null", listed)
                found.append(Cell("semi", (row,), column, (_pretrain(row), tune)))
    return found


_OBJECT_RECIPES = {"VOC07+12 det": "voc07_12_c4", "COCO det": "coco_mask_rcnn_fpn", "COCO seg": "coco_mask_rcnn_fpn"}
_LINEAR_ON = {"Places205": ("places205", "PLACES205"), "iNat18": ("inat18", "INAT18")}  # task, variable of the folder


def _transfer(scale: Scale) -> list[Cell]:
    found = []
    for row in paper.TRANSFER.rows:
        train = _pretrain(row.method)
        for column, cell in zip(paper.TRANSFER.columns, row.cells, strict=True):
            if cell is not None:
                found.append(Cell("transfer", (row.method,), column, (train, _transferred(train, column))))
    return found


def _transferred(train: Command, column: str) -> Command:
    if column in _LINEAR_ON:
        task, variable = _LINEAR_ON[column]
        return _after(train, task, *(f"data.{split}.path=${{{variable}}}" for split in ("train", "validation")))
    if column == "VOC07":
        return _after(train, "voc07", "root=${VOC}")
    recipe, name = _OBJECT_RECIPES[column], train.run.rpartition("/")[2]
    view = "image" if name in ("supervised", "obow") else "view1"
    return Command(
        "detect", f"transfer/{name}_{recipe}", f"recipes/detection/{recipe}.yaml", ("encoder=null", f"view={view}"),
        start=train.run,
    )  # fmt: skip


# -- one run a cell -------------------------------------------------------------------------------------------------

BRANCHES = {  # column -> recipe in recipes/flexibility and, as flexibility_..., in recipes/small; the branches' names
    "shared weights R50": ("shared", "shared", ("net",)),
    "different weights R50": ("different", "different", ("left", "right")),
    "R50 + R101": ("r50_r101", "r18_r34", ("left", "right")),
    "R50 + ViT-S": ("r50_vit_s", "r18_vit_tiny", ("left", "right")),
}


@dataclass(frozen=True)
class _Method:
    """What makes a recipe of VICReg one of another method: objective, expander, and at full scale its optimizer."""

    objective: str = ""
    expander: str = ""
    full: tuple[str, ...] = ()

    def overrides(self, branches: Sequence[str]) -> tuple[str, ...]:
        expanders = [f"branches.{branch}.expander={self.expander}" for branch in branches if self.expander]
        return (*([f"objective={self.objective}"] if self.objective else []), *expanders)


_FLEXIBLE: dict[str, dict[Scale, _Method]] = {
    "BYOL": {
        "full": _Method(),  # its own recipe: it has one column alone
        "small": _Method("{name: byol, predictor_width: 1024, momentum: 0.98}", "{name: mlp, widths: [1024, 256]}"),
    },
    "SimCLR": {
        "full": _Method(
            "{name: simclr, temperature: 0.1}",
            "{name: mlp, widths: [2048, 128], norm_last: true}",
            ("data.image={name: simclr}", "loader.batch=4096", "optimizer.lr=4.8", "schedule.final=0.0"),
        ),
        "small": _Method("{name: simclr, temperature: 0.2}", "{name: mlp, widths: [512, 128]}"),
    },
    "Barlow Twins": {
        "full": _Method(
            "{name: barlow_twins, off_diagonal: 0.0051}", "", ("optimizer.lr=1.6", "parameters.vector_scale=0.024")
        ),
        "small": _Method("{name: barlow_twins}"),
    },
    "VICReg": {"full": _Method(), "small": _Method()},
}


def _flexibility(scale: Scale) -> list[Cell]:
    found = []
    for row in paper.FLEXIBILITY.rows:
        for column, cell in zip(paper.FLEXIBILITY.columns, row.cells, strict=True):
            if cell == "x":
                continue
            full, small, branches = BRANCHES[column]
            method = _FLEXIBLE[row.method][scale]
            run = f"flexibility/{IMAGENET[row.method]}/{full if scale == 'full' else small}"
            if scale == "small":
                overrides = (*method.overrides(branches), JUDGED)
                commands: tuple[Command, ...] = (
                    Command("train", run, f"recipes/small/flexibility_{small}.yaml", overrides),
                )
            elif row.method == "BYOL":
                commands = _and_linear(Command("train", run, "recipes/ablation/byol.yaml"))
            else:
                overrides = (*method.overrides(branches), *method.full)
                commands = _and_linear(Command("train", run, f"recipes/flexibility/{full}.yaml", overrides))
            found.append(Cell("flexibility", (row.method,), column, commands))
    return found


def _and_linear(train: Command) -> tuple[Command, ...]:
    return train, _after(train, "linear")


_BARE = "branches.net.expander.norm=none"
_ROWS: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {  # method and switches -> name, overrides
    ("BYOL", "yes", "yes", "yes", "yes"): ("byol-me-sg-pr-bn", ()),
    ("SimSiam", "no", "yes", "yes", "yes"): ("simsiam-sg-pr-bn", ()),
    ("SimSiam", "no", "yes", "yes", "no"): (
        "simsiam-sg-pr", (_BARE, "branches.net.expander.norm_last=false", "objective.batch_norm=false"),
    ),
    ("SimSiam", "no", "yes", "no", "no"): (
        "simsiam-sg", (_BARE, "branches.net.expander.norm_last=false", "objective.predictor=false"),
    ),
    ("VICReg", "no", "no", "yes", "no"): (
        "vicreg-pr", (_BARE, "objective.predictor=[WIDTH]", "objective.predictor_norm=none"),
    ),
    ("VICReg", "no", "no", "yes", "yes"): ("vicreg-pr-bn", ("objective.predictor=[WIDTH]",)),
    ("VICReg", "no", "no", "no", "yes"): ("vicreg-bn", ()),
    ("VICReg", "no", "no", "no", "no"): ("vicreg-none", (_BARE,)),
}  # fmt: skip
_THREE_SEEDS = ("simsiam-sg", "vicreg-bn", "vicreg-none")
_ADDED = {  # column -> name, overrides of VICReg, of the other methods
    "no reg": ("none", ("objective.variance=0", "objective.covariance=0"), ()),
    "var": ("var", ("objective.covariance=0",), ("regularize={variance: 1, covariance: 0}",)),
    "var + cov": ("var-cov", (), ("regularize={variance: 1, covariance: 0.01}",)),
}
_PREDICTOR = {"full": "8192", "small": "512"}  # width of VICReg's predictor, that of its expander


def _ablation(scale: Scale) -> list[Cell]:
    found = []
    for row, (name, switches) in _ROWS.items():
        method = IMAGENET[row[0]]
        for column, (slug, of_vicreg, of_others) in _ADDED.items():
            changed = tuple(one.replace("WIDTH", _PREDICTOR[scale]) for one in switches)
            overrides = (*changed, *(of_vicreg if row[0] == "VICReg" else of_others))
            run = f"ablation/{name}/{slug}"
            if scale == "small":
                train = Command("train", run, f"recipes/small/cifar10_{method}.yaml", (*overrides, JUDGED))
                found.append(Cell("ablation", row, column, (train,), seeds=3 if name in _THREE_SEEDS else 1))
            else:
                train = Command("train", run, f"recipes/ablation/{method}.yaml", overrides)
                found.append(Cell("ablation", row, column, _and_linear(train)))
    return found


# -- others ---------------------------------------------------------------------------------------------------------


def _retrieval(scale: Scale) -> list[Cell]:
    """Both stages of the VSE++ setting: frozen encoder, then the whole of it."""
    found = []
    for row in (one.method for one in paper.RETRIEVAL.rows):
        name = f"coco_{paper.OBJECTIVES[row]}"
        first = Command("train", f"retrieval/{name}", f"recipes/{name}.yaml")
        second = Command(
            "train", f"retrieval/{name}_finetune", f"recipes/{name}_finetune.yaml", start=f"retrieval/{name}"
        )
        found.append(Cell("retrieval", (row,), "*", (first, second, _after(second, "retrieval"))))
    return found


def _cost(scale: Scale) -> list[Cell]:
    """One epoch each, on the batch of VICReg: time and memory need no more."""
    found = []
    for row in (one.method for one in paper.COST.rows):
        recipe = IMAGENET[row]
        if scale == "small":
            command = Command("train", f"cost/{recipe}", f"recipes/small/cifar10_{recipe}.yaml", ("training.epochs=1",))
        else:
            short = ("training.epochs=1", "loader.batch=2048")
            command = Command("train", f"cost/{recipe}", f"recipes/imagenet/{recipe}.yaml", short)
        found.append(Cell("cost", (row,), "*", (command,)))
    return found


_CELLS = {
    "imagenet": _imagenet,
    "semi": _semi,
    "transfer": _transfer,
    "flexibility": _flexibility,
    "retrieval": _retrieval,
    "ablation": _ablation,
    "cost": _cost,
}
