"""Text encoders from scratch. Input: `{"ids": (N, T) int64 padded on the right, "length": (N,) int64}`."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from jointembed.errors import DataError, RecipeError
from jointembed.layers import pool_tokens, valid_positions

Text = dict[str, Tensor]


class GRU(nn.Module):
    """Word embeddings and a GRU, as in VSE++ (Faghri et al. 2018): words U(-.1, .1), last valid state.

    No time goes into padding: the batch is sorted by length, cut into `buckets` parts, and each part runs to the end
    of its own longest caption. The values are those of the whole padded batch.

    Args:
        vocabulary: number of token numbers.
        embedding: width of the word embeddings.
        hidden: width of the state.
        layers: of the GRU.
        bidirectional: read both ways and join the two states, over packed sequences.
        pool: the last state of each direction, or the mean or maximum of all states.
        dropout: of word embeddings, and between layers.
        bag: the mean of the caption's word embeddings, of the same table, beside the pooled states: `concat` joins
            both, `sum` adds a linear map of it.
        buckets: parts of the batch in one direction. Forward and backward of 256 captions (mean 11.8 words, at most
            30) at 300-1024 on two cores, 1 / 2 / 4 / 8 parts and packed: 778 / 536 / 478 / 530 and 666 ms in float32,
            280 / 255 / 259 / 356 and 372 ms in bf16.
    """

    modality = "text"

    def __init__(
        self,
        vocabulary: int,
        *,
        embedding: int = 300,
        hidden: int = 1024,
        layers: int = 1,
        bidirectional: bool = False,
        pool: Literal["last", "mean", "max"] = "last",
        dropout: float = 0.0,
        bag: Literal["none", "concat", "sum"] = "none",
        buckets: int = 4,
    ) -> None:
        """See the class."""
        super().__init__()
        if buckets < 1:
            raise RecipeError(f"encoder.buckets: must be at least 1, found {buckets}")
        states = hidden * (2 if bidirectional else 1)
        self.width = states + (embedding if bag == "concat" else 0)
        self.pool: Literal["last", "mean", "max"] = pool
        self.buckets = buckets
        self.words = nn.Embedding(vocabulary, embedding)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.GRU(
            embedding,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.bag = bag
        self.bag_map = nn.Linear(embedding, states) if bag == "sum" else None

    def forward(self, x: Text) -> Tensor:
        """Captions to representations (N, width). Raises DataError for a caption without tokens."""
        length, order = x["length"].sort(descending=True, stable=True)
        ids = x["ids"][order]
        longest = length.tolist()
        if longest[-1] < 1:
            raise DataError(f"caption {int(order[-1])} of the batch has no tokens")
        if self.rnn.bidirectional:
            rows = self._packed(ids[:, : longest[0]], length)
        else:
            size = -(-len(longest) // self.buckets)
            parts = [slice(start, start + size) for start in range(0, len(longest), size)]
            rows = torch.cat([self._padded(ids[part, : longest[part.start]], length[part]) for part in parts])
        return rows[order.argsort()]

    def _padded(self, ids: Tensor, length: Tensor) -> Tensor:
        words = self.dropout(self.words(ids))
        states, _ = self.rnn(words)
        return self._with_bag(pool_tokens(states, length, self.pool), words, length)

    def _packed(self, ids: Tensor, length: Tensor) -> Tensor:
        words = self.dropout(self.words(ids))
        states, last = self.rnn(pack_padded_sequence(words, length.cpu(), batch_first=True))
        if self.pool == "last":
            rows = torch.cat([last[-2], last[-1]], dim=1)
        else:
            rows = pool_tokens(pad_packed_sequence(states, batch_first=True)[0], length, self.pool)
        return self._with_bag(rows, words, length)

    def _with_bag(self, rows: Tensor, words: Tensor, length: Tensor) -> Tensor:
        if self.bag == "none":
            return rows
        mean = pool_tokens(words, length, "mean")
        return torch.cat([rows, mean], dim=1) if self.bag_map is None else rows + self.bag_map(mean)


class BagOfWords(nn.Module):
    """The mean of a caption's word embeddings; padding is never looked up.

    Args:
        vocabulary: number of token numbers.
        embedding: width of the word embeddings, and of the representation.
        dropout: of the mean.
        word_dropout: share of the tokens that training leaves out, never the first: another caption at every epoch.

    Raises:
        RecipeError: a share outside 0 to 1.
    """

    modality = "text"

    def __init__(
        self, vocabulary: int, *, embedding: int = 512, dropout: float = 0.0, word_dropout: float = 0.0
    ) -> None:
        """See the class."""
        super().__init__()
        if not 0 <= word_dropout < 1:
            raise RecipeError(f"encoder.word_dropout: {word_dropout} is a share, at least 0 and below 1")
        self.width, self.word_dropout = embedding, word_dropout
        self.words = nn.EmbeddingBag(vocabulary, embedding, mode="mean")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Text) -> Tensor:
        """Captions to representations (N, width)."""
        ids, length = x["ids"], x["length"]
        kept = valid_positions(length, ids.shape[1])
        if self.training and self.word_dropout:
            drawn = torch.rand(ids.shape, device=ids.device) >= self.word_dropout
            drawn[:, 0] = True
            kept, length = kept & drawn, (kept & drawn).sum(dim=1)
        return self.dropout(self.words(ids[kept], length.cumsum(0) - length))


class TextTransformer(nn.Module):
    """A small pre-norm transformer encoder with learned positions (Vaswani et al. 2017, Xiong et al. 2020).

    Args:
        vocabulary: number of token numbers.
        width: of the model, and of the representation.
        depth: number of blocks.
        heads: of the attention; they divide `width`.
        max_length: longest caption in tokens.
        pool: mean of the tokens, a learned first token (`cls`), or the last token.
        dropout: throughout.

    Raises:
        RecipeError: heads that do not divide the width.
    """

    modality = "text"

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        max_length: int = 64,
        pool: Literal["mean", "cls", "last"] = "mean",
        dropout: float = 0.1,
    ) -> None:
        """See the class."""
        super().__init__()
        if heads < 1 or width % heads:
            raise RecipeError(f"encoder.heads: {heads} heads do not divide the width {width}")
        self.width, self.max_length = width, max_length
        self.pool: Literal["mean", "cls", "last"] = pool
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(max_length, width))
        self.cls = nn.Parameter(torch.empty(width)) if pool == "cls" else None
        for tensor in (self.words.weight, self.positions, *([] if self.cls is None else [self.cls])):
            nn.init.normal_(tensor, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Text) -> Tensor:
        """Captions to representations (N, width). Raises DataError for a caption longer than `max_length`."""
        ids, length = x["ids"], x["length"]
        if ids.shape[1] > self.max_length:
            raise DataError(
                f"a caption of {ids.shape[1]} tokens is longer than the text encoder takes ({self.max_length}); "
                "lower data.text.max_length or raise the encoder's max_length"
            )
        states = self.words(ids) + self.positions[: ids.shape[1]]
        if self.cls is not None:
            states = torch.cat([self.cls.expand(ids.shape[0], 1, -1), states], dim=1)
            length = length + 1
        padding = ~valid_positions(length, states.shape[1])
        states = self.dropout(states)
        for block in self.blocks:
            states = block(states, src_key_padding_mask=padding)
        return pool_tokens(self.norm(states), length, self.pool)
