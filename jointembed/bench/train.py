"""A whole training step of pictures: JPEG to updated weights, beside lightly's loop and the authors'."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

from jointembed.bench.rivals import Loss, known_losses, plain_vicreg
from jointembed.bench.steps import LR, WEIGHT_DECAY, Step, chosen_precision, peaks, step_by_step, step_table
from jointembed.bench.train_text import bench_text
from jointembed.bench.views import jpegs_in, synthetic_jpegs
from jointembed.branches.branch import Branch
from jointembed.branches.image import IMAGENET_MEAN, IMAGENET_STD, TorchvisionEncoder
from jointembed.data import VIEWS
from jointembed.data.folder import image_folder
from jointembed.data.samples import Batch, ImageSamples
from jointembed.errors import RecipeError
from jointembed.layers import MLP
from jointembed.model import JointEmbedding
from jointembed.objectives.vicreg import VICReg
from jointembed.recipe import nearest

KINDS = ("image", "text")


def bench_train(
    *,
    pictures: Path | None = None,
    captions: Path | None = None,
    kinds: Sequence[str] = KINDS,
    batch: int | None = None,
    size: int = 128,
    width: int = 2048,
    repeats: int = 5,
    precision: str = "auto",
) -> dict[str, Any]:
    """Time steps of the same network on the same samples, side by side.

    Args:
        pictures: folder of JPEGs; None makes some up.
        captions: COCO captions file; None makes some up.
        kinds: `image` (`bench_image`), `text` (`bench_text`).
        batch: samples a step; None takes 64 pictures, 256 captions.
        size: side of the views.
        width: of the expanders.
        repeats: measured steps of each side.
        precision: of our side: auto, bf16 or fp32.

    Returns:
        By kind: `sides`, the medians and ratios of `measure.compared`, and `peak_mb` of `steps.peaks`; `stages` of our
        step in milliseconds and percent; `values`, each side's loss of one batch with the first weights, in float32;
        `precision`; `batch`.

    Raises:
        RecipeError: no such kind or precision.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"no kind {kind!r}{nearest(kind, KINDS)}")
    if precision not in ("auto", "bf16", "fp32"):
        raise RecipeError(f"no precision {precision!r}; there are auto, bf16, fp32")
    options: dict[str, Any] = {"width": width, "repeats": repeats, "precision": precision}
    found = {}
    if "image" in kinds:
        found["image"] = bench_image(pictures=pictures, batch=batch or 64, size=size, **options)
    if "text" in kinds:
        found["text"] = bench_text(captions=captions, batch=batch or 256, **options)
    return found


def bench_image(
    *, pictures: Path | None, batch: int, size: int, width: int, repeats: int, precision: str
) -> dict[str, Any]:
    """ResNet-18 and VICReg: JPEG files to updated weights, no loader workers on any side. See `bench_train`."""
    torch.manual_seed(0)
    random.seed(0)
    core = image_model(width)
    branch = core.branch("view1")
    networks = {"authors": _plain_network(branch, width)}
    losses: dict[str, Loss] = {"authors": plain_vicreg}
    if find_spec("lightly") is not None:
        networks["lightly"] = _lightly_network(branch, width)
        losses["lightly"] = known_losses(["lightly"])["lightly"]
    with TemporaryDirectory() as made:
        folder = pictures or write_jpegs(Path(made), 2 * batch)
        paths = jpegs_in(folder)
        steps = repeats + 2
        sides: dict[str, Step] = {
            name: _Loop(network, losses[name], _views(name, size), paths, batch)
            for name, network in networks.items()
        }  # fmt: skip
        batches = image_batches(folder, size, batch, steps)
        chosen = chosen_precision(precision)
        values = _values(core, networks, losses, next(image_batches(folder, size, batch, 1)))
        times, stages = step_by_step(core, batches, sides, steps=steps, precision=chosen)
        memory = peaks(core, image_batches(folder, size, batch, 1), sides, chosen)
    return step_table(times, memory, stages) | {
        "values": values,
        "precision": chosen,
        "batch": batch,
        "size": size,
        "width": width,
    }


def image_model(width: int) -> JointEmbedding:
    """ResNet-18, an expander of three layers and VICReg; both views through one branch."""
    branch = Branch(TorchvisionEncoder(model="resnet18"), MLP(512, widths=[width] * 3))
    return JointEmbedding({"image": branch}, {"view1": "image", "view2": "image"}, VICReg())


def image_batches(folder: Path, size: int, batch: int, steps: int) -> Iterator[Batch]:
    """Batches of VICReg's two views, picture after picture."""
    samples = ImageSamples(image_folder(path=str(folder), labels=False), VIEWS["vicreg"](size=size), seed=0)
    for step in range(steps):
        yield samples.__getitems__([divmod(step * batch + row, len(samples)) for row in range(batch)])


def write_jpegs(folder: Path, count: int) -> Path:
    """Made-up pictures as files."""
    for number, file in enumerate(synthetic_jpegs(count)):
        (folder / f"{number:05d}.jpg").write_bytes(file)
    return folder


# -- the other sides ------------------------------------------------------------------------------------------------


class _Loop:
    """A training loop as tutorials write it: float32, views by Pillow, torch's default optimizer."""

    def __init__(self, network: nn.Module, loss: Callable, views: Callable, paths: Sequence[Path], batch: int) -> None:
        self.network, self.loss, self.views, self.paths, self.batch = network, loss, views, paths, batch
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=LR["sgd"] / 10, momentum=0.9, weight_decay=WEIGHT_DECAY
        )
        self.seen = 0

    def __call__(self) -> float:
        rows = [self.views(self._open()) for _ in range(self.batch)]
        first, second = (torch.stack(view) for view in zip(*rows, strict=True))
        loss = self.loss(self.network(first), self.network(second))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _open(self) -> Image.Image:
        path = self.paths[self.seen % len(self.paths)]
        self.seen += 1
        with Image.open(path) as picture:
            return picture.convert("RGB")


def _plain_network(branch: Branch, width: int) -> nn.Module:
    net = models.resnet18()
    net.fc = nn.Identity()
    head = nn.Sequential(
        nn.Linear(512, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width, bias=False),
    )  # fmt: skip
    return _same_weights(nn.Sequential(net, head), branch)


def _lightly_network(branch: Branch, width: int) -> nn.Module:
    from lightly.models.modules.heads import VICRegProjectionHead

    backbone = nn.Sequential(*list(models.resnet18().children())[:-1], nn.Flatten())
    head = VICRegProjectionHead(512, width, width)
    head.layers[-1].bias = None  # as the authors have it; the loss cannot see one
    return _same_weights(nn.Sequential(backbone, head), branch)


def _same_weights(network: nn.Module, branch: Branch) -> nn.Module:
    """Both are made of the same layers in the same order; a bias that only one has stands before a batch norm."""
    pairs = zip(_layers(network), _layers(branch), strict=True)
    for theirs, ours in pairs:
        values = ours.state_dict()
        theirs.load_state_dict({name: copy.deepcopy(values[name]) for name in theirs.state_dict()})
    return network


def _layers(network: nn.Module) -> list[nn.Module]:
    return [
        one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d)
    ]


def _views(name: str, size: int) -> Callable[[Image.Image], Any]:
    if name == "lightly":
        from lightly.transforms import VICRegTransform

        return VICRegTransform(input_size=size)
    one, two = (_authors_view(size, blur, solarize) for blur, solarize in ((1.0, 0.0), (0.1, 0.2)))
    return lambda picture: (one(picture), two(picture))


def _authors_view(size: int, blur: float, solarize: float) -> Callable[[Image.Image], Tensor]:
    """The view of VICReg's appendix C.1 in torchvision's first transforms and Pillow."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            lambda p: p.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))) if random.random() < blur else p,
            lambda p: ImageOps.solarize(p) if random.random() < solarize else p,
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def _values(core: JointEmbedding, networks: dict, losses: dict, batch: Batch) -> dict[str, float]:
    """Each side's loss of one batch with the same weights, in float32, running statistics left as they were."""
    pixels = core.branch("view1").encoder.get_submodule("pixels")
    before = copy.deepcopy(core.state_dict())
    with torch.no_grad():
        found = {"jointembed": float(core(batch)["loss"])}
        views = [pixels(batch[view]) for view in ("view1", "view2")]
        for name, network in networks.items():
            kept = copy.deepcopy(network.state_dict())
            found[name] = float(losses[name](*(network(view) for view in views)))
            network.load_state_dict(kept)
    core.load_state_dict(before)
    return found
