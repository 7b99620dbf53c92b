"""A checked block of `branches` -> the branch."""

from typing import Any

from jointembed.blocks import construct
from jointembed.branches import ENCODERS, EXPANDERS
from jointembed.branches.branch import Branch
from jointembed.branches.members import Members
from jointembed.errors import WeightsError


def make_branch(block: dict[str, Any], vocabulary: int | None, path: str, pretrained: bool) -> Branch:
    """An encoder with its expander, or members of them.

    Args:
        block: of `branches`, checked.
        vocabulary: size of the tokenizer's, for a text encoder; None without one.
        path: dotted path of the block, for messages.
        pretrained: load the weights that the encoder names.

    Raises:
        RecipeError: arguments that an encoder or expander refuses.
        WeightsError: a text encoder without a tokenizer.
    """
    encoder_block = dict(block["encoder"])
    if not pretrained and "weights" in encoder_block:
        encoder_block["weights"] = None
    given: tuple[Any, ...] = ()
    if getattr(ENCODERS[encoder_block["name"]], "modality", "image") == "text":
        if vocabulary is None:
            raise WeightsError("a text branch needs a tokenizer: data.text in the recipe, tokenizer.json in a model")
        given = (vocabulary,)

    def make_encoder() -> Any:
        return construct(encoder_block, ENCODERS, *given, path=f"{path}.encoder")

    def make_expander(width: int) -> Any:
        return construct(block["expander"], EXPANDERS, width, path=f"{path}.expander")

    members = block.get("members", 1)
    if members == 1:
        encoder = make_encoder()
        expander = make_expander(encoder.width)
    elif block.get("train", "all") != "all":  # what is frozen would be equal in all copies: they share it
        encoder = make_encoder()
        expander = Members(lambda: make_expander(encoder.width), members, split=False)
    else:
        encoder = Members(make_encoder, members, split=False)
        expander = Members(lambda: make_expander(encoder.width // members), members, split=True)
    return Branch(encoder, expander, train=block.get("train", "all"))
