"""The box branch as a whole: which levels it reads and what it refuses."""

import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.models.centermask2.fcos.branch import Fcos
from cellvision.models.centermask2.fcos.head import FcosHead
from cellvision.models.centermask2.ground_truth.cells import truth_from_labels
from cellvision.models.centermask2.options import FcosAssigning, FcosDecoding, FcosLosses


def build(*, sizes=(64,), class_weights=None):
    return Fcos(
        head=FcosHead(channels=8, class_count=2, level_count=2, class_convs=1, box_convs=1),
        strides={3: 8, 4: 16},
        assigning=FcosAssigning(sizes_of_interest=sizes),
        losses=FcosLosses(class_weights=class_weights),
        decoding=FcosDecoding(score_threshold=0.0, post_nms=5),
        training_decoding=FcosDecoding(score_threshold=0.0, post_nms=7),
    )


def test_levels_without_a_stride_are_left_alone():
    fcos = build()
    pyramid = {level: torch.randn(1, 8, 2**side, 2**side) for level, side in ((2, 4), (3, 3), (4, 2), (5, 1))}
    outputs = fcos.predict(pyramid)
    assert [tuple(maps.shape[2:]) for maps in outputs.class_logits] == [(8, 8), (4, 4)]


def test_training_and_detection_have_their_own_limits():
    fcos = build()
    outputs = fcos.predict({3: torch.randn(2, 8, 8, 8), 4: torch.randn(2, 8, 4, 4)})
    assert [len(each.scores) for each in fcos.detect(outputs)] == [5, 5]
    proposals = fcos.propose(outputs)
    assert [len(each.scores) for each in proposals] == [7, 7]
    assert not proposals[0].boxes.requires_grad


def test_losses_are_there_for_every_image():
    fcos = build(class_weights=(1.0, 2.0))
    outputs = fcos.predict({3: torch.randn(2, 8, 8, 8), 4: torch.randn(2, 8, 4, 4)})
    labels = torch.zeros(64, 64, dtype=torch.int32)
    labels[10:30, 10:30] = 1
    truths = [truth_from_labels(labels, torch.tensor([2])), truth_from_labels(labels * 0, torch.tensor([2]))]
    losses = fcos.losses(outputs, truths)
    assert list(losses) == ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"]
    assert all(loss > 0 for loss in losses.values())


def test_numbers_must_fit_levels_and_classes():
    key = r"model\.assigning\.sizes_of_interest"
    with pytest.raises(
        ConfigError, match=rf"{key} has 2 numbers; need 1, the number of levels - 1; try: {key}=\[64\]$"
    ):
        build(sizes=(48, 128))
    with pytest.raises(ConfigError, match=rf"{key} has 0 numbers; need 1, .*; try: {key}=\[64\]$"):
        build(sizes=())
    key = r"model\.fcos_loss\.class_weights"
    with pytest.raises(ConfigError, match=rf"{key} has 3 numbers; need 2, the .* cell classes; try: {key}=\[1,1\]$"):
        build(class_weights=(1.0, 1.0, 1.0))
