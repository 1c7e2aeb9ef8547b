import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from cellvision.compression.prune.masks import apply_masks, build_masks, find_masks, measure_sparsity
from cellvision.errors import ConfigError


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(36, 2)
    )


def test_the_smallest_of_all_weights_go_as_in_torch(net):
    masks = build_masks(net, sparsity=0.6)
    expected = [(net[at], "weight") for at in (0, 3, 5)]
    prune.global_unstructured(expected, pruning_method=prune.L1Unstructured, amount=0.6)
    assert masks.keys() == {"0.weight", "3.weight", "5.weight"}
    for at in (0, 3, 5):
        assert torch.equal(masks[f"{at}.weight"], net[at].weight_mask.bool())


def test_two_of_every_four_neighbours_stay_the_larger_ones(net):
    masks = build_masks(net, pattern="2:4")
    assert masks.keys() == {"3.weight", "5.weight"}  # 9 inputs are no fours
    for name, mask in masks.items():
        weights, kept = net.get_parameter(name).detach().abs().reshape(-1, 4), mask.view(-1, 4)
        assert (kept.sum(1) == 2).all()
        assert (weights.where(kept, torch.inf).amin(1) >= weights.where(~kept, 0).amax(1)).all()


def test_equal_weights_are_still_counted():
    layer = nn.Linear(8, 2)
    nn.init.ones_(layer.weight)
    assert build_masks(layer, sparsity=0.25)["weight"].sum() == 12
    assert build_masks(layer, pattern="2:4")["weight"].sum() == 8


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_masks_hold_through_training(net, pattern):
    masks = build_masks(net, pattern=pattern, protected=["5"])
    assert "5.weight" not in masks
    weights = sum(mask.numel() for mask in masks.values())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    start = net[3].weight.detach().clone()
    apply_masks(net, masks)
    for _ in range(3):
        loss = (net(torch.rand(2, 1, 5, 5)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        apply_masks(net, masks)
        assert sum(int((net.get_parameter(name) == 0).sum()) for name in masks) / weights == pytest.approx(
            0.5, abs=0.01
        )
    kept = masks["3.weight"]
    assert (net[3].weight[kept] != start[kept]).all()
    assert not (net[3].weight[~kept]).any()
    found = find_masks(net, [{"step": "prune"}, {"step": "prune", "masks": sorted(masks)}, {"step": "quantize"}])
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_the_share_of_zeros_is_of_all_weights_that_are_multiplied(net):
    assert measure_sparsity(net) == 0
    nn.init.zeros_(net[3].weight)  # 32 of 8 * 9 + 32 + 72
    nn.init.zeros_(net[1].weight)
    assert measure_sparsity(net) == 32 / 176
    assert measure_sparsity(nn.ReLU()) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pattern": "1:4"}, "unknown compress.prune.masks '1:4'"),
        ({"sparsity": 1.0}, r"prune.sparsity=1\.0; need a share in \(0, 1\)"),
        ({"protected": ["*"]}, "no layer for compress.prune.masks=unstructured; need one or more"),
    ],
)
def test_masks_that_mean_nothing_are_refused(net, given, message):
    with pytest.raises(ConfigError, match=message):
        build_masks(net, **given)
