"""Which channels hang together. The oracle is the whole net with the same channels silenced: it must give the same."""

import copy

import pytest
import torch
from torch import nn

from cellvision.compression.prune.cut import build_cut
from cellvision.compression.prune.parts import list_parts
from cellvision.compression.prune.runs import run_layers
from cellvision.errors import ConfigError
from cellvision.models.base import NetSpec
from cellvision.models.build import build_model

CELLS = ("background", "live", "dead")
SMALL = {"fpn_channels": 32, "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1}
# a mean over the channels is another one without those that are silent, so no spatial attention here
NETS = {
    "plain": {"name": "unet", "widths": (8, 16, 16)},
    "gate": {"name": "unet", "widths": (8, 16, 16), "attention": "gate", "norm": "group"},
    "se": {"name": "unet", "widths": (8, 16, 16), "attention": "se"},
    "timm": {"name": "unet", "widths": (8, 8, 8), "encoder": "efficientnet_b0"},
    "vovnet": {"name": "centermask2", "backbone": "vovnet19_slim", "mask_attention": False, **SMALL},
    "depthwise": {"name": "centermask2", "backbone": "vovnet19_slim_dw", "mask_attention": False, **SMALL},
    "grouped": {"name": "centermask2", "backbone": "resnext50_32x4d", "levels": [3, 4], "top_levels": 1,
                "assigning": {"sizes_of_interest": [16, 32]}, "roi_levels": [3, 4], "mask_attention": False, **SMALL},
}  # fmt: skip
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def build(name):
    torch.manual_seed(0)
    net = build_model(in_channels=1, classes=CELLS, **NETS[name])
    images = torch.randint(0, 256, (2, 1, 128, 128)).float()
    with torch.no_grad():
        for parameter in net.parameters():  # biases and scales that are not 0 or 1
            parameter.add_(0.05 * torch.randn_like(parameter))
        net.train().logits(images)
    return net.eval(), images[:1]


@torch.no_grad()
def silence(part, channels):
    """Make a part's channels 0 wherever they are made: behind a normalisation, or else by the layer itself."""
    normed = any(isinstance(each.layer, NORMS) for each in part.slices)
    for each in part.slices:
        if each.is_out and (isinstance(each.layer, NORMS) or not normed):
            places = each.places[torch.isin(each.channels, channels)]
            is_transposed = getattr(each.layer, "transposed", False)
            (each.layer.weight.transpose(0, 1) if is_transposed else each.layer.weight)[places] = 0
            if each.layer.bias is not None:
                each.layer.bias[places] = 0


@pytest.mark.parametrize("name", NETS)
def test_a_cut_net_gives_what_the_whole_one_gives_with_those_channels_silenced(name):
    net, image = build(name)
    parts = [part for part in list_parts(net, image) if part.kept_because is None]
    assert len(parts) > 10
    generator = torch.Generator().manual_seed(0)
    removed = {}
    for part in parts:
        units = torch.randperm(part.width // part.unit, generator=generator)[: part.width // part.unit // 3]
        removed[part] = (units.unsqueeze(1) * part.unit + torch.arange(part.unit)).flatten()
        silence(part, removed[part])
    small = copy.deepcopy(net)
    build_cut(removed).apply(small)
    count, before = (sum(parameter.numel() for parameter in each.parameters()) for each in (small, net))
    assert count < 0.65 * before
    with torch.no_grad():
        for found, expected in zip(run_layers(small, image), run_layers(net, image), strict=True):
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def get_reasons(net, image, **options):
    return {part.name: part.kept_because for part in list_parts(net, image, **options)}


def test_results_and_gates_keep_their_channels_and_all_else_may_lose_some():
    net, image = build("gate")
    reasons = get_reasons(net, image)
    closed = {name for name, reason in reasons.items() if reason}
    assert closed == {"head", "decoder.0.gate.psi", "decoder.1.gate.psi"}
    assert {reasons[name] for name in closed} == {"is a result of the net, or a gate"}
    assert {"decoder.0.gate.from_skip", "encoder.levels.0.0.0"} < reasons.keys() - closed


def test_every_layer_of_a_detector_but_its_results_may_lose_channels():
    net, image = build("vovnet")
    parts = list_parts(net, image)
    closed = {part.name.rpartition(".")[2] for part in parts if part.kept_because}
    assert closed == {"cls_logits", "bbox_pred", "ctrness", "predictor", "maskiou"}
    (pyramid,) = (part for part in parts if part.name.endswith("fpn_output3"))
    users = {each.name.rpartition(".")[2] for each in pyramid.slices if not each.is_out}
    assert users == {"0", "mask_fcn1", "maskiou_fcn1", "p6", "p7"}
    (tower,) = (part for part in parts if part.name.endswith("cls_tower.0"))
    assert tower.unit == 2


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        ({"name": "unet", "widths": (4, 8), "attention": "self"}, {"context.to_query"}),
        ({"name": "centermask2", "backbone": "vovnet19_slim", "deformable": True, **SMALL}, {"OSA4_1_concat/conv"}),
    ],
)
def test_what_the_trace_cannot_follow_keeps_its_channels(arguments, closed):
    net = build_model(in_channels=1, classes=CELLS, **arguments)
    reasons = get_reasons(net, torch.zeros(1, 1, 64, 64))
    found = {name for name, reason in reasons.items() if reason and "attention heads or a deformable" in reason}
    assert all(any(name.endswith(end) for name in found) for end in closed)


def test_protected_layers_keep_their_channels_with_all_they_share_them_with():
    net, image = build("plain")
    reasons = get_reasons(net, image, protected=["encoder.levels.0.*", "decoder.1.convolve.0"])
    closed = {name for name, reason in reasons.items() if reason == "is in compress.prune.protected"}
    assert closed == {"encoder.levels.0.0.0", "encoder.levels.0.0.3", "decoder.1.convolve.0"}


def test_tracing_leaves_the_net_as_it_is():
    net, image = build("plain")
    net.train()
    net.encoder.eval().requires_grad_(False)
    before = [(name, parameter.requires_grad) for name, parameter in net.named_parameters()]
    modes = [module.training for module in net.modules()]
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    hooks = [len(module._forward_hooks) for module in net.modules()]
    with torch.no_grad():
        list_parts(net, image)
    assert [(name, parameter.requires_grad) for name, parameter in net.named_parameters()] == before
    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert all(parameter.grad is None for parameter in net.parameters())


class Uneven(nn.Module):
    """A grouped convolution that gives twice the channels it takes."""

    spec = NetSpec(name="uneven", kind="semantic", in_channels=1, classes=CELLS, stride=1, outputs=(), tiles=True)

    def __init__(self):
        super().__init__()
        self.first, self.wide, self.last = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 16, 1, groups=4), nn.Conv2d(16, 3, 1)

    def logits(self, images):
        return {"classes": self.last(self.wide(self.first(images)))}


class Apart(Uneven):
    """Takes maps apart as transformers of timm do with queries, keys and values."""

    def logits(self, images):
        maps = self.wide(self.first(images)).unflatten(1, (2, 8))
        first, second = maps.unbind(1)
        return {"classes": self.last(torch.cat([first, second], dim=1))}


def test_a_transformer_is_refused():
    with pytest.raises(ConfigError, match="uneven with attention whose channels cannot be followed; need a convol"):
        list_parts(Apart(), torch.zeros(1, 1, 8, 8))


def test_groups_of_two_lengths_keep_their_channels():
    reasons = get_reasons(Uneven(), torch.zeros(1, 1, 8, 8))
    assert reasons["first"] == reasons["wide"] == "has groups of channels that do not fit those of its neighbours"
