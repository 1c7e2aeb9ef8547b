"""Every kind of registered net: what of it rounds, and that it learns with that."""

import pytest
import torch
from torch import nn

from cellvision.compression.prune.runs import run_layers
from cellvision.compression.qat.plan import plan_rounding
from cellvision.models.build import MODELS, build_model
from cellvision.models.structure.fake_quant import find_fake_quants, remove_fake_quant, set_fake_quant, set_phase
from cellvision.models.unet.attention import ATTENTIONS
from cellvision.types import Targets

CLASSES = ("background", "cell")
UNET = {"name": "unet", "kind": "semantic", "widths": (8, 16, 16)}
SWIN = {"name": "swin_unet", "kind": "semantic", "widths": (8, 16), "depths": (1, 2), "heads": (1, 2)}
DETECTOR = {
    "name": "centermask2", "fpn_channels": 16, "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1,
}  # fmt: skip
HEADS = {"cls_logits", "bbox_pred", "ctrness", "predictor", "maskiou"}
"""Last layers of a detector."""

NETS = {
    **{f"unet {attention}": UNET | {"attention": attention} for attention in ATTENTIONS},
    **{f"unet {encoder}": UNET | {"encoder": encoder} for encoder in ("mobilenetv3_small_050", "regnetx_002")},
    "swin_unet": SWIN,
    **{
        f"centermask2 {backbone}": DETECTOR | {"backbone": backbone}
        for backbone in ("vovnet19_slim_dw", "vovnet19_slim", "resnet50", "mobilenetv2", "regnetx_002")
    },
    "centermask2 group": DETECTOR | {"backbone": "resnet18", "norm": "group"},
    "centermask2 avg": DETECTOR | {"backbone": "resnet18", "fuse": "avg"},
}  # fmt: skip
FLOAT = {"unet self": {"to_query", "to_key_value"}}
"""Last parts of the names of layers that stay float besides the first and the last ones."""


def build(name):
    torch.manual_seed(0)
    net = build_model(in_channels=1, classes=CLASSES, **NETS[name]).eval()
    images = torch.rand(2, 1, 64, 64) * 255
    return net, images, plan_rounding(net, lambda: run_layers(net, images[:1], regions=3))


def list_layers(net):
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return [name for name, module in net.named_modules() if isinstance(module, kinds)]


def test_every_net_of_this_library_is_looked_at():
    assert {config["name"] for config in NETS.values()} == set(MODELS.names()) - {"detectron2"}


@pytest.mark.parametrize("name", NETS)
def test_all_layers_round_but_the_first_and_the_last_ones_and_take_what_is_rounded(name):
    """Seen from outside: at most 256 values come in, on one grid."""
    net, images, plan = build(name)
    kept = [layer for layer in list_layers(net) if layer not in plan.layers]
    ends = HEADS if "centermask2" in name else {"head"}
    assert {layer.split(".")[-1] for layer in kept} >= ends
    first = [layer for layer in kept if layer.split(".")[-1] not in ends | FLOAT.get(name, set())]
    assert all(net.get_submodule(layer).in_channels == 1 for layer in first)

    set_fake_quant(net, plan)
    for quant in find_fake_quants(net):
        quant.train()
    set_phase(net, observing=True, rounding=False)
    taken = {}
    with torch.no_grad():
        run_layers(net, images[:1], regions=3)
        set_phase(net, observing=False, rounding=True)
        for layer in plan.layers:
            net.get_submodule(layer).register_forward_pre_hook(
                lambda module, given, layer=layer: taken.setdefault(layer, given[0].unique().numel()) and None
            )
        run_layers(net, images[:1], regions=3)
    assert set(taken) == set(plan.layers)
    assert max(taken.values()) <= 256


@pytest.mark.parametrize("name", ["unet cbam", "centermask2 vovnet19_slim_dw"])
def test_a_net_that_rounds_learns_and_can_stop_to_round(name):
    net, images, plan = build(name)
    with torch.no_grad():
        before = run_layers(net, images[:1], regions=3)
    set_fake_quant(net, plan)
    labels = torch.zeros(2, 64, 64, dtype=torch.int32)
    labels[:, 10:30, 10:30], labels[:, 40:60, 30:50] = 1, 2
    targets = Targets(
        class_map=(labels > 0).long(),
        distance=torch.zeros(2, 64, 64),
        label_image=labels,
        cell_classes=(torch.ones(2, dtype=torch.int64),) * 2,
    )
    losses = net.train().losses(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    for layer in plan.layers:
        gradient = net.get_submodule(layer).weight.grad
        assert gradient is not None
        assert gradient.isfinite().all()
    seen = [bool(quant.bound > 0) for quant in find_fake_quants(net)]
    assert sum(seen) >= 0.9 * len(seen)  # of few channels all may be 0 in a net that was never trained
    net.load_state_dict(build(name)[0].state_dict(), strict=False)
    remove_fake_quant(net)
    with torch.no_grad():
        after = run_layers(net.eval(), images[:1], regions=3)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_nothing_rounds_twice_with_two_grids_behind_an_empty_module():
    """The towers of a detector share an empty part, which must not hide that its input is rounded."""
    _, _, plan = build("centermask2 vovnet19_slim")
    assert list(plan.inputs) == ["detector.roi_heads.mask_head.mask_fcn1"]
