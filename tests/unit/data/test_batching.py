"""Fields of several sizes in one batch; what a batch of equal ones holds is tested with the data module."""

import sys

import numpy as np
import pytest
import torch

from cellvision.data.augment import Mixing, compute_background
from cellvision.data.batching import collate, hush_unread_batches, to_field
from cellvision.data.synthetic import SyntheticCells
from cellvision.errors import DataError
from cellvision.ops.targets import compute_distance
from cellvision.types import IGNORE

SIZES = [(40, 70), (64, 48), (64, 70), (40, 48)]


def build_items(sizes):
    items = []
    for seed, (height, width) in enumerate(sizes):
        shape = {"height": height, "width": width, "seed": seed}
        cells = SyntheticCells(fields=1, cells=(9, 9), planes=("body", "nuclear"), **shape)
        items.append((to_field(cells.sample(0), [0, 1]), cells.sample(0)))
    return items


def test_smaller_fields_are_padded_on_the_right_and_at_the_bottom():
    items = build_items(SIZES)
    batch = collate(items)
    assert batch.images.shape == (4, 2, 64, 70)
    assert batch.images.dtype == torch.float32
    assert batch.targets.sizes == tuple(SIZES)
    for at, (field, sample) in enumerate(items):
        inside = torch.zeros(64, 70, dtype=torch.bool)
        inside[: field.height, : field.width] = True
        own = (slice(0, field.height), slice(0, field.width))
        targets = batch.targets
        assert torch.equal(batch.images[at][:, *own], torch.as_tensor(field.image))
        padding = batch.images[at][:, ~inside]
        assert torch.equal(padding, compute_background(field)[:, 0].expand(padding.shape))
        assert np.array_equal(targets.label_image[at][own], sample.label_image)
        assert np.array_equal(targets.class_map[at][own], sample.class_map)
        # The distances of the field itself: its border is no edge of a cell, and neither is the padding's.
        assert np.array_equal(targets.distance[at][own], compute_distance(sample.label_image))
        assert (targets.class_map[at][~inside] == IGNORE).all()
        assert not targets.label_image[at][~inside].any()
        assert not targets.distance[at][~inside].any()


def test_the_padding_looks_like_an_empty_place():
    items = build_items(SIZES[:2])
    images = collate(items).images
    for at, (field, _) in enumerate(items):
        empty = field.image[:, field.label_image == 0]
        assert (images[at][:, -1, -1] > empty.quantile(0.3, dim=1)).all()
        assert (images[at][:, -1, -1] < empty.quantile(0.7, dim=1)).all()


def test_equal_fields_have_no_sizes():
    targets = collate(build_items([(40, 48)] * 2)).targets
    assert targets.sizes is None
    assert IGNORE not in targets.class_map


def test_sizes_stay_when_a_batch_moves():
    assert collate(build_items(SIZES)).to("cpu").targets.sizes == tuple(SIZES)


def test_padded_batches_are_not_mixed():
    batch = collate(build_items(SIZES[:2]))
    with pytest.raises(DataError, match="mixing of images of 40x70 and 64x48 px; need images of one size; try: mixing"):
        Mixing(mixup_probability=1.0)(batch, torch.Generator(), classes=2)


def test_distances_that_nobody_learns_are_left_0():
    items = build_items(SIZES)
    plain, bare = collate(items).targets, collate(items, with_distance=False).targets
    assert plain.distance.any()
    assert (bare.distance.shape, bare.distance.dtype) == (plain.distance.shape, plain.distance.dtype)
    assert not bare.distance.any()
    assert torch.equal(bare.class_map, plain.class_map)
    assert torch.equal(bare.label_image, plain.label_image)


@pytest.mark.parametrize(
    ("error", "told"), [(BrokenPipeError(), 0), (ConnectionResetError(), 0), (EOFError(), 0), (ValueError(), 1)]
)
def test_only_batches_that_nobody_waits_for_are_hushed(monkeypatch, error, told):
    reports = []
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: reports.append(arguments))
    hush_unread_batches(0)
    sys.excepthook(type(error), error, None)
    assert len(reports) == told
