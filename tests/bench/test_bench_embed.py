import pytest

from jointembed.bench.embed import PACKAGE, bench_embed


def test_pictures_agree_with_the_plain_loop() -> None:
    found = bench_embed(count=16, batch=2, size=64, repeats=1)["pictures"]
    assert found["count"] == 2 and set(found["sides"]) == {"jointembed", "torchvision"}
    assert found["difference"] < 0.02  # where Pillow and torch round a resized level differently
    assert found["sides"]["jointembed"]["per_second"] > 0


def test_captions_agree_with_sentence_transformers() -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed (extra `bench`)")
    pytest.importorskip(PACKAGE, reason="the weights of MiniLM are not installed")
    found = bench_embed(count=8, batch=4, size=32, repeats=1)["captions"]
    assert found["difference"] < 1e-5
    assert set(found["sides"]) == {"jointembed", "sentence_transformers"}
