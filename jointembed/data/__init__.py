"""Data sets, view pipelines and tokens, each under the name a recipe calls it by."""

from collections.abc import Callable
from typing import Any

from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_flickr import flickr8k_tokens
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.captions_table import caption_table
from jointembed.data.emoji import emoji
from jointembed.data.hub import caption_dataset
from jointembed.data.tokens import bpe, pretrained, words
from jointembed.data.views import VIEWS

DATASETS: dict[str, Callable[..., Any]] = {
    "caption_dataset": caption_dataset,
    "caption_table": caption_table,
    "coco_captions": coco_captions,
    "emoji": emoji,
    "flickr8k_tokens": flickr8k_tokens,
    "karpathy": karpathy,
}
TOKENS: dict[str, Callable[..., Any]] = {"bpe": bpe, "pretrained": pretrained, "words": words}

__all__ = ["DATASETS", "TOKENS", "VIEWS"]
