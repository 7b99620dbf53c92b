"""Captions tokenised once: token numbers in one flat file, mapped into memory, found again by what they depend on."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jointembed import distributed
from jointembed.data.tokens import Tokens
from jointembed.errors import DataError
from jointembed.tensor_files import save_tensors

_CHUNK = 65_536  # captions tokenised at a time


class TokenLists(Sequence[list[int]]):
    """Token numbers of T captions, four bytes a token, shared by all processes that read one file."""

    def __init__(self, ids: Tensor, start: Tensor) -> None:
        """Take both over.

        Args:
            ids: (sum of lengths,) int32, caption after caption.
            start: (T + 1,) int64, where each begins, and the end.
        """
        self.ids, self.start = ids, start

    def __len__(self) -> int:
        """Captions."""
        return len(self.start) - 1

    @overload
    def __getitem__(self, number: int) -> list[int]: ...
    @overload
    def __getitem__(self, number: slice) -> list[list[int]]: ...
    def __getitem__(self, number: int | slice) -> list[int] | list[list[int]]:
        """One caption's numbers, or those of several."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        first, last = self.start[number % len(self)], self.start[number % len(self) + 1]
        return self.ids[first:last].tolist()


def tokenise(tokens: Tokens, texts: Sequence[str]) -> TokenLists:
    """Tokenise all captions."""
    parts, lengths = [torch.empty(0, dtype=torch.int32)], [0]
    for first in range(0, len(texts), _CHUNK):
        lists = tokens.encode(texts[first : first + _CHUNK])
        lengths += [len(one) for one in lists]
        parts.append(torch.tensor([number for one in lists for number in one], dtype=torch.int32))
    return TokenLists(torch.cat(parts), torch.tensor(lengths).cumsum(0))


def cached_tokens(tokens: Tokens, texts: Sequence[str], fingerprint: str, folder: Path) -> TokenLists:
    """As `tokenise`, but only the first time; every rank calls it, the main one works.

    A rank on a machine that does not see the file makes its own.

    Args:
        tokens: the tokenizer: its content and longest caption are part of the key.
        texts: (T,) captions.
        fingerprint: of the data set that they are of, the rest of the key.
        folder: the cache.

    Raises:
        DataError: a cache file that cannot be written or read, or holds another number of captions; delete it.
    """
    content = json.dumps([tokens.tokenizer.to_str(), tokens.max_length, fingerprint])
    path = folder / f"tokens-{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
    if distributed.is_main() and not path.is_file():
        _store(tokenise(tokens, texts), path)
    distributed.barrier()
    if not path.is_file():
        _store(tokenise(tokens, texts), path)
    try:
        stored = load_file(path)
        found = TokenLists(stored["ids"], stored["start"])
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"{path}: cached tokens cannot be read ({error}); delete the file") from None
    if len(found) != len(texts):
        raise DataError(f"{path}: tokens of {len(found)} captions, there are {len(texts)}; delete the file")
    return found


def _store(made: TokenLists, path: Path) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"ids": made.ids, "start": made.start}, part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cached tokens cannot be written ({error}); set JOINTEMBED_CACHE") from None
