import torch

from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.compression.prune.statistics import refresh_batch_norm
from cellvision.models.build import build_model


def build():
    torch.manual_seed(0)
    return build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(4, 8))


def test_statistics_become_those_of_the_batches():
    net = build()
    Pruner(net, torch.zeros(1, 1, 32, 32), PruneOptions(ratio=0.5, scope="local")).step()
    batches = [torch.rand(3, 1, 32, 32) * 255 for _ in range(4)]
    block = net.encoder.levels[0][0]
    first, norm = block[0], block[1]
    with torch.no_grad():
        maps = [first(net.normalize(images)) for images in batches]
    net.train()
    net.decoder.eval()
    refresh_batch_norm(net, batches)
    assert net.encoder.training
    assert not net.decoder.training
    torch.testing.assert_close(norm.running_mean, torch.cat(maps).mean((0, 2, 3)))
    variances = torch.stack([each.var((0, 2, 3)) for each in maps])
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert norm.momentum == 0.1


def test_weights_and_frozen_statistics_stay():
    from cellvision.models.backbones.norms import freeze

    net = build()
    freeze(net.encoder)
    frozen = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    weights = {name: value.clone() for name, value in net.named_parameters()}
    refresh_batch_norm(net, [torch.rand(2, 1, 16, 16) * 255])
    assert all(torch.equal(value, frozen[name]) for name, value in net.encoder.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())
    assert net.decoder[0].convolve[1].running_mean.abs().max() > 0
