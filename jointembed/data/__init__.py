"""Data sets, view pipelines and tokens, each under the name a recipe calls it by."""

from collections.abc import Callable
from typing import Any

from jointembed.data.audio import esc50
from jointembed.data.audio_views import SOUND_VIEWS
from jointembed.data.caption_parquet import caption_parquet
from jointembed.data.caption_shards import caption_shards
from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_flickr import flickr8k_tokens
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.captions_table import caption_table
from jointembed.data.emoji import emoji
from jointembed.data.folder import image_folder
from jointembed.data.hub import caption_dataset, image_dataset
from jointembed.data.image_shards import image_shards
from jointembed.data.tokens import bpe, pretrained, words
from jointembed.data.views import VIEWS as PICTURE_VIEWS

DATASETS: dict[str, Callable[..., Any]] = {
    "caption_dataset": caption_dataset,
    "caption_parquet": caption_parquet,
    "caption_shards": caption_shards,
    "caption_table": caption_table,
    "coco_captions": coco_captions,
    "emoji": emoji,
    "esc50": esc50,
    "flickr8k_tokens": flickr8k_tokens,
    "image_dataset": image_dataset,
    "image_folder": image_folder,
    "image_shards": image_shards,
    "karpathy": karpathy,
}
VIEWS: dict[str, Callable[..., Any]] = PICTURE_VIEWS | SOUND_VIEWS
TOKENS: dict[str, Callable[..., Any]] = {"bpe": bpe, "pretrained": pretrained, "words": words}

__all__ = ["DATASETS", "TOKENS", "VIEWS"]
