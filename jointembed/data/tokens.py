"""Captions to token numbers, by the `tokenizers` library; the vocabulary comes from training captions only."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from jointembed.errors import DataError, WeightsError

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
_SPECIAL = [PAD, UNKNOWN, START, END]
logger = logging.getLogger(__name__)


class Tokens:
    """A tokenizer and the longest caption it gives, in tokens."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        """Take the tokenizer over; padding and truncation are done here."""
        if max_length < 3:
            raise DataError(f"max_length {max_length}: a caption needs at least start, one word and end")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def vocabulary(self) -> int:
        """Number of token numbers, special ones included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text, cut at `max_length` with the last token kept; cuts are logged as a count."""
        try:
            encoded = [encoding.ids for encoding in self.tokenizer.encode_batch([_clean(text) for text in texts])]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a tokenizer from a damaged file: the library panics, by what is no Exception
            raise WeightsError(f"the tokenizer cannot be used ({' '.join(str(error).split())[:200]})") from None
        cut = sum(len(ids) > self.max_length for ids in encoded)
        if cut:
            logger.warning("%d of %d captions are longer than %d tokens and were cut", cut, len(texts), self.max_length)
        empty = next((number for number, ids in enumerate(encoded) if not ids), None)
        if empty is not None:
            raise DataError(f"text {empty} ({texts[empty][:40]!r}) has no token in it")
        return [ids if len(ids) <= self.max_length else [*ids[: self.max_length - 1], ids[-1]] for ids in encoded]

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`; the length limit belongs to the model's config."""
        self.tokenizer.save(str(folder / "tokenizer.json"))

    @classmethod
    def load(cls, folder: Path, max_length: int) -> "Tokens":
        """Read `tokenizer.json`. Raises WeightsError naming the file."""
        path = folder / "tokenizer.json"
        try:
            return cls(Tokenizer.from_file(str(path)), max_length)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and panics by what is none
            raise WeightsError(f"{path}: not a tokenizer ({' '.join(str(error).split())[:200]})") from None

    def __reduce__(self) -> tuple:
        """Pickle through JSON, for loader workers."""
        return _from_json, (self.tokenizer.to_str(), self.max_length)


def _clean(text: str) -> str:
    """A lone surrogate or NUL is no text that a tokenizer can take, and no reason to stop."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def _from_json(text: str, max_length: int) -> Tokens:
    return Tokens(Tokenizer.from_str(text), max_length)


def pad(ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token lists to `{"ids": (N, T) int64 padded with 0 on the right, "length": (N,) int64}`."""
    length = torch.tensor([len(one) for one in ids], dtype=torch.int64)
    padded = torch.zeros(len(ids), int(length.max()), dtype=torch.int64)
    for row, one in enumerate(ids):
        padded[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
    return {"ids": padded, "length": length}


def _framed(tokenizer: Tokenizer) -> Tokenizer:
    start, end = (tokenizer.token_to_id(token) for token in (START, END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    return tokenizer


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


def words(texts: Iterable[str], *, threshold: int = 4, max_length: int = 64) -> Tokens:
    """Lower-case words and punctuation that occur at least `threshold` times, as VSE++ (Faghri et al. 2018) has it."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        min_frequency=threshold, special_tokens=_SPECIAL, show_progress=False, vocab_size=10_000_000
    )
    tokenizer.train_from_iterator(map(_clean, texts), trainer)
    return Tokens(_framed(tokenizer), max_length)


def bpe(texts: Iterable[str], *, size: int = 8000, threshold: int = 2, max_length: int = 64) -> Tokens:
    """Byte-pair pieces: for languages without spaces, and words that were never seen whole."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=threshold, special_tokens=_SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(map(_clean, texts), trainer)
    return Tokens(_framed(tokenizer), max_length)


def pretrained(texts: Iterable[str], *, model: str, max_length: int = 64) -> Tokens:
    """The tokenizer of a transformers model, from a local folder or hub id; `texts` is not looked at."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{model}: no tokenizer there ({' '.join(str(error).split())[:200]})") from None
    if not tokenizer.is_fast:
        raise WeightsError(f"{model}: only a slow tokenizer there; a tokenizer.json is needed")
    return Tokens(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), max_length)
