"""Validation over two processes that hold different numbers of fields."""

import pytest
import torch
from tiny_detector import build_tiny, make_field

from cellvision.data.sampler import FieldSampler
from cellvision.models.centermask2.ground_truth.cells import truth_from_labels
from forked import run_two

FIELDS = 3


def compute_losses(field):
    image, labels = make_field(height=64, width=64, count=4 + field, seed=field)
    truth = truth_from_labels(labels, torch.ones(int(labels.max()), dtype=torch.int64))
    detector = build_tiny(classes=1).eval()
    with torch.no_grad():
        pyramid = detector.encode(image[None])
        found = detector.losses(pyramid, detector.predict(pyramid), [(64, 64)], [truth])
    return {name: value.item() for name, value in found.items() if name.startswith("loss_fcos")}


def compute_part(rank):
    return {field: compute_losses(field) for field in FieldSampler(FIELDS)}


@pytest.mark.slow
def test_a_process_with_a_field_more_waits_for_nobody():
    """And each field has the losses that it has alone: averages over processes would mix it with another one."""
    first, second = run_two(compute_part)
    assert sorted(map(len, (first, second))) == [1, 2]
    for field, losses in {**first, **second}.items():
        assert losses == pytest.approx(compute_losses(field), rel=1e-5)
