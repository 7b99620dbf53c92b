"""Branches in a form that torch.export and ONNX can trace: one graph for every batch size and caption length."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointembed.branches.branch import Branch
from jointembed.branches.text import GRU, BagOfWords, Text
from jointembed.layers import pool_tokens

Form = Literal["torch", "onnx"]


class PictureGraph(nn.Module):
    """A branch of pictures, planes or waveforms, from its input to what `JointEmbedding.encode` returns.

    Args:
        branch: in evaluation mode.
        centre: (D,) taken off every row.
        form: what it will be traced to.
        representation: return `h`, without the expander.
        normalize: scale each row to length 1.
    """

    def __init__(self, branch: Branch, centre: Tensor, form: Form, *, representation: bool, normalize: bool) -> None:
        """See the class."""
        super().__init__()
        self.encoder = traceable(branch.encoder, form)
        self.expander = nn.Identity() if representation else branch.expander
        self.normalize = normalize
        self.register_buffer("centre", centre.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        """(N, ...) to (N, D)."""
        return self.rows(input)

    def rows(self, x: Any) -> Tensor:
        """What the encoder takes to (N, D) float32."""
        rows = self.expander(self.encoder(x)).float() - self.get_buffer("centre")
        return functional.normalize(rows, dim=1) if self.normalize else rows


class TextGraph(PictureGraph):
    """A branch of text, likewise."""

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:  # type: ignore[override]  # the names of its inputs
        """(N, T) token numbers padded on the right and (N,) lengths, both int64, to (N, D)."""
        return self.rows({"ids": ids, "length": length})


class UnpackedGRU(nn.Module):
    """A `GRU` over the whole padded batch: sorting, buckets and packed sequences depend on values, which no graph may.

    What follows the end of a caption does not reach the states before it. Backwards it would: there each caption is
    reversed within its own length first.
    """

    def __init__(self, gru: GRU, form: Form) -> None:
        """Share the weights, one layer and direction a module."""
        super().__init__()
        self.words = gru.words
        self.pool = gru.pool
        directions = ("", "_reverse") if gru.rnn.bidirectional else ("",)
        make = OnnxGRU if form == "onnx" else _States
        self.layers = nn.ModuleList(
            nn.ModuleList(make(_one_direction(gru.rnn, f"l{number}{direction}")) for direction in directions)
            for number in range(gru.rnn.num_layers)
        )

    def forward(self, x: Text) -> Tensor:
        """Captions to representations (N, width)."""
        length = x["length"]
        states = self.words(x["ids"])  # (N, T, E)
        position = torch.arange(states.shape[1], device=length.device)
        backwards = (length[:, None] - 1 - position).clamp_min(0)  # (N, T); beyond the end anything will do
        both: list[Tensor] = []
        for layer in self.layers:
            first, *others = cast(nn.ModuleList, layer)
            both = [first(states), *(_reordered(one(_reordered(states, backwards)), backwards) for one in others)]
            states = torch.cat(both, dim=2)
        if self.pool == "last" and len(both) == 2:  # the backward direction ends at the first word
            return torch.cat([pool_tokens(both[0], length, "last"), both[1][:, 0]], dim=1)
        return pool_tokens(states, length, self.pool)


class _States(nn.Module):
    def __init__(self, rnn: nn.GRU) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class OnnxGRU(nn.Module):
    """One layer and direction of a GRU as ONNX's own operator, which any length may pass: (N, T, E) to (N, T, H).

    Tracing `nn.GRU` itself would unroll it over the length of the example, or give a loop over small operators.
    """

    def __init__(self, rnn: nn.GRU) -> None:
        """Take the weights in ONNX's order of gates: update, reset, new."""
        super().__init__()
        self.hidden = rnn.hidden_size
        inward, outward = rnn.get_parameter("weight_ih_l0"), rnn.get_parameter("weight_hh_l0")
        biases = [_onnx_order(rnn.get_parameter(f"bias_{name}_l0")) for name in ("ih", "hh")]
        self.register_buffer("inward", _onnx_order(inward)[None])  # (1, 3 H, E)
        self.register_buffer("outward", _onnx_order(outward)[None])  # (1, 3 H, H)
        self.register_buffer("bias", torch.cat(biases)[None])  # (1, 6 H)

    def forward(self, x: Tensor) -> Tensor:
        """States (N, T, H)."""
        rows, length = x.shape[:2]
        weights = [self.get_buffer(name) for name in ("inward", "outward", "bias")]
        states = torch.onnx.ops.symbolic(
            "GRU",
            (x.transpose(0, 1), *weights),
            {"hidden_size": self.hidden, "linear_before_reset": 1},  # the reset gate after the product, as torch has it
            dtype=x.dtype,
            shape=(length, 1, rows, self.hidden),
        )
        return states[:, 0].transpose(0, 1)


def _onnx_order(gates: Tensor) -> Tensor:
    reset, update, new = gates.detach().chunk(3)
    return torch.cat([update, reset, new])


def _one_direction(rnn: nn.GRU, suffix: str) -> nn.GRU:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    state = {f"{name}_l0": rnn.get_parameter(f"{name}_{suffix}").detach() for name in names}
    one = nn.GRU(state["weight_ih_l0"].shape[1], rnn.hidden_size, batch_first=True)
    one.load_state_dict(state)
    return one.eval()


def _reordered(states: Tensor, position: Tensor) -> Tensor:
    return states.gather(1, position[:, :, None].expand(-1, -1, states.shape[2]))


class MeanOfWords(nn.Module):
    """A `BagOfWords` over the padded batch, padding left out of the mean: the words alone have no shape known ahead."""

    def __init__(self, bag: BagOfWords, form: Form) -> None:
        """Share the weights."""
        super().__init__()
        self.weight = bag.words.weight

    def forward(self, x: Text) -> Tensor:
        """Captions to representations (N, width)."""
        return pool_tokens(functional.embedding(x["ids"], self.weight), x["length"], "mean")


TRACEABLE: dict[type[nn.Module], Callable[[Any, Form], nn.Module]] = {GRU: UnpackedGRU, BagOfWords: MeanOfWords}


def traceable(encoder: nn.Module, form: Form) -> nn.Module:
    """An encoder that gives the same rows in evaluation mode, without anything that depends on values."""
    make = TRACEABLE.get(type(encoder))
    return encoder if make is None else make(encoder, form)
