"""A net's inference graph as one ONNX file with free batch, height and width."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, ExportError, check_choice, explain
from cellvision.models.base import SegNet
from cellvision.types import IMAGE_DTYPES

INPUT_NAME = "image"
LOWEST_OPSET = 18
DYNAMIC_AXES = {0: "batch", 2: "height", 3: "width"}


def export_onnx(net: SegNet, path: Path, *, input_dtype: str = "float32", opset: int = 20) -> Path:
    """``path``, now holding the graph of ``net.forward``: one file, checked, without traces of this machine.

    The graph has the input "image" (B, C, H, W) of ``input_dtype``, raw counts, and the outputs ``net.spec.outputs``.
    The net itself is left on its device and in its mode.

    Args:
        net: any net; its normalisation, padding and decoding become part of the graph.
        path: file to write; it appears only when the graph has passed all checks.
        input_dtype: "uint8", "uint16" or "float32"; the graph casts it inside.
        opset: version of the ONNX operators, 18 up to what the installed onnx knows.

    Raises:
        ConfigError: unknown ``input_dtype`` or ``opset``.
        ExportError: the net cannot be traced, or the graph is not what was asked for.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from cellvision.models.build import build_model
        >>> classes = ("background", "cell")
        >>> net = build_model(name="unet", kind="semantic", in_channels=1, classes=classes, widths=(4, 8))
        >>> with TemporaryDirectory() as folder:
        ...     export_onnx(net, Path(folder) / "graph.onnx").name
        'graph.onnx'
    """
    check_choice("input_dtype", input_dtype, IMAGE_DTYPES)
    _check_opset(opset)
    path, part = Path(path), Path(f"{path}.part")
    try:
        model = _trace(to_inference(net), input_dtype, opset)
        _check(model, net, opset)
        part.write_bytes(model.SerializeToString(deterministic=True))
        part.replace(path)
    except ExportError:
        raise
    except Exception as error:  # the exporter raises many kinds; all mean that there is no graph
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ExportError(_unusable(net, f"could not be made into a graph ({why})")) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def to_inference(net: SegNet) -> SegNet:
    """A copy of the net on the CPU, in evaluation mode and without gradients; the net itself is not touched."""
    return copy.deepcopy(net).cpu().eval().requires_grad_(False)


class _Graph(nn.Module):
    """The net with its results in the declared order: a graph's outputs have positions, a dict's have not."""

    def __init__(self, net: SegNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        results = self.net.forward(image)
        return tuple(results[name] for name in self.net.spec.outputs)


def _trace(net: SegNet, input_dtype: str, opset: int) -> onnx.ModelProto:
    # A batch of 1, or an edge that shrinks to 1 px at the coarsest level, would be taken for a constant.
    height, width = max(45, 3 * net.spec.stride + 5), max(61, 4 * net.spec.stride + 7)
    image = torch.zeros(2, net.spec.in_channels, height, width, dtype=getattr(torch, input_dtype))
    graph = _Graph(net).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are no news for a user
        graph(image)  # a fault of the net itself stops here, with its own words instead of the exporter's
        program = torch.onnx.export(
            graph,
            (image,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(net.spec.outputs),
            dynamic_shapes=(DYNAMIC_AXES,),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    return model


def _strip(message: Any) -> None:
    """Remove the exporter's notes: they hold source paths of this machine and make equal graphs differ."""
    for descriptor, value in message.ListFields():
        if descriptor.name in ("metadata_props", "doc_string"):
            message.ClearField(descriptor.name)
        elif descriptor.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _check(model: onnx.ModelProto, net: SegNet, opset: int) -> None:
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != opset:
        raise ExportError(_unusable(net, f"came out with opset {versions.get('')} instead of {opset}"))
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    if inputs != [INPUT_NAME] or outputs != list(net.spec.outputs):
        raise ExportError(_unusable(net, f"came out as {inputs} -> {outputs}"))
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) != 4 or (
            fixed := [name for axis, name in DYNAMIC_AXES.items() if dims[axis].HasField("dim_value")]
        ):
            why = f"a fixed {', '.join(fixed)}" if len(dims) == 4 else f"{len(dims)} axes"
            raise ExportError(_unusable(net, f"came out with {why} in {value.name!r}"))


def _check_opset(opset: int) -> None:
    highest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= highest:
        raise ConfigError(
            explain(got=f"opset={opset}", need=f"{LOWEST_OPSET} to {highest}", hint=f"opset={min(20, highest)}")
        )


def _unusable(net: SegNet, why: str) -> str:
    return explain(
        got=f"net {net.spec.name!r} {why}",
        need=f"a graph from {INPUT_NAME!r} (B, C, H, W) to {', '.join(net.spec.outputs)} of any batch and size",
        hint="replace what the graph cannot express in the net's forward",
    )
