"""Text encoders: padding counts for nothing, neither in the numbers nor, in the GRU, in the work."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from jointembed.branches.text import GRU, BagOfWords, TextTransformer
from jointembed.errors import DataError, RecipeError

LENGTHS = [4, 1, 9, 4, 7, 2, 9, 3, 5, 6, 1]


def captions(lengths: list[int] = LENGTHS, longest: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor(lengths)
    ids = torch.randint(1, 20, (len(lengths), longest or max(lengths)), generator=generator)
    return {"ids": ids.masked_fill(torch.arange(ids.shape[1]) >= length[:, None], 0), "length": length}


def gradients(encoder: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return found


def packed_last_state(encoder: GRU, x: dict[str, Tensor]) -> Tensor:
    packed = pack_padded_sequence(encoder.words(x["ids"]), x["length"], batch_first=True, enforce_sorted=False)
    return encoder.rnn(packed)[1][-1]


@pytest.mark.parametrize("buckets", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("layers", [1, 2])
def test_gru_equals_packed_sequences_and_their_gradient(buckets: int, layers: int) -> None:
    encoder = GRU(20, embedding=5, hidden=7, layers=layers, buckets=buckets).double()
    x = captions()
    weight = torch.randn(len(LENGTHS), 7, dtype=torch.float64)
    expected = packed_last_state(encoder, x)
    (expected * weight).sum().backward()
    of_packed = gradients(encoder)
    found = encoder(x)
    (found * weight).sum().backward()
    of_found = gradients(encoder)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert of_found.keys() == of_packed.keys()
    for name in of_found:
        torch.testing.assert_close(of_found[name], of_packed[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pool", ["last", "mean", "max"])
def test_gru_of_a_batch_is_that_of_each_caption_alone(bidirectional: bool, pool: Any) -> None:
    encoder = GRU(20, embedding=5, hidden=7, bidirectional=bidirectional, pool=pool).double()
    x = captions()
    rows = []
    for ids, length in zip(x["ids"], LENGTHS, strict=True):
        states, last = encoder.rnn(encoder.words(ids[None, :length]))
        row = {"last": last.transpose(0, 1).flatten(1), "mean": states.mean(1), "max": states.amax(1)}[pool]
        rows.append(row)
    found = encoder(x)
    assert found.shape == (len(LENGTHS), encoder.width) and encoder.width == 7 * (1 + bidirectional)
    torch.testing.assert_close(found, torch.cat(rows), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bag", ["concat", "sum"])
def test_gru_with_the_mean_of_its_words(bidirectional: bool, bag: Any) -> None:
    encoder = GRU(20, embedding=5, hidden=7, bidirectional=bidirectional, pool="max", bag=bag).double()
    x = captions()
    found = encoder(x)
    means = torch.stack([encoder.words(ids[:n]).mean(0) for ids, n in zip(x["ids"], LENGTHS, strict=True)])
    encoder.bag = "none"
    states, linear = encoder(x), encoder.bag_map
    expected = torch.cat([states, means], dim=1) if linear is None else states + linear(means)
    assert found.shape == (len(LENGTHS), encoder.width)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_gru_runs_each_part_to_its_own_longest_caption() -> None:
    encoder = GRU(20, embedding=5, hidden=7, buckets=4)
    sizes: list[tuple[int, ...]] = []
    encoder.rnn.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[:2])))
    encoder(captions([2, 9, 2, 9, 5, 5, 1, 1], longest=12))
    assert sizes == [(2, 9), (2, 5), (2, 2), (2, 1)]


def test_gru_starts_as_in_vse() -> None:
    words = GRU(2000, embedding=20, hidden=8).words.weight
    assert words.abs().max() <= 0.1 and words.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.03)


def test_gru_under_bf16_autocast_is_near_float32() -> None:
    encoder, x = GRU(20, embedding=16, hidden=32), captions()
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(x)
    torch.testing.assert_close(found.float(), encoder(x), rtol=0.1, atol=0.01)


def test_gru_drops_words_in_training_only() -> None:
    encoder, x = GRU(20, embedding=16, hidden=8, dropout=0.5), captions()
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_a_caption_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="caption 1 of the batch has no tokens"):
        GRU(20, embedding=5, hidden=7)(captions([3, 0, 2]))


def test_bag_of_words_is_the_mean_of_the_valid_words() -> None:
    encoder, x = BagOfWords(20, embedding=6), captions()
    x["ids"][2, 1] = 0  # a token number like any other
    rows = [encoder.words.weight[ids[:length]].mean(0) for ids, length in zip(x["ids"], LENGTHS, strict=True)]
    torch.testing.assert_close(encoder(x), torch.stack(rows))
    encoder(x).sum().backward()
    count = sum(1 / length for ids, length in zip(x["ids"], LENGTHS, strict=True) for one in ids[:length] if one == 7)
    assert encoder.words.weight.grad is not None
    torch.testing.assert_close(encoder.words.weight.grad[7], torch.full((6,), count))


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_transformer_does_not_see_padding_or_neighbours(pool: Any) -> None:
    encoder = TextTransformer(20, width=16, depth=2, heads=2, max_length=12, pool=pool, dropout=0.1).double()
    x = captions(longest=12)
    garbage = x | {"ids": x["ids"].masked_fill(torch.arange(12) >= x["length"][:, None], 13)}
    for mode in (False, True):
        encoder.train(mode)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        found = encoder(x)
        assert found.shape == (len(LENGTHS), 16)
        torch.testing.assert_close(encoder(garbage), found, rtol=1e-10, atol=1e-10)
        with torch.no_grad():  # evaluation without gradient takes torch's fused path
            torch.testing.assert_close(encoder(garbage), found, rtol=1e-10, atol=1e-10)
        for row, length in enumerate(LENGTHS):
            alone = encoder({"ids": x["ids"][row : row + 1, :length], "length": x["length"][row : row + 1]})
            torch.testing.assert_close(alone[0], found[row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_transformer_sees_the_order_and_uses_every_parameter(pool: Any) -> None:
    encoder = TextTransformer(20, width=16, depth=2, heads=2, max_length=9, pool=pool)
    encoder(captions()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())
    encoder.eval()
    x = captions([5])
    swapped = x | {"ids": x["ids"][:, [1, 0, 2, 3, 4]]}
    assert not torch.allclose(encoder(x), encoder(swapped))
    first, second = (block.get_parameter("linear1.weight") for block in encoder.blocks)
    assert not torch.equal(first, second)


def test_transformer_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"9 tokens is longer than the text encoder takes \(8\)"):
        TextTransformer(20, width=16, depth=1, heads=2, max_length=8)(captions())
    with pytest.raises(RecipeError, match="3 heads do not divide the width 16"):
        TextTransformer(20, width=16, heads=3)
    with pytest.raises(RecipeError, match="encoder.buckets"):
        GRU(20, buckets=0)


@pytest.mark.parametrize("kind", [GRU, BagOfWords, TextTransformer])
def test_builds_on_the_meta_device(kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        encoder = kind(50_000)
    assert all(parameter.is_meta for parameter in encoder.parameters())


def test_word_dropout_leaves_words_out_in_training_alone_and_never_the_first() -> None:
    torch.manual_seed(0)
    encoder = BagOfWords(50, embedding=8, word_dropout=0.5)
    x = {"ids": torch.tensor([[1, 2, 3, 4, 5, 6], [7, 0, 0, 0, 0, 0]]), "length": torch.tensor([6, 1])}
    full = encoder.eval()(x)
    assert torch.equal(full, encoder(x))
    draws = torch.stack([encoder.train()(x) for _ in range(200)])
    assert torch.equal(draws[:, 1], full[1].expand(200, -1))  # one word: it stays
    assert len({tuple(row.tolist()) for row in draws[:, 0]}) > 20
    subsets = [[0, *[k + 1 for k in range(5) if bits >> k & 1]] for bits in range(32)]
    means = torch.stack([encoder.words.weight[x["ids"][0, subset]].mean(dim=0) for subset in subsets])
    assert ((draws[:, :1] - means).abs().amax(dim=2).amin(dim=1) < 1e-5).all()
    with pytest.raises(RecipeError, match="word_dropout"):
        BagOfWords(50, word_dropout=1.0)
