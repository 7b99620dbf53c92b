"""Encoders of the transformers library: from a config, a local folder or a hub id; weights as safetensors only."""

import difflib
import inspect
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from jointembed.branches.image import IMAGENET_MEAN, IMAGENET_STD, Pixels
from jointembed.errors import DataError, RecipeError, WeightsError
from jointembed.layers import pool_tokens, valid_positions


class TransformersVision(nn.Module):
    """Any vision model of transformers.

    Args:
        model: local folder or hub id; its picture processor gives mean and std, ImageNet's where it has none.
        config: in place of `model`: `{"model_type": "vit", ...}` for a model from scratch.
        weights: load those of `model`; without, its architecture alone.
        pool: the model's own pooled output, its first token, or the mean of tokens or pixels of the last layer.

    Raises:
        RecipeError: both or neither of `model` and `config`, or a config that transformers does not know, or of no
            vision model.
        WeightsError: a folder or hub id that cannot be loaded whole, or holds no vision model.
    """

    modality = "image"

    def __init__(
        self,
        *,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        weights: bool | None = True,
        pool: Literal["pooler", "cls", "mean"] = "pooler",
    ) -> None:
        """See the class."""
        super().__init__()
        net = load_transformer(model, config, weights=bool(weights), keep_pooler=pool == "pooler")
        self.model: Any = getattr(net, "vision_model", net)  # CLIP and its like hold two towers
        _check_modality(self.model, "vision", model)
        self.pool: Literal["pooler", "cls", "mean"] = pool
        self.pixels = Pixels(*_mean_and_std(model))
        self.width = self._try()

    @torch.enable_grad()
    def _try(self) -> int:
        """The width, from one picture. Parameters that take no part are frozen: DDP would wait for their gradient."""
        size = getattr(self.model.config, "image_size", None)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.eval()
        h = self(torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size or (224, 224))).to(parameters[0]))
        self.train()
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(h.sum(), parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)
        return h.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), uint8 or normalised float, to representations (N, R)."""
        return self.forward_with_states(x)[0]

    def forward_with_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Representations (N, R) and the last layer as maps (N, C, H, W).

        Raises:
            RecipeError: the tokens of this model are no grid of patches.
        """
        h, states = self.forward_with_states(x)
        if states.ndim == 4:
            return h, states
        patch = getattr(self.model.config, "patch_size", None)
        rows, columns = (x.shape[-2] // patch, x.shape[-1] // patch) if isinstance(patch, int) else (0, 0)
        if not rows or states.shape[1] < rows * columns:
            raise RecipeError(f"{type(self.model).__name__}: its tokens are no grid of patches, it has no feature maps")
        # class and register tokens come first
        return h, states[:, states.shape[1] - rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))

    def forward_with_states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Representations (N, R) and the last layer, (N, T, C) tokens or (N, C, H, W) maps."""
        try:
            output = self.model(pixel_values=self.pixels(x))
        except ValueError as error:  # pictures of a size that the positions do not fit
            raise RecipeError(f"{type(self.model).__name__}: {error}") from None
        states = output.last_hidden_state
        if self.pool == "pooler":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise RecipeError(f"encoder.pool: {type(self.model).__name__} has no pooler; set cls or mean")
            return pooled.flatten(1), states
        if self.pool == "cls" and states.ndim == 4:
            raise RecipeError(f"encoder.pool: {type(self.model).__name__} has no class token; set pooler or mean")
        if self.pool == "cls":
            return states[:, 0], states
        return states.mean(dim=(2, 3) if states.ndim == 4 else 1), states


class TransformersText(nn.Module):
    """Any text model of transformers; of an encoder-decoder, the encoder.

    Args:
        vocabulary: number of token numbers that the tokenizer gives.
        model: local folder or hub id.
        config: in place of `model`: `{"model_type": "bert", ...}` for a model from scratch.
        weights: load those of `model`; without, its architecture alone.
        pool: mean of the tokens, the first token, or the last one.

    Raises:
        RecipeError: both or neither of `model` and `config`, a config that transformers does not know, or of no text
            model, or a tokenizer with more tokens than the model has.
        WeightsError: a folder or hub id that cannot be loaded whole, or holds no text model.
    """

    modality = "text"

    def __init__(
        self,
        vocabulary: int,
        *,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        weights: bool | None = True,
        pool: Literal["mean", "cls", "last"] = "mean",
    ) -> None:
        """See the class."""
        super().__init__()
        if config is not None:
            config = {"vocab_size": vocabulary} | config
        net = load_transformer(model, config, weights=bool(weights), keep_pooler=False)
        net = getattr(net, "text_model", net)
        self.model: Any = net.get_encoder() if net.config.is_encoder_decoder else net
        _check_modality(self.model, "text", model)
        self.pool: Literal["mean", "cls", "last"] = pool
        self.width: int = self.model.config.hidden_size
        known = self.model.config.vocab_size
        if vocabulary > known:
            raise RecipeError(f"the tokenizer has {vocabulary} tokens, the text model {model or 'config'} only {known}")
        self.max_length = _positions(self.model)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Captions to representations (N, width). Raises DataError for a caption with more tokens than positions."""
        ids, length = x["ids"], x["length"]
        if self.max_length is not None and ids.shape[1] > self.max_length:
            raise DataError(
                f"a caption of {ids.shape[1]} tokens is longer than the text encoder takes ({self.max_length}); "
                "lower data.text.max_length"
            )
        mask = valid_positions(length, ids.shape[1]).long()
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool_tokens(states, length, self.pool)


def load_transformer(model: str | None, config: dict[str, Any] | None, *, weights: bool, keep_pooler: bool) -> Any:
    """A model of transformers in float32.

    Args:
        model: local folder or hub id.
        config: in place of it, a dict with `model_type`.
        weights: load those of `model`.
        keep_pooler: whether its pooled output is used; a pooler with parameters is removed otherwise.

    Raises:
        RecipeError: both or neither given, or an unknown model type; `check_config` looks at the keys.
        WeightsError: what cannot be loaded whole.
    """
    if (model is None) == (config is None):
        raise RecipeError("encoder: give either model (a folder or hub id) or config (with its model_type)")
    from transformers import AutoModel  # here, because importing it takes most of a second

    if config is not None:
        net = AutoModel.from_config(_config(config))
    else:
        net = _from_folder_or_hub(cast(str, model), weights=weights, keep_pooler=keep_pooler)
    if not keep_pooler and isinstance(getattr(net, "pooler", None), nn.Module) and list(net.pooler.parameters()):
        net.pooler = None
    return net


def _check_modality(net: nn.Module, modality: Literal["vision", "text"], model: str | None) -> None:
    """Refuse a model that does not take captions, or not pictures alone.

    Raises:
        RecipeError: for a config.
        WeightsError: naming the folder or hub id.
    """
    arguments = inspect.signature(net.forward).parameters
    takes_text = "input_ids" in arguments
    if takes_text if modality == "text" else "pixel_values" in arguments and not takes_text:
        return
    message = f"{type(net).__name__} is no {modality} model"
    raise RecipeError(f"encoder.config: {message}") if model is None else WeightsError(f"{model}: {message}")


def check_config(given: dict[str, Any], path: str) -> None:
    """Refuse a key that transformers itself would keep, and do nothing with.

    Args:
        given: with its `model_type`.
        path: dotted path of it in the recipe, for the message.

    Raises:
        RecipeError: an unknown model type or key.
    """
    kind = _known_type(given.get("model_type"), path)
    known = _known_keys(kind)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
            raise RecipeError(f"{path}.{key}: {kind} has no such key; nearest is {close[0]!r}")


def saved_config(config: Any) -> dict[str, Any]:
    """The keys that a configuration's class knows; files of older versions carry others, which do nothing."""
    known = _known_keys(config.model_type)
    return {key: value for key, value in config.to_dict().items() if key in known}


def _known_keys(kind: str) -> set[str]:
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind)
    return {*default.to_dict(), *default.attribute_map}


def _known_type(kind: Any, path: str) -> str:
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=1, cutoff=0.0)
        raise RecipeError(f"{path}.model_type: transformers has no {kind!r}; nearest is {close[0]!r}")
    return kind


def _config(given: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    arguments = dict(given)
    return AutoConfig.for_model(_known_type(arguments.pop("model_type", None), "encoder.config"), **arguments)


def _from_folder_or_hub(model: str, *, weights: bool, keep_pooler: bool) -> Any:
    from transformers import AutoConfig, AutoModel

    place = Path(model)
    if not place.exists() and (place.is_absolute() or model.startswith(".")):  # transformers takes it for a hub id
        raise WeightsError(f"{model}: cannot be loaded (no such folder)")
    try:
        if not weights:
            return AutoModel.from_config(AutoConfig.from_pretrained(model))
        net, report = AutoModel.from_pretrained(
            model, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except SafetensorError as error:  # says nothing of the file
        raise WeightsError(f"{_broken_file(place) or model}: cannot be read as weights ({_one_line(error)})") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{model}: cannot be loaded ({_one_line(error)})") from None
    missing = sorted(key for key in report["missing_keys"] if keep_pooler or not key.startswith("pooler."))
    if missing or report["mismatched_keys"]:
        names = ", ".join(map(str, [*missing, *report["mismatched_keys"]][:3]))
        raise WeightsError(f"{model}: its weights lack {len(missing)} tensors of {type(net).__name__} ({names}, ...)")
    return net


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _broken_file(folder: Path) -> Path | None:
    """The first safetensors file of a folder that cannot be opened; None on the hub, whose files lie elsewhere."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return None


def _mean_and_std(model: str | None) -> tuple[Any, Any]:
    if model is None:
        return IMAGENET_MEAN, IMAGENET_STD
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(model)
    except OSError:
        return IMAGENET_MEAN, IMAGENET_STD
    return found.get("image_mean", IMAGENET_MEAN), found.get("image_std", IMAGENET_STD)


def _positions(net: nn.Module) -> int | None:
    """Longest input; RoBERTa and its like keep their first positions for padding."""
    for name, module in net.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(net.config, "max_position_embeddings", None)
