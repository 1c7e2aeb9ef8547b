"""The order of samples follows from seed and epoch alone."""

import numpy as np
import pytest
import torch.distributed as dist

from cellvision.data.sampler import EpochSampler, check_world, compute_class_weights_per_sample
from cellvision.errors import ConfigError


def draw(epoch: int, **settings) -> list[tuple[int, int, int]]:
    sampler = EpochSampler(**{"length": 10, "draws": 10, "seed": 3, **settings})
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_shows_every_sample_once_and_can_be_drawn_again():
    assert sorted(index for index, _, _ in draw(4)) == list(range(10))
    assert draw(4) == draw(4)
    assert draw(4) != draw(5)
    assert draw(4) != draw(4, seed=4)
    assert all(epoch == 4 for _, epoch, _ in draw(4))


def test_more_draws_than_samples_repeat_evenly():
    counts = np.bincount([index for index, _, _ in draw(0, draws=25)], minlength=10)
    assert counts.sum() == 25
    assert set(counts) == {2, 3}


def test_ranks_share_an_epoch_without_overlap(monkeypatch):
    seen = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        part = draw(1)
        assert len(part) == 5
        seen += part
    assert sorted(index for index, _, _ in seen) == list(range(10))
    assert len({position for _, _, position in seen}) == 10


def take_part(monkeypatch, world: int, rank: int) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0] * 15])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "draws"), [(1, 30), (4, 30), (4, 61), (8, 17), (50, 30)])
def test_batches_are_of_one_aspect_on_every_rank(monkeypatch, world, batch_size, draws, weights):
    portrait = np.random.default_rng(1).random(30) < 0.3
    settings = {"length": 30, "draws": draws, "weights": weights}
    grouped = {**settings, "aspects": portrait.astype(int).tolist(), "batch_size": batch_size}
    seen, plain = [], []
    for rank in range(world):
        take_part(monkeypatch, world, rank)
        part = draw(2, **grouped)
        assert part == draw(2, **grouped)
        plain += draw(2, **settings)
        batches = [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        assert all(len({portrait[index] for index, _, _ in batch}) == 1 for batch in batches)
        seen += part
    assert len(seen) == len(plain)
    assert sorted(at for _, _, at in seen) == list(range(len(seen)))
    # As many draws as are needed to fill up batches are exchanged, and no more.
    counts, before = (np.bincount([index for index, _, _ in one], minlength=30) for one in (seen, plain))
    assert np.abs(counts - before).sum() <= 2 * 2 * (batch_size * world - 1)
    if batch_size == world == 1:
        assert (counts == before).all()


def test_aspects_are_shuffled_anew_in_every_epoch():
    settings = {"length": 40, "draws": 40, "aspects": [0, 1] * 20, "batch_size": 4}
    orders = [[index % 2 for index, _, _ in draw(epoch, **settings)] for epoch in range(6)]
    assert all(sum(order) == 20 for order in orders)
    assert len({tuple(order) for order in orders}) > 3
    alone = draw(0, length=40, draws=40, aspects=[1] * 40, batch_size=4)
    assert sorted(index for index, _, _ in alone) == list(range(40))


def test_rare_classes_are_drawn_about_as_often_as_common_ones():
    counts = np.array([[10, 0]] * 95 + [[0, 10]] * 5)
    weights = compute_class_weights_per_sample(counts)
    indices = [i for i, _, _ in draw(0, length=100, draws=4000, weights=weights.tolist())]
    assert np.mean(np.array(indices) >= 95) == pytest.approx(0.5, abs=0.04)


def test_fields_without_cells_keep_a_chance():
    weights = compute_class_weights_per_sample(np.array([[5, 1], [0, 0], [0, 3]]))
    assert (weights > 0).all()
    assert (compute_class_weights_per_sample(np.zeros((3, 2), int)) == 1).all()


def test_draws_that_have_begun_stay_those_of_their_epoch():
    sampler = EpochSampler(length=4, draws=8, seed=0)
    whole, draws = list(sampler), iter(sampler)
    begun = [next(draws)]
    sampler.set_epoch(7)
    assert [*begun, *draws] == whole


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"draws": 0},
            r"draws_per_epoch=0; need a whole number from 1 to 100000000; try: data\.draws_per_epoch=null",
        ),
        ({"draws": 10**9}, r"data\.draws_per_epoch=1000000000; need"),
        ({"draws": -5}, r"data\.draws_per_epoch=-5; need"),
        ({"draws": 2.5}, r"data\.draws_per_epoch=2\.5; need"),
        ({"seed": -1}, r"seed=-1; need a whole number from 0 up; try: seed=0"),
        ({"seed": "x"}, r"seed='x'; need"),
    ],
)
def test_bad_draws_and_seeds_are_explained(settings, text):
    with pytest.raises(ConfigError, match=text):
        draw(0, **settings)


def test_every_rank_needs_a_field_to_score(monkeypatch):
    fields = {"val": 4, "test": 3}
    check_world(fields)
    take_part(monkeypatch, 3, 0)
    check_world(fields)
    take_part(monkeypatch, 4, 1)
    with pytest.raises(ConfigError, match=r"^4 devices for 3 test fields; need one .*; try: trainer\.devices=3$"):
        check_world(fields)
