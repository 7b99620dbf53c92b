"""Published weights files, by the layout of their keys, into a torchvision model without its classifier."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jointembed.errors import WeightsError


class Layout(NamedTuple):
    """Where a kind of file keeps its encoder."""

    name: str
    container: str | None  # key of the file that holds the state dict; None: the file is the state dict
    prefix: str  # of the encoder's keys
    ignored: tuple[str, ...] = ()  # prefixes of the method's other parts


LAYOUTS = (  # the first that fits is taken; the classifier's keys may be there or not
    Layout("MoCo v1 and v2", "state_dict", "module.encoder_q.", ("module.encoder_k.", "module.queue")),
    Layout("MoCo v3", "state_dict", "module.base_encoder.", ("module.momentum_encoder.", "module.predictor.")),
    Layout("SwAV checkpoint", "state_dict", "module.", ("module.projection_head.", "module.prototypes.")),
    Layout("VICReg and Barlow Twins checkpoint", "model", "module.backbone.", ("module.projector.", "module.bn.")),
    Layout("SwAV and DeepCluster v2", None, "module.", ("module.projection_head.", "module.prototypes.")),
    Layout("torchvision training checkpoint", "model", ""),
    Layout("training checkpoint", "state_dict", ""),
    Layout("torchvision, and the backbones of VICReg and Barlow Twins", None, ""),
)


def exclude_bias_and_norm(parameter: Tensor) -> bool:
    """Stands in for the function that the full checkpoints of VICReg and Barlow Twins name in their optimizer."""
    return parameter.ndim == 1


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a `.safetensors` file, or a torch file without running any code in it.

    Raises:
        WeightsError: naming the file and why it cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(exclude_bias_and_norm, "__main__.exclude_bias_and_norm")]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: cannot be read as weights ({reason})") from None
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path}: expected a state dict, found {type(found).__name__}")
    return found


def encoder_state(found: Mapping[str, Any], heads: tuple[str, ...], path: Path) -> dict[str, Tensor]:
    """The encoder's tensors of a file, under the encoder's own names.

    Args:
        found: the whole file.
        heads: names of the modules that the encoder goes without; their tensors are left out.
        path: for messages.

    Raises:
        WeightsError: the file fits no layout.
    """
    for layout in LAYOUTS:
        state = found.get(layout.container) if layout.container else found
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            continue
        if not any(key.startswith(layout.prefix) for key in state):
            continue
        names = {
            key.removeprefix(layout.prefix): value for key, value in state.items() if not key.startswith(layout.ignored)
        }
        dropped = tuple(f"{head}." for head in heads)
        return {name: value for name, value in names.items() if not name.startswith(dropped)}
    known = "; ".join(layout.name for layout in LAYOUTS)
    raise WeightsError(f"{path}: no state dict of a known layout in it ({known}); top keys: {_some(found)}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Load a state dict of which every key and shape must fit.

    Raises:
        WeightsError: naming missing and unexpected keys and shapes.
    """
    expected = module.state_dict()
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}  # files of old torch have none
    missing = expected.keys() - state.keys() - counters
    unexpected = state.keys() - expected.keys()
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        *([f"{len(missing)} missing keys ({_some(missing)})"] if missing else []),
        *([f"{len(unexpected)} unexpected keys ({_some(unexpected)})"] if unexpected else []),
        *([f"{len(shapes)} shapes differ ({'; '.join(shapes[:3])})"] if shapes else []),
    ]
    if problems:
        raise WeightsError(f"{path}: the weights are of another architecture: {', '.join(problems)}")
    module.load_state_dict({**{key: expected[key] for key in counters}, **state})


def _some(keys: Any) -> str:
    names = sorted(map(str, keys))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
