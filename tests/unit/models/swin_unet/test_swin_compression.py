"""What compression does with window attention: heads keep their channels, all else can be cut and rounded."""

import copy

import pytest
import torch
from torch import nn

from cellvision.compression.prune.cut import build_cut
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.parts import list_parts
from cellvision.compression.prune.pruner import Pruner
from cellvision.compression.qat.plan import plan_rounding
from cellvision.models.build import build_model
from cellvision.models.structure.widths import read_widths, set_widths

CONFIG = {
    "name": "swin_unet", "in_channels": 1, "classes": ("background", "cell"), "widths": (8, 16), "depths": (2, 2),
    "heads": (1, 2),
}  # fmt: skip
HEADS = "leads into attention heads or a deformable convolution"
IMAGE = torch.rand(1, 1, 32, 48, generator=torch.Generator().manual_seed(0)) * 255


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_model(**CONFIG).eval().requires_grad_(False)


@pytest.fixture
def parts(net):
    return {part.name: part for part in list_parts(net, IMAGE)}


def test_heads_keep_their_channels_and_all_else_can_lose_some(parts):
    heads = {name for name in parts if name.endswith("attn.qkv")}
    assert len(heads) == 6
    assert {name for name, part in parts.items() if part.kept_because == HEADS} == heads
    assert {name for name, part in parts.items() if part.kept_because} - heads == {"head"}


def test_the_stream_of_a_level_is_one_part_with_all_that_reads_it(parts):
    """From the first layer over both blocks to the skip, and four times over where four neighbours are merged."""
    stream = parts["embed.0"]
    blocks = {f"stages.0.{at}.{layer}" for at in range(2) for layer in ("norm1", "norm2", "attn.qkv", "mlp.0")}
    made = {f"stages.0.{at}.{layer}" for at in range(2) for layer in ("attn.proj", "mlp.3")}
    assert {each.name for each in stream.slices} == {
        "embed.0", "embed.1", *blocks, *made, "merges.0.norm", "merges.0.reduction", "decoder.0.reduce",
    }  # fmt: skip
    merged = next(each for each in stream.slices if each.name == "merges.0.norm")
    assert sorted(merged.places.tolist()) == list(range(32))
    assert torch.equal(merged.channels, merged.places % 8)
    skip = next(each for each in stream.slices if each.name == "decoder.0.reduce")
    assert torch.equal(skip.places - 8, skip.channels)  # behind what comes from below


@pytest.fixture
def scaled_only(monkeypatch):
    """Layer normalisation without its mean and variance, which silent channels have a part in and missing ones not."""
    monkeypatch.setattr(nn.functional, "layer_norm", lambda x, shape, weight, bias, eps: x * weight + bias)


def silence(part, channels):
    """Make a part's channels 0 wherever they are made or scaled."""
    for each in part.slices:
        if each.is_out:
            places = each.places[torch.isin(each.channels, channels)]
            is_transposed = isinstance(each.layer, nn.ConvTranspose2d)
            (each.layer.weight.transpose(0, 1) if is_transposed else each.layer.weight)[places] = 0
            if each.layer.bias is not None:
                each.layer.bias[places] = 0


@pytest.mark.usefixtures("scaled_only")
def test_a_cut_net_gives_what_the_whole_one_gives_with_those_channels_silenced(net, parts):
    cuttable = [name for name, part in parts.items() if part.kept_because is None]
    assert len(cuttable) > 10
    for name in cuttable:
        whole = copy.deepcopy(net)
        part = next(each for each in list_parts(whole, IMAGE) if each.name == name)
        channels = torch.arange(part.width)[1::2]
        silence(part, channels)
        expected = whole(IMAGE)["probabilities"]
        assert (expected - net(IMAGE)["probabilities"]).abs().max() > 1e-6, name
        build_cut({part: channels}).apply(whole)
        torch.testing.assert_close(whole(IMAGE)["probabilities"], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_pruned_net_is_rebuilt_from_its_record(net):
    step = Pruner(net, IMAGE, PruneOptions(macs=0.5)).step()
    assert step.macs == pytest.approx(0.5, abs=0.05)
    assert any("mlp" in name for name in step.widths)
    again = build_model(**CONFIG).eval()
    set_widths(again, read_widths(net, build_model(**CONFIG)))
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again(IMAGE)["probabilities"], net(IMAGE)["probabilities"])


def test_all_layers_round_but_the_first_and_the_last(net):
    before = copy.deepcopy(net.state_dict())
    plan = plan_rounding(net, lambda: net.logits(IMAGE))
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    layers = {name for name, module in net.named_modules() if isinstance(module, kinds)}
    assert layers - set(plan.layers) == {"embed.0", "head"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
