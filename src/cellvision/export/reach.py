"""How far a net looks: the margin that makes a tile's result equal to the whole image's."""

from __future__ import annotations

import torch

from cellvision.errors import ExportError, explain
from cellvision.export.onnx import to_inference
from cellvision.models.base import SegNet

SMALLEST_PX = 64
LARGEST_PX = 512


def compute_reach(net: SegNet, *, largest_px: int = LARGEST_PX) -> int | None:
    """Pixels around a point that can influence its result, rounded up to the stride; None beyond ``largest_px``.

    Exact for any weights, without knowledge of the layers: NaN is put into one stride's worth of pixels in the
    middle of an image and spreads through every operation, so the results that are NaN are those that can see it.

    Raises:
        ExportError: the net hides NaN, so its reach cannot be seen.

    Example:
        >>> from cellvision.models.build import build_model
        >>> classes = ("background", "cell")
        >>> net = build_model(name="unet", kind="semantic", in_channels=1, classes=classes, widths=(4, 8))
        >>> compute_reach(net)
        8
    """
    probe = to_inference(net)
    reach_px = SMALLEST_PX
    while reach_px <= largest_px:
        found_px = _spread(probe, _round_up(reach_px, net.spec.stride))
        if found_px is not None:
            return _round_up(found_px, net.spec.stride)
        reach_px *= 2
    return None


def _spread(net: SegNet, margin_px: int) -> int | None:
    """Distance from the NaN pixels to the farthest NaN result, in both axes; None where it meets the image's edge."""
    stride = net.spec.stride
    length_px, across_px = 2 * margin_px + stride, 2 * stride  # a strip shows the reach as a square does, sooner
    probed = slice(margin_px, margin_px + stride)
    distances_px = []
    for axis in (2, 3):
        strip = torch.zeros(1, net.spec.in_channels, length_px, across_px)
        strip[:, :, probed] = torch.nan
        with torch.inference_mode():
            results = net.forward(strip if axis == 2 else strip.transpose(2, 3).contiguous())
        seen = torch.stack([result.isnan().sum(dim=(0, 1, 5 - axis)) for result in results.values()]).sum(0) > 0
        if not seen[probed].all():
            raise ExportError(_hidden(net))
        if seen[0] or seen[-1]:
            return None
        places = seen.nonzero()
        distances_px += [margin_px - int(places.min()), int(places.max()) - (margin_px + stride - 1)]
    return max(distances_px)


def _hidden(net: SegNet) -> str:
    return explain(
        got=f"net {net.spec.name!r} answers NaN pixels with numbers, so its reach cannot be measured",
        need="a forward that lets NaN through",
        hint="remove nan_to_num and comparisons that drop NaN from the net",
    )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
