"""A branch: an encoder and an expander, trained, partly frozen or frozen."""

import difflib
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from jointembed.errors import DataError, RecipeError
from jointembed.layers import Embedding


class Branch(nn.Module):
    """Encoder and expander of one or several views.

    Args:
        encoder: a module with an attribute `width`, which turns an input of N items into (N, width).
        expander: likewise, (N, R) to (N, D); it always trains.
        train: `all` of the encoder, `none` of it, or the parts whose parameter names begin with one of these
            prefixes (`["layer4"]`; a wrapper's name that all parameters share may be left out). Whatever does not
            train keeps evaluation mode, so that its batch norm statistics and dropout stay as they are.

    Raises:
        RecipeError: a prefix that no parameter has.
    """

    def __init__(
        self, encoder: nn.Module, expander: nn.Module, *, train: Literal["all", "none"] | list[str] = "all"
    ) -> None:
        """See the class."""
        super().__init__()
        self.encoder, self.expander = encoder, expander
        self.width, self.embedding_width = cast(int, encoder.width), cast(int, expander.width)
        self._trained: tuple[str, ...] | None = None if train == "all" else _prefixes(encoder, train)
        if self._trained is not None:
            for name, parameter in encoder.named_parameters():
                if not _under(name, self._trained):
                    parameter.requires_grad_(False)
            self.train(self.training)

    @property
    def frozen(self) -> bool:
        """Whether no part of the encoder trains."""
        return self._trained == ()

    def train(self, mode: bool = True) -> "Branch":
        """Set the mode of whatever trains; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self._trained is not None:
            for name, module in self.encoder.named_modules():
                module.training = mode and (_under(name, self._trained) if name else not self.frozen)
        return self

    def forward(self, x: Any, *, maps: bool = False) -> Embedding:
        """Embed one view.

        Args:
            x: what the encoder takes; (N, P, C, H, W) for P patches a picture; `{"h": (N, R)}` skips the encoder.
            maps: also return the encoder's feature maps.

        Raises:
            DataError: cached representations of another width.
            RecipeError: feature maps of an encoder that has none.
        """
        levels: tuple[Tensor, ...] = ()
        if isinstance(x, dict) and "h" in x:
            h = self._cached(x["h"], maps)
        else:
            h, levels = self._encoded(x, maps)
        z = self.expander(h.flatten(0, -2)).unflatten(0, h.shape[:-1]) if h.ndim > 2 else self.expander(h)
        return Embedding(h, z, levels[-1] if levels else None, levels or None)

    def _cached(self, h: Tensor, maps: bool) -> Tensor:
        if h.shape[-1] != self.width:
            raise DataError(f"cached representations have width {h.shape[-1]}, this encoder gives {self.width}")
        if maps:
            raise RecipeError("cached representations hold no feature maps; turn data.cache off")
        return h

    def _encoded(self, x: Any, maps: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        patches = x.shape[:2] if isinstance(x, Tensor) and x.ndim == 5 else None
        x = x if patches is None else x.flatten(0, 1)
        encoder = cast(Any, self.encoder)
        levels: tuple[Tensor, ...] = ()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if not maps:
                h = encoder(x)
            elif hasattr(encoder, "forward_with_levels"):
                h, levels = encoder.forward_with_levels(x)
            elif hasattr(encoder, "forward_with_maps"):
                h, last = encoder.forward_with_maps(x)
                levels = (last,)
            else:
                raise RecipeError(f"{type(encoder).__name__} gives no feature maps (no forward_with_maps)")
        if patches is None:
            return h, levels
        return h.unflatten(0, patches), tuple(one.unflatten(0, patches) for one in levels)


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _prefixes(encoder: nn.Module, train: str | list[str]) -> tuple[str, ...]:
    """The prefixes of `train` as they stand in the encoder's parameter names."""
    if train == "none":
        return ()
    wanted = [train] if isinstance(train, str) else train
    names = [name for name, _ in encoder.named_parameters()]
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    roots = {name.split(".")[0] for name in names}
    root = f"{roots.pop()}." if len(roots) == 1 else ""
    found = []
    for prefix in wanted:
        match = next((one for one in (prefix, root + prefix) if one in parts), None)
        if match is None:
            known = {part.removeprefix(root) for part in parts}
            close = difflib.get_close_matches(prefix, sorted(known), n=1, cutoff=0.3)
            nearest = close[0] if close else min(known, default="nothing")
            raise RecipeError(f"train: the encoder has no parameter under {prefix!r}; nearest is {nearest!r}")
        found.append(match)
    return tuple(found)
