"""The head's layers, their names and how they start."""

import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.models.centermask2.fcos.head import FcosHead


def build(**options):
    return FcosHead(**{"channels": 64, "class_count": 2, "level_count": 3, **options})


def test_an_untrained_head_expects_the_prior_everywhere():
    torch.manual_seed(0)
    head = build(prior=0.02).eval()
    outputs = head([torch.randn(1, 64, 8, 8)] * 3)
    for logits in outputs.class_logits:
        assert logits.sigmoid().median().item() == pytest.approx(0.02, rel=0.3)


def test_levels_share_all_but_a_factor_on_their_boxes():
    head = build()
    with torch.no_grad():
        head.bbox_pred.bias.fill_(1)
        for index, scale in enumerate(head.scales):
            scale.scale.fill_(index - 1)
    outputs = head([torch.ones(1, 64, 4, 4)] * 3)
    assert (outputs.ltrb[0] == 0).all()  # the factor -1, then ReLU
    assert (outputs.ltrb[1] == 0).all()
    assert (outputs.ltrb[2] > 0).any()
    assert torch.equal(outputs.class_logits[0], outputs.class_logits[2])
    assert torch.equal(outputs.centreness_logits[0], outputs.centreness_logits[2])


@pytest.mark.parametrize(
    ("channels", "groups"), [(128, 32), (256, 32), (96, 32), (64, 32), (32, 16), (48, 8), (6, 1), (2, 1)]
)
def test_every_group_has_two_channels_or_more(channels, groups):
    head = build(channels=channels).train()
    assert head.cls_tower[1].num_groups == groups
    head([torch.randn(1, channels, 1, 1)] * 3)  # torch refuses a group with a single value


def test_names_depend_on_the_norm_and_on_shared_convolutions():
    plain = {name.rsplit(".", 1)[0] for name in build(norm="none", class_convs=2).state_dict()}
    assert {"cls_tower.0", "cls_tower.2", "bbox_tower.6"} <= plain
    assert "cls_tower.1" not in plain
    shared = {name for name in build(shared_convs=1).state_dict() if name.startswith("share_tower")}
    assert shared == {f"share_tower.{index}.{kind}" for index in (0, 1) for kind in ("weight", "bias")}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"model.fpn_channels=33 for model.head_norm=group; need an even number"):
        build(channels=33)
    with pytest.raises(ConfigError, match=r"unknown model.head_norm 'batch'"):
        build(norm="batch")
