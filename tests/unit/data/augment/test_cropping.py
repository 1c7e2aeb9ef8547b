"""Crops limited by the number of cells, and what becomes of the cells that a crop cuts."""

import numpy as np
import pytest
import torch

from cellvision.data.augment import CropByCells, Field, RandomCrop, RandomFlip, RandomRotate, RandomScaleCrop
from cellvision.data.batching import collate, to_field
from cellvision.data.synthetic import SyntheticCells
from cellvision.errors import ConfigError
from cellvision.types import IGNORE

DENSE = SyntheticCells(fields=1, height=160, width=240, cells=(400, 400), packing=(0.9, 0.9)).sample(0)
FIELD = to_field(DENSE, [0])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def count(field):
    return len(field.boxes.ids)


@pytest.mark.parametrize("max_cells", [1, 7, 60, 250])
def test_at_most_so_many_cells(max_cells):
    step = CropByCells(size=(120, 180), max_cells=max_cells)
    for seed in range(12):
        part = step(FIELD, seeded(seed))
        assert count(part) <= max_cells
        assert part.height <= 120
        assert abs(part.width / part.height - 1.5) <= 2.5 / part.height
        assert torch.equal(part.image, step(FIELD, seeded(seed)).image)
    # Not smaller than needed: a step shrinks to the share that fits where cells are spread evenly.
    filled = [count(step(FIELD, seeded(seed))) / max_cells for seed in range(12)]
    assert np.mean(filled) > 0.6


def test_few_cells_give_the_largest_window():
    step = CropByCells(size=(120, 1000), max_cells=400)
    part = step(FIELD, seeded(1))
    assert (part.height, part.width) == (120, 240)  # a smaller field is not padded
    assert torch.equal(CropByCells(size=1000, max_cells=400)(FIELD, seeded()).image, FIELD.image)


def test_every_place_is_shown():
    place = torch.arange(40.0 * 50).reshape(1, 40, 50)
    labels = torch.arange(1, 40 * 50 + 1, dtype=torch.int32).reshape(40, 50)
    field = Field(image=place, label_image=labels)
    seen = torch.zeros(40 * 50, dtype=torch.bool)
    for seed in range(400):
        part = CropByCells(size=1000, max_cells=300)(field, seeded(seed))
        assert torch.equal(part.image[0].int() + 1, part.label_image)
        seen[part.image.long().flatten()] = True
    # The outermost corners come up rarely, as in every crop inside a field.
    assert seen.float().mean() > 0.97


def build_squares():
    """A 10 x 10 cell, and a 3 x 3 one, in a 20 x 40 field."""
    labels = torch.zeros(20, 40, dtype=torch.int32)
    labels[5:15, 5:15], labels[8:11, 30:33] = 7, 9
    return Field(image=labels[None].float(), label_image=labels)


@pytest.mark.parametrize(
    ("columns", "rules", "ignored"),
    [
        ((12, 40), {"min_visible": 0.31}, {7}),  # 30 of 100 px are left
        ((12, 40), {"min_visible": 0.3}, set()),
        ((12, 40), {"min_area_px": 31}, {7}),
        ((12, 40), {"min_area_px": 30}, set()),
        ((5, 40), {"min_visible": 1.0, "min_area_px": 50}, set()),  # whole cells are never ignored, however small
        ((12, 40), {}, set()),
        ((12, 31), {"min_visible": 0.5}, {7, 9}),
    ],
)
def test_slivers_are_ignored(monkeypatch, columns, rules, ignored):
    window = (0, columns[0], 20, columns[1] - columns[0])
    monkeypatch.setattr("cellvision.data.augment.cropping.draw_window", lambda *_: window)
    part = RandomCrop(size=20, **rules)(build_squares(), seeded())
    assert part.ignored == ignored
    assert set(part.label_image.unique().tolist()) == {0, 7, 9}


def test_labels_as_high_as_they_may_be():
    field = build_squares()
    field = Field(image=field.image, label_image=torch.where(field.label_image == 9, 2**24 - 1, field.label_image))
    seen = [RandomCrop(size=8, min_visible=0.99)(field, seeded(seed)) for seed in range(60)]
    assert {label for part in seen for label in part.ignored} == {7, 2**24 - 1}


@pytest.mark.parametrize(
    "step",
    [
        RandomCrop(size=40, min_visible=0.6),
        RandomScaleCrop(size=40, scale=(0.5, 2.0), min_visible=0.6),
        CropByCells(size=60, max_cells=20, min_visible=0.6),
    ],
    ids=lambda step: type(step).__name__,
)
def test_slivers_have_class_ignore_in_the_batch_also_after_other_steps(step):
    whole = np.bincount(DENSE.label_image.ravel())
    cut = 0
    for seed in range(5):
        rng = seeded(seed)
        part = step(FIELD, rng)
        shown = RandomRotate(degrees=90, probability=1)(RandomFlip()(part, rng), rng)
        assert shown.ignored == part.ignored
        targets = collate([(shown, DENSE)]).targets
        for label in part.boxes.ids.tolist():
            expected = IGNORE if label in part.ignored else 1
            assert targets.cell_classes[0][label - 1] == expected
            assert set(targets.class_map[targets.label_image == label].tolist()) <= {expected}
            if not isinstance(step, RandomScaleCrop):
                left = int((part.label_image == label).sum())
                assert (left < 0.6 * whole[label]) == (label in part.ignored)
        cut += len(part.ignored)
    assert cut > 5
    assert IGNORE not in DENSE.cell_classes  # the sample itself is as it was


def test_two_crops_ignore_what_either_has_cut():
    first = RandomCrop(size=100, min_visible=0.9)(FIELD, seeded(1))
    second = RandomCrop(size=90, min_visible=0.9)(first, seeded(2))
    assert first.ignored < second.ignored


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: CropByCells(size=0, max_cells=5), "CropByCells size=0; need an edge from 1 to 16384 px"),
        (lambda: CropByCells(size=9, max_cells=0), "CropByCells max_cells=0"),
        (lambda: RandomCrop(size=9, min_visible=1.5), "RandomCrop min_visible=1.5"),
        (lambda: RandomScaleCrop(size=9, min_area_px=-1), "RandomScaleCrop min_area_px=-1"),
    ],
)
def test_wrong_settings(build, text):
    with pytest.raises(ConfigError, match=text):
        build()
