"""JointEmbedding: branches, the views that go through them, and one objective on top."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

from jointembed import __version__
from jointembed.blocks import construct
from jointembed.branches.assembly import make_branch
from jointembed.branches.branch import Branch
from jointembed.branches.members import first_member
from jointembed.branches.target import forward_shuffled, make_target, update_target
from jointembed.branches.transformer import saved_config
from jointembed.data import VIEWS
from jointembed.data.forms import Picture, as_view, is_one
from jointembed.data.samples import Batch, PictureView
from jointembed.data.tokens import Tokens, pad
from jointembed.errors import DataError, JointEmbedError, WeightsError
from jointembed.hub import FORMAT, model_folder, push, read_config
from jointembed.layers import Embedding
from jointembed.objectives.objective import Embed, Objective, ViewShape
from jointembed.objectives.statistics import mean_absolute_correlation, rankme, std_per_dimension
from jointembed.tensor_files import with_usual_mode


class JointEmbedding(nn.Module):
    """Branches plugged into one objective; a view of the batch goes through the branch that `views` names.

    Args:
        branches: by name.
        views: view name -> branch name; several views may share a branch.
        objective: None for a model that only embeds.
        image: the view pipeline that `encode_image` applies.
        tokens: the tokenizer that `encode_text` applies.
        config: what rebuilds this model, written to `config.json` by `save_pretrained`.
        embedding: whether `encode` returns the embedding `z` or the representation `h`.
    """

    def __init__(
        self,
        branches: Mapping[str, Branch],
        views: Mapping[str, str],
        objective: Objective | None = None,
        *,
        image: PictureView | None = None,
        tokens: Tokens | None = None,
        config: dict[str, Any] | None = None,
        embedding: Literal["h", "z"] = "z",
    ) -> None:
        """See the class."""
        super().__init__()
        for view, branch in views.items():
            if branch not in branches:
                raise JointEmbedError(f"view {view!r} goes to branch {branch!r}, which is not there")
        self.branches = nn.ModuleDict(branches)
        self.views = dict(views)
        self.objective = objective
        self.targets: nn.ModuleDict | None = None  # EMA copies of the branches, made by attach
        self.probe: nn.Module | None = None  # reads representations and labels, teaches the branches nothing
        self.image, self.tokens, self.config, self.embedding = image, tokens, config or {}, embedding
        self.card: str | None = None  # the model card that it was loaded with, saved again with it
        self.watch = False  # whether forward adds the health of the embeddings to its terms
        self.stage: Callable[[str], AbstractContextManager[None]] = _untimed  # a profiler's clock
        for view in views:
            self.register_buffer(f"centre_{view}", torch.zeros(self.width(view)))

    def branch(self, view: str) -> Branch:
        """The branch a view goes through. Raises JointEmbedError naming the views there are."""
        if view not in self.views:
            raise JointEmbedError(f"no view {view!r} in this model; it has {', '.join(self.views)}")
        return cast(Branch, self.branches[self.views[view]])

    def width(self, view: str) -> int:
        """Width of what `encode` returns for a view."""
        branch = self.branch(view)
        return branch.embedding_width if self.embedding == "z" else branch.width

    @property
    def image_view(self) -> str:
        """The view that stands for pictures: `image`, else the first that is not text."""
        return "image" if "image" in self.views else next(view for view in self.views if not self.reads_text(view))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    # -- training ---------------------------------------------------------------------------------------------------

    def attach(self, samples: int) -> None:
        """Let the objective make its own parts, and make the EMA targets it needs. Once, before training.

        Args:
            samples: number of training samples, for memory banks and cluster assignments.
        """
        objective = self._objective()
        shapes = {
            view: ViewShape(name, self.branch(view).width, self.branch(view).embedding_width)
            for view, name in self.views.items()
        }
        objective.attach(shapes, samples)
        followed = {self.views[view] for view in objective.target_views(self.views)}
        if followed:
            self.targets = nn.ModuleDict({name: make_target(self.branches[name]) for name in sorted(followed)})

    @property
    def remedies(self) -> tuple[str, str]:
        """What to do where embeddings collapse to a point, and to a line: the objective's."""
        return self._objective().remedies

    def units(self) -> list[nn.Module]:
        """What `distributed.shard` keeps together: each branch, each EMA target, the objective."""
        return [*self.branches.values(), *(self.targets or {}).values(), self._objective()]

    def embed(self, batch: Batch) -> dict[str, Embedding]:
        """Representation and embedding of every online view of the batch: the first of the two calls of a step."""
        missing = [view for view in self.views if view not in batch]
        if missing:
            raise DataError(f"the batch has no view {missing[0]!r}; it has {', '.join(sorted(batch))}")
        views = list(self.views) if self.objective is None else self.objective.online_views(self.views)
        maps = self.objective is not None and "maps" in self.objective.needs
        return {view: self.branch(view)(batch[view], maps=maps) for view in views}

    @torch.no_grad()
    def embed_target(self, batch: Batch) -> dict[str, Embedding] | None:
        """The same of the EMA branches, in training mode and without gradient; None where no target is needed."""
        if self.targets is None:
            return None
        objective = self._objective()
        forward = forward_shuffled if "shuffle" in objective.needs else _forward
        maps = "target_maps" in objective.needs
        return {
            view: forward(cast(Branch, self.targets[self.views[view]]), batch[view], maps)
            for view in objective.target_views(self.views)
        }

    def terms(
        self, online: dict[str, Embedding], batch: Batch, target: dict[str, Embedding] | None = None
    ) -> dict[str, Tensor]:
        """The objective's named scalars for the embeddings of a batch: the second call of a step."""
        objective = self._objective()
        label = batch.get("label") if "label" in objective.needs else None
        terms = objective(online, target, index=batch.get("index"), item=batch.get("item"), label=label)
        if self.watch:
            terms = terms | health({view: embedding.z for view, embedding in online.items()})
        if self.probe is not None and self.training:
            h = next(iter(online.values())).h.detach()
            seen = cast(Any, self.probe).step(h if h.ndim == 2 else h.mean(1), batch["label"])
            terms = terms | {name: torch.tensor(value) for name, value in seen.items()}
        return terms

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Both calls of a step: batch in, named terms out, one of them `loss`."""
        with self.stage("forward"):
            online, target = self.embed(batch), self.embed_target(batch)
        with self.stage("loss"):
            return self.terms(online, batch, target)

    def start_epoch(self, epoch: int, embed: Embed) -> None:
        """Hook of the loop before the first step of an epoch."""
        self._objective().start_epoch(epoch, embed)

    def before_step(self, batch: Batch) -> None:
        """Hook of the loop: warm-ups that count steps."""
        self._objective().before_step(batch)

    def end_step(self, progress: float) -> None:
        """Hook of the loop, after the optimizer's step; `progress` is the share of the run that is done."""
        objective = self._objective()
        objective.end_step(progress)
        if self.targets is not None:
            for name, target in self.targets.items():
                update_target(target, self.branches[name], objective.momentum(progress))

    def _objective(self) -> Objective:
        if self.objective is None:
            raise JointEmbedError("this model was built without an objective; it cannot be trained")
        return self.objective

    # -- use --------------------------------------------------------------------------------------------------------

    def vectors(self, view: str, inputs: Any) -> Tensor:
        """What retrieval compares for a batch of one view: `h` or `z` in float32, centred. (N, D), not normalised."""
        embedding = self.branch(view)(inputs)
        chosen = embedding.z if self.embedding == "z" else embedding.h
        return chosen.float() - self.get_buffer(f"centre_{view}")

    def encode(
        self,
        inputs: Any,
        view: str,
        *,
        batch_size: int = 64,
        normalize: bool = True,
        device: str | torch.device | None = None,
        show_progress: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> np.ndarray | Tensor:
        """Embed texts, pictures or sounds.

        Args:
            inputs: a list of texts; of pictures as paths, bytes of files, PIL images, (H, W, 3) uint8 arrays,
                (3, H, W) uint8 tensors, or float tensors prepared as the model's pipeline prepares them; of sounds as
                paths of wav files or (T,) float waveforms at the pipeline's rate. A `datasets` column and a batch
                (N, ...) of such arrays will do, and so will a single input.
            view: which view they are.
            batch_size: how many go through the branch at once.
            normalize: scale each row to length 1.
            device: moved there first; None leaves the model where it is.
            show_progress: draw a progress bar, on stderr.
            convert_to_numpy: numpy array instead of a CPU tensor.
            convert_to_tensor: the CPU tensor, whatever `convert_to_numpy` says.
            precision: `bf16` runs the branch under autocast.

        Returns:
            (N, D) float32, in the order of the inputs; of a single input, which is no list, its row (D,).

        Raises:
            DataError: an input that is no picture, sound or text, by its number.
        """
        pipeline = None if self.reads_text(view) else self._pipeline()
        single = is_one(inputs, pipeline)
        inputs = [inputs] if single else inputs if hasattr(inputs, "__getitem__") else list(inputs)
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, found {batch_size}")
        if device is not None:
            self.to(device)
        was_training = self.training
        self.eval()
        rows: list[Tensor] = []
        try:
            texts = self._token_lists(inputs) if pipeline is None else None
            order = sorted(range(len(inputs)), key=lambda i: len(texts[i])) if texts is not None else None
            numbers = order if order is not None else list(range(len(inputs)))
            with torch.inference_mode(), autocast(self.device, precision):
                for start in _progress(range(0, len(inputs), batch_size), show_progress, f"encoding {view}"):
                    chosen = numbers[start : start + batch_size]
                    batch = pad([texts[i] for i in chosen]) if texts is not None else self._views(inputs, chosen, view)
                    rows.append(self.vectors(view, _moved(batch, self.device)).float().cpu())
        finally:
            self.train(was_training)
        result = torch.cat(rows) if rows else torch.zeros(0, self.width(view))
        if order is not None and rows:
            result = torch.empty_like(result).index_copy_(0, torch.tensor(order), result)
        result = functional.normalize(result, dim=1) if normalize else result
        result = result[0] if single else result
        return result.numpy() if convert_to_numpy and not convert_to_tensor else result

    def encode_image(self, pictures: Sequence[Picture] | Picture, **options: Any) -> np.ndarray | Tensor:
        """`encode` for the view of pictures."""
        return self.encode(pictures, self.image_view, **options)

    def encode_text(self, texts: Sequence[str] | str, **options: Any) -> np.ndarray | Tensor:
        """`encode` for the view `text`."""
        return self.encode(texts, "text", **options)

    def similarity(self, a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
        """Cosine of every row of `a` (N, D) with every row of `b` (M, D): (N, M) float32. A single row may be (D,)."""
        first, second = (
            functional.normalize(torch.atleast_2d(torch.as_tensor(rows).float()), dim=-1) for rows in (a, b)
        )
        return first @ second.T

    def reads_text(self, view: str) -> bool:
        """Whether a view's branch takes token numbers."""
        return getattr(self.branch(view).encoder, "modality", "image") == "text"

    def _token_lists(self, texts: Sequence[Any]) -> list[list[int]]:
        if self.tokens is None:
            raise WeightsError("this model has no tokenizer; it cannot encode text")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"text {number}: expected words, found {text!r}")
        return self.tokens.encode(list(texts))

    def _pipeline(self) -> PictureView:
        if self.image is None:
            raise WeightsError("this model has no picture pipeline; it cannot encode pictures")
        return self.image

    def _views(self, sources: Sequence[Any], numbers: Sequence[int], view: str) -> Tensor:
        pipeline = self._pipeline()
        key = view if view in pipeline.views else pipeline.views[0]
        return torch.stack([as_view(pipeline, sources[number], key, f"input {number}") for number in numbers])

    # -- saving -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path | str, card: str | None = None) -> None:
        """Write safetensors, `config.json`, `tokenizer.json` and the model card; whole or not at all.

        Args:
            folder: made here; one that is there is replaced.
            card: Markdown; None writes the card that the model was loaded with, if any.
        """
        folder = Path(folder)
        card = self.card if card is None else card
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        weights = part / "model.safetensors"
        with_usual_mode(weights, lambda: save_model(_Saved(self), str(weights)))
        config = {"format": FORMAT, "jointembed": __version__, **self.config, "branches": self._portable_branches()}
        (part / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        if self.tokens is not None:
            self.tokens.save(part)
        if card is not None:
            (part / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():  # a folder cannot be replaced in one step: keep the old one until the new one is named
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(folder)

    def push_to_hub(self, repo_id: str, *, card: str | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes; the card's example names the hub id.

        Args:
            repo_id: `owner/name`; made where it is missing.
            card: as in `save_pretrained`.
            options: of `jointembed.hub.push`: `private`, `token`, `revision`, `commit_message`, `create_pr`.

        Returns:
            Address of the commit.

        Raises:
            WeightsError: what the hub or the network refused.
        """
        with TemporaryDirectory() as parent:
            self.save_pretrained(Path(parent) / "model", card)
            return push(Path(parent) / "model", repo_id, **options)

    def _portable_branches(self) -> dict[str, Any]:
        """The branch blocks, with the config of a transformers model in place of the folder or hub id it came from."""
        blocks = {name: dict(block) for name, block in self.config.get("branches", {}).items()}
        for name, block in blocks.items():
            encoder = first_member(cast(Branch, self.branches[name]).encoder)
            config = getattr(getattr(encoder, "model", None), "config", None)
            if config is not None:
                block["encoder"] = block["encoder"] | {"model": None, "config": saved_config(config)}
        return blocks

    @classmethod
    def from_pretrained(cls, path: Path | str, *, device: str | torch.device = "cpu") -> "JointEmbedding":
        """Load a model folder, a run folder that holds one, or a hub id. Nothing is unpickled; every key must fit.

        Raises:
            WeightsError: naming the file and what is wrong with it.
        """
        folder = model_folder(path)
        config = read_config(folder / "config.json")
        tokens = Tokens.load(folder, config["max_length"]) if config.get("max_length") else None
        model = from_config(config, tokens)
        weights = folder / "model.safetensors"
        try:
            load_model(_Saved(model), str(weights), strict=True)
        except (RuntimeError, SafetensorError, OSError) as error:
            raise WeightsError(f"{weights}: {' '.join(str(error).split())[:600]}") from None
        if (folder / "README.md").is_file():
            model.card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        return model.to(device).eval()


class _Saved(nn.Module):
    """The part of a model that is shared: branches and centres, not the objective."""

    def __init__(self, model: JointEmbedding) -> None:
        super().__init__()
        self.branches = model.branches
        for view in model.views:
            self.register_buffer(f"centre_{view}", model.get_buffer(f"centre_{view}"))


def from_config(
    config: dict[str, Any], tokens: Tokens | None, objective: Objective | None = None, *, pretrained: bool = False
) -> JointEmbedding:
    """Build a model from `{"views", "branches", "image", "max_length", "embedding"}`.

    Args:
        config: blocks whose arguments are complete and checked.
        tokens: for text branches; their vocabulary sizes the word embeddings.
        objective: None for a model that only embeds.
        pretrained: load the weights that encoders name; False builds the bare architecture.

    Raises:
        RecipeError: arguments that an encoder or expander refuses, with the path of its block.
        WeightsError: a key or name of the config that does not fit this version.
    """
    try:
        branches = {
            name: make_branch(block, None if tokens is None else tokens.vocabulary, f"branches.{name}", pretrained)
            for name, block in config["branches"].items()
        }
        image = construct(config["image"], VIEWS) if config.get("image") else None
        return JointEmbedding(
            branches,
            config["views"],
            objective,
            image=image,
            tokens=tokens,
            config=config,
            embedding=config.get("embedding", "z"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"config: {type(error).__name__} {error}; it does not fit version {__version__}") from error


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def _forward(branch: Branch, x: Any, maps: bool) -> Embedding:
    return branch(x, maps=maps)


def health(embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Std per dimension, mean absolute correlation and RankMe of each view's embeddings, on this rank's batch."""
    found: dict[str, Tensor] = {}
    for view, z in embeddings.items():
        rows = z.detach().float().flatten(0, -2)
        if len(rows) > 1 and bool(torch.isfinite(rows).all()):  # else the loss says so
            std = std_per_dimension(rows)
            found[f"health/{view}/std"] = std.mean()
            found[f"health/{view}/relative_std"] = std.square().sum().sqrt() / rows.norm(dim=1).mean().clamp_min(1e-12)
            found[f"health/{view}/covariance"] = torch.as_tensor(mean_absolute_correlation(rows))
            found[f"health/{view}/rankme"] = torch.as_tensor(rankme(rows))
    return found


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _progress(steps: range, show: bool, label: str) -> Any:
    if not show:
        return steps
    from rich.console import Console
    from rich.progress import track

    return track(steps, description=label, console=Console(stderr=True))


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {key: value.to(device) for key, value in batch.items()}
    return batch.to(device)
