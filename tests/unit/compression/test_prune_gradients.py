"""What "taylor" and "fisher" multiply weights by, against gradients that autograd takes batch by batch."""

import pytest
import torch

from cellvision.compression.prune.gradients import take_gradients
from cellvision.models.build import build_model
from cellvision.types import Batch, Targets


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(2, 32, 32, dtype=torch.int32)
    labels[:, 4 + seed : 12 + seed, 6:20] = 1
    targets = Targets(
        class_map=labels.long(), distance=labels.float(), label_image=labels, cell_classes=(torch.ones(1).long(),) * 2
    )
    return Batch(images=255 * torch.rand(2, 1, 32, 32, generator=generator), targets=targets, names=("a", "b"))


@pytest.fixture
def net():
    """Without batch normalisation, whose running statistics a second forward pass would change."""
    torch.manual_seed(0)
    net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(4, 8), norm="group")
    net.encoder.levels[0][0][0].requires_grad_(False)
    return net.train()


@pytest.mark.parametrize(
    ("importance", "expect"),
    [("taylor", lambda each: each.mean(0)), ("fisher", lambda each: each.square().mean(0).sqrt())],
)
def test_gradients_of_batches_are_averaged(net, importance, expect):
    batches = [make_batch(seed) for seed in range(3)]
    learned = {name: each for name, each in net.named_parameters() if each.requires_grad}
    found = {name: [] for name in learned}
    for batch in batches:
        loss = sum(net.losses(batch.images, batch.targets).values())
        for name, gradient in zip(learned, torch.autograd.grad(loss, tuple(learned.values())), strict=True):
            found[name].append(gradient)
    take_gradients(net, batches, importance)
    for name, each in found.items():
        torch.testing.assert_close(learned[name].grad, expect(torch.stack(each)))
    assert net.encoder.levels[0][0][0].weight.grad is None


def test_what_cancels_out_is_seen_by_fisher_alone(net):
    bias, batches = net.head.bias, [make_batch(seed) for seed in range(2)]
    net.losses = lambda images, targets: {"pull": (1.0 if images is batches[0].images else -1.0) * bias.sum()}
    take_gradients(net, batches, "taylor")
    assert bias.grad.abs().max() == 0
    take_gradients(net, batches, "fisher")
    torch.testing.assert_close(bias.grad, torch.ones_like(bias))
    assert all(each.grad is None for each in net.parameters() if each is not bias)
