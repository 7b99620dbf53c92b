import pickle
from pathlib import Path

import pytest

from jointembed.data.tokens import Tokens, bpe, pad, words
from jointembed.errors import DataError, WeightsError

CAPTIONS = ["A dog runs.", "A dog sleeps.", "a Dog, a cat", "the dog"]


def test_words_below_the_threshold_are_unknown() -> None:
    tokens = words(CAPTIONS, threshold=4)
    first, second = tokens.encode(["a dog", "zebra dog"])
    assert len(first) == len(second) == 4  # start, two words, end
    assert first[0] == second[0] and first[-1] == second[-1] and first[2] == second[2]
    assert second[1] == tokens.tokenizer.token_to_id("<unk>")
    assert tokens.vocabulary == 4 + 2  # special tokens, "a", "dog"


def test_the_pad_number_is_zero() -> None:
    assert words(CAPTIONS).tokenizer.token_to_id("<pad>") == 0


@pytest.mark.fault(12, "longer than the model takes: cut and counted")
def test_long_captions_are_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokens = words(CAPTIONS, threshold=1, max_length=5)
    ids = tokens.encode(["dog " * 50, "a dog"])
    assert [len(one) for one in ids] == [5, 4]
    assert ids[0][-1] == tokens.tokenizer.token_to_id("<end>")
    assert "1 of 2 captions are longer than 5 tokens" in caplog.text


@pytest.mark.parametrize("text", ["\ud800 dog", "a\0dog", "כלב רץ", "🐕🐕", "dog " * 10_000, "犬が走る"])
@pytest.mark.fault(12, "tokens of lone surrogate, NUL, right-to-left, emoji, 10,000 words")
def test_odd_captions_give_tokens(text: str) -> None:
    for tokens in (words(CAPTIONS, threshold=1), bpe(CAPTIONS, size=60)):
        assert 1 <= len(tokens.encode([text])[0]) <= tokens.max_length


def test_saved_and_loaded_and_pickled_alike(tmp_path: Path) -> None:
    tokens = bpe(CAPTIONS, size=60)
    tokens.save(tmp_path)
    loaded = Tokens.load(tmp_path, tokens.max_length)
    assert loaded.encode(CAPTIONS) == tokens.encode(CAPTIONS) == pickle.loads(pickle.dumps(tokens)).encode(CAPTIONS)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="tokenizer.json: not a tokenizer"):
        Tokens.load(tmp_path, 64)


def test_padding_is_on_the_right_with_zero() -> None:
    batch = pad([[5, 6, 7], [8]])
    assert batch["ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["length"].tolist() == [3, 1]


def test_max_length_too_short() -> None:
    with pytest.raises(DataError, match="max_length 2"):
        words(CAPTIONS, max_length=2)
