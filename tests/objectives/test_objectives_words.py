import math

import pytest
import torch
from reference import obow_reference as reference
from torch import Tensor

from jointembed.objectives.words import Vocabulary, bag_of_words, inner, perplexity, sampled_features, word_distances


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vocabulary(size: int = 6, channels: int = 3) -> Vocabulary:
    return Vocabulary(size, channels, inverse_delta=4.0).double()


def test_bags_equal_the_equations() -> None:
    words, maps = vocabulary(), rows(4, 3, 6, 5).relu()
    found = words(maps)
    running = 0.99 * 0.5 + 0.01 * float(reference.nearest_distance(maps, words.words))
    expected = torch.stack([reference.bag(picture, words.words, running / 4.0) for picture in maps])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))
    words.commit()
    assert float(words.distance) == pytest.approx(running, rel=1e-9)


def test_distances_are_those_of_inner_locations() -> None:
    maps, words = rows(2, 3, 5, 6), rows(4, 3, seed=1)
    found = word_distances(maps, words)
    expected = torch.stack([torch.cdist(reference.locations(picture), words).square() for picture in maps])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert inner(rows(1, 2, 4, 7)).shape == (1, 2, 4, 7) and inner(rows(1, 2, 7, 7)).shape == (1, 2, 5, 5)


def test_a_picture_of_one_word_has_a_bag_of_it_alone() -> None:
    distance = torch.full((1, 9, 5), 100.0)
    distance[..., 2] = 0
    torch.testing.assert_close(bag_of_words(distance, 1.0), torch.eye(5)[2:3])


def test_locations_of_different_words_share_the_bag() -> None:
    distance = 100 * (1 - torch.eye(4)[None])
    torch.testing.assert_close(bag_of_words(distance, 1.0), torch.full((1, 4), 0.25))


def test_words_that_are_equally_far_share_the_bag() -> None:
    bag = bag_of_words(torch.full((2, 9, 8), 3.0), 15.0)
    torch.testing.assert_close(bag, torch.full((2, 8), 1 / 8))
    assert float(perplexity(bag)) == pytest.approx(8)
    assert float(perplexity(torch.eye(8)[[3, 3]])) == pytest.approx(1)
    assert float(perplexity(torch.eye(8)[[3, 4, 3, 4]])) == pytest.approx(2)


def test_features_are_local_means_at_random_places() -> None:
    maps = rows(50, 3, 7, 6)
    found = sampled_features(maps, seed=4)
    means = torch.nn.functional.avg_pool2d(inner(maps), 3, stride=1).flatten(2)  # (50, 3, 6)
    places = [int((means[i] == found[i][:, None]).all(0).nonzero()) for i in range(50)]
    assert set(places) == set(range(6))
    assert torch.equal(found, sampled_features(maps, seed=4)) and not torch.equal(found, sampled_features(maps, seed=5))
    torch.testing.assert_close(sampled_features(maps[:, :, :2, :2], seed=0), maps[:, :, :2, :2].mean((2, 3)))


def test_words_are_the_newest_features_and_move_at_commit_alone() -> None:
    words, maps = vocabulary(), rows(4, 3, 5, 5).relu()
    start, distance = words.words.clone(), words.distance.clone()
    assert float(start.min()) == 0 and float(start.max()) > 0.5
    first = words(maps)
    assert torch.equal(words.words, start) and torch.equal(words.distance, distance)
    torch.testing.assert_close(words(maps), first)
    words.commit()
    assert torch.equal(words.words[:4], sampled_features(maps, seed=0)) and torch.equal(words.words[4:], start[4:])
    words(2 * maps)
    words.commit()
    expected = sampled_features(2 * maps, seed=4)
    assert torch.equal(words.words[[4, 5, 0, 1]], expected)
    again = vocabulary()
    again.load_state_dict(words.state_dict())
    assert torch.equal(again(maps), words(maps))


def test_bfloat16_maps_give_float32_bags() -> None:
    words, maps = Vocabulary(6, 3), rows(2, 3, 5, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = words(maps)
    assert found.dtype == torch.float32 and torch.equal(found, words(maps.float()))
    assert math.isfinite(float(found.sum()))
