"""A net with weights and feature maps of 16 bits, for typed export: the file says float16, no builder has to guess."""

from __future__ import annotations

import copy

import torch

from cellvision.errors import ExportError, explain, read_first_line
from cellvision.export.onnx import to_inference
from cellvision.models.base import SegNet
from cellvision.models.preprocess import Normalize


def to_half(net: SegNet) -> SegNet:
    """A copy of the net in float16 on the CPU, in evaluation mode; the net itself is not touched.

    Normalisation stays in float32, as raw counts of 16 bits do not fit float16; so does decoding, and results are
    float32. Export it as any net. Converting a finished graph instead breaks where detections are decoded.

    The net must cast its normalised images to the type of its weights, and what it decodes to float32.

    Raises:
        ExportError: weights beyond the range of float16, or a net that does not cast.

    Example:
        >>> from cellvision.models.build import build_model
        >>> net = build_model(name="unet", kind="semantic", in_channels=1, classes=("background", "cell"))
        >>> half = to_half(net)
        >>> half.head.weight.dtype, half(torch.zeros(1, 1, 16, 16))["probabilities"].dtype
        (torch.float16, torch.float32)
    """
    half = to_inference(net)
    exact = [(module, copy.deepcopy(module.state_dict())) for module in half.modules() if isinstance(module, Normalize)]
    half.half()
    for module, state in exact:  # half() has rounded its buffers
        module.float().load_state_dict(state)
    broken = [name for name, value in half.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ExportError(
            explain(
                got=f"{broken[0]} holds values beyond 65504, the range of float16",
                need="weights within it",
                hint="export in fp32 or int8",
            )
        )
    _check(half)
    return half


def _check(half: SegNet) -> None:
    side = 2 * half.spec.stride
    try:
        with torch.inference_mode():
            results = half.forward(torch.zeros(1, half.spec.in_channels, side, side))
    except RuntimeError as error:
        raise ExportError(_uncast(half, read_first_line(error))) from error
    for name, values in results.items():
        if values.dtype == torch.float16:
            raise ExportError(_uncast(half, f"{name} comes out as float16"))


def _uncast(half: SegNet, why: str) -> str:
    return explain(
        got=f"net {half.spec.name!r} does not run in float16 ({why})",
        need="normalised images cast to the weights' type, and float32 where results are decoded",
        hint="x.to(weight.dtype) before the first layer and .float() behind the last, or export in fp32",
    )
