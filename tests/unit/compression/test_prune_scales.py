import pytest
import torch

from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.compression.prune.scales import pull_scales
from cellvision.models.build import build_model


def train(strength):
    torch.manual_seed(0)
    net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(8, 16)).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(40):
        images = torch.rand(4, 1, 16, 16)
        loss = (net.logits(images)["classes"][:, 0] - images[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        pull_scales(net, strength)
        optimizer.step()
    return net, get_scales(net)


def get_scales(net):
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    return torch.cat([norm.weight.detach() for norm in norms])


def test_scales_are_pulled_down_unless_the_loss_holds_them():
    _, free = train(0.0)
    _, pulled = train(0.1)
    assert (free.median() - pulled.median()).item() == pytest.approx(40 * 0.1 * 0.1, abs=0.05)
    assert pulled.std() > 0


def test_layers_whose_scales_fell_most_are_pruned_most():
    net, _ = train(0.1)
    first, second = net.encoder.levels[0][0][1], net.encoder.levels[1][0][1]
    with torch.no_grad():
        first.weight[[1, 4]] = 1e-3
        second.weight[5] = 1e-3
    options = PruneOptions(ratio=3.5 / 72, importance="bn_scale")
    step = Pruner(net, torch.zeros(1, 1, 32, 32), options).step()
    assert step.widths == {"encoder.levels.0.0.0": (8, 6), "encoder.levels.1.0.0": (16, 15)}
    assert get_scales(net).min() > 0.1


def test_a_layer_whose_scales_all_fell_loses_more_than_others():
    net, _ = train(0.1)
    weak = net.encoder.levels[1][0][1]
    with torch.no_grad():
        weak.weight.mul_(0.01)
    options = PruneOptions(ratio=8 / 72, importance="bn_scale")
    widths = Pruner(net, torch.zeros(1, 1, 32, 32), options).step().widths
    assert widths == {"encoder.levels.1.0.0": (16, 8)}


def test_layers_without_scale_or_gradient_stay():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2, affine=False), torch.nn.GroupNorm(1, 2))
    pull_scales(net, 1.0)
    assert net[1].weight.grad is None
