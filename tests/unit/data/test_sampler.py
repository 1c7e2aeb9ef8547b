"""The order of samples follows from seed and epoch alone."""

import numpy as np
import pytest
import torch.distributed as dist

from cellvision.data.sampler import EpochSampler, compute_class_weights_per_sample
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


def test_rare_classes_are_drawn_about_as_often_as_common_ones():
    counts = np.array([[10, 0]] * 95 + [[0, 10]] * 5)
    weights = compute_class_weights_per_sample(counts)
    indices = [i for i, _, _ in draw(0, length=100, draws=4000, weights=weights.tolist())]
    assert np.mean(np.array(indices) >= 95) == pytest.approx(0.5, abs=0.04)


def test_fields_without_cells_keep_a_chance():
    weights = compute_class_weights_per_sample(np.array([[5, 1], [0, 0], [0, 3]]))
    assert (weights > 0).all()
    assert (compute_class_weights_per_sample(np.zeros((3, 2), int)) == 1).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"draws": 0}, r"data\.draws_per_epoch=0; need a whole number from 1 up; try: data\.draws_per_epoch=null"),
        ({"draws": -5}, r"data\.draws_per_epoch=-5; need"),
        ({"draws": 2.5}, r"data\.draws_per_epoch=2\.5; need"),
        ({"seed": -1}, r"seed=-1; need a whole number from 0 up; try: seed=0"),
        ({"seed": "x"}, r"seed='x'; need"),
    ],
)
def test_bad_draws_and_seeds_are_explained(settings, text):
    with pytest.raises(ConfigError, match=text):
        draw(0, **settings)
