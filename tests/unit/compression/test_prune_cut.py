"""Optimizers and averages of a cut net."""

import copy

import pytest
import torch
from torch import nn

from cellvision.compression.prune.cut import Cut
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.models.build import build_model

IMAGE = torch.zeros(1, 1, 32, 32)
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True),
}


def build(attention="none"):
    torch.manual_seed(0)
    return build_model(
        name="unet", in_channels=1, classes=("background", "cell"), widths=(8, 16), attention=attention
    ).train()


def train(net, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(steps):
        images = torch.randint(0, 256, (4, 1, 32, 32), generator=generator).float()
        loss = (net.logits(images)["classes"][:, 0] - images[:, 0] / 64).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_cut_carries_the_moments_of_what_stays(kind):
    layers = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    optimizer = OPTIMIZERS[kind](layers.parameters())
    layers(torch.rand(1, 1, 5, 5)).sum().backward()
    optimizer.step()
    old = layers[0].weight
    before = {key: copy.copy(value) for key, value in optimizer.state[old].items()}
    keep = torch.tensor([0, 2, 3])
    cut = Cut(kept={"0.weight": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}}, groups={})
    cut.carry_optimizer(optimizer, cut.apply(layers))
    assert optimizer.param_groups[0]["params"] == list(layers.parameters())
    assert old not in optimizer.state
    for key, value in optimizer.state[layers[0].weight].items():
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            assert torch.equal(value, before[key][[0, 2, 3]])
        else:
            assert value == before[key]
    assert torch.equal(layers[0].weight, old[[0, 2, 3]])
    assert torch.equal(layers[0].weight.grad, old.grad[[0, 2, 3]])
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("attention", ["none", "gate", "se"])
def test_training_goes_on_as_if_the_silent_channels_were_still_there(kind, attention):
    """Channels that say nothing and that nothing listens to get no gradient: the whole net is the oracle."""
    net = build(attention)
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, 3, seed=1)
    pruner = Pruner(net, IMAGE, PruneOptions(ratio=0.25, scope="local"))
    for part in (part for part in pruner._parts if part.kept_because is None):
        silent = torch.arange(1, part.width, 4)
        for each in part.slices:
            for name, tensor, dim in each.list_tensors():
                if not name.endswith(("running_mean", "running_var")):
                    places = each.places[torch.isin(each.channels, silent)]
                    tensor.data.index_fill_(dim, places, 0)
                    for value in optimizer.state[tensor].values():
                        if isinstance(value, torch.Tensor) and value.shape == tensor.shape:
                            value.index_fill_(dim, places, 0)
    whole = copy.deepcopy(net)
    its_optimizer = OPTIMIZERS[kind](whole.parameters())
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step = pruner.step()
    assert step.parameters < 0.65
    step.cut.carry_optimizer(optimizer, step.replaced)
    assert train(net, optimizer, 5, seed=2) == pytest.approx(train(whole, its_optimizer, 5, seed=2), rel=1e-3)


def test_without_being_carried_an_optimizer_trains_nothing():
    """What the function is for."""
    net = build()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    step = Pruner(net, IMAGE, PruneOptions(ratio=0.5, scope="local")).step()
    before = net.decoder[0].convolve[0].weight.clone()
    train(net, optimizer, 1, seed=1)
    assert torch.equal(net.decoder[0].convolve[0].weight, before)
    step.cut.carry_optimizer(optimizer, step.replaced)
    train(net, optimizer, 1, seed=1)
    assert not torch.equal(net.decoder[0].convolve[0].weight, before)


def test_an_average_of_the_weights_is_cut_alike():
    net = build()
    average = copy.deepcopy(net)
    cut = Pruner(net, IMAGE, PruneOptions(ratio=0.5, scope="local")).step().cut
    cut.apply(average)
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in net.state_dict().items())
