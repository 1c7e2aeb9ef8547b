"""A net's inference graph as one ONNX file with free batch, height and width."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch

from cellvision.bundle import Detecting
from cellvision.errors import CellvisionError, ConfigError, ExportError, check_choice, explain
from cellvision.models.base import GraphPart, SegNet
from cellvision.types import IMAGE_DTYPES

INPUT_NAME = "image"
LOWEST_OPSET = 18


def export_onnx(net: SegNet, path: Path, *, input_dtype: str = "float32", opset: int = 20) -> Path:
    """``path``, now holding the whole graph of ``net.forward``: one file, checked, without traces of this machine.

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
    (part,) = split_net(net, input_dtype=input_dtype)
    return export_part(part, Path(path), opset=opset)


def split_net(
    net: SegNet, *, input_dtype: str = "float32", detecting: Detecting | None = None, parted: bool = False
) -> tuple[GraphPart, ...]:
    """The parts of a copy of the net, to be exported one by one; see ``SegNet.part``.

    Raises:
        ConfigError: unknown ``input_dtype``.
        ExportError: the net cannot be parted so.
    """
    check_choice("input_dtype", input_dtype, IMAGE_DTYPES)
    # A batch of 1, or an edge that shrinks to 1 px at the coarsest level, would be taken for a constant.
    height, width = max(45, 3 * net.spec.stride + 5), max(61, 4 * net.spec.stride + 7)
    image = torch.zeros(2, net.spec.in_channels, height, width, dtype=getattr(torch, input_dtype))
    copied = to_inference(net)
    with _explain(f"net {net.spec.name!r}"), torch.no_grad():
        return copied.part(image, detecting=detecting, parted=parted)


def export_part(part: GraphPart, path: Path, *, opset: int = 20) -> Path:
    """``path``, now holding one part of a net; arguments and errors as for ``export_onnx``."""
    _check_opset(opset)
    draft = Path(f"{path}.part")
    try:
        with _explain(f"part {part.role!r} of the net"):
            model = _trace(part, opset)
            _check(model, part, opset)
            draft.write_bytes(model.SerializeToString(deterministic=True))
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


@contextmanager
def _explain(what: str) -> Iterator[None]:
    """The exporter raises many kinds of errors; all mean that there is no graph."""
    try:
        yield
    except CellvisionError:
        raise
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ExportError(_unusable(what, f"could not be made into a graph ({why})")) from error


def open_eager(net: SegNet, *, detecting: Detecting | None = None) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """What runs a batch (B, C, H, W) of counts through the net in PyTorch on the CPU, and gives its results by name.

    It does the work of the net's graph in one piece. An instance net itself draws masks for boxes that get none there,
    so that neither its times nor its cells could be compared with the graph's.

    Args:
        net: any; it is not touched.
        detecting: of the graph; None for the net's own.

    Raises:
        ExportError: the net has no graph.
    """
    (part,) = split_net(net, detecting=detecting)

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return dict(zip(part.outputs, part.module(images), strict=True))

    return run


def to_inference(net: SegNet) -> SegNet:
    """A copy of the net on the CPU, in evaluation mode and without gradients; the net itself is not touched."""
    return copy.deepcopy(net).cpu().eval().requires_grad_(False)


def _trace(part: GraphPart, opset: int) -> onnx.ModelProto:
    from cellvision.export.operators import TRANSLATIONS

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # guesses right where it says that it has to guess
    with warnings.catch_warnings(), torch.no_grad(), _keep_garbage():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are no news for a user
        part.module.eval()(*part.inputs.values())  # a fault of the net stops here, in its own words
        program = torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=_arrange(part),
            optimize=True,
            verbose=False,
            custom_translation_table=TRANSLATIONS,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    return model


@contextmanager
def _keep_garbage() -> Iterator[None]:
    """The exporter makes millions of objects; looking for garbage among them takes a seventh of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _arrange(part: GraphPart) -> Any:
    """The free axes as the exporter takes them: by position, those of a ``*inputs`` in a tuple of their own."""
    axes = tuple(dict(part.free_axes[name]) for name in part.inputs)
    kinds = [one.kind for one in inspect.signature(part.module.forward).parameters.values()]
    return (axes,) if inspect.Parameter.VAR_POSITIONAL in kinds else axes


def _strip(message: Any) -> None:
    """Remove the exporter's notes: they hold source paths of this machine and make equal graphs differ."""
    for descriptor, value in message.ListFields():
        if descriptor.name in ("metadata_props", "doc_string"):
            message.ClearField(descriptor.name)
        elif descriptor.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _check(model: onnx.ModelProto, part: GraphPart, opset: int) -> None:
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != opset:
        raise ExportError(
            _unusable(f"part {part.role!r} of the net", f"came out with opset {versions.get('')} instead of {opset}")
        )
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    if inputs != list(part.inputs) or outputs != list(part.outputs):
        raise ExportError(_unusable(f"part {part.role!r} of the net", f"came out as {inputs} -> {outputs}"))
    for value in (*model.graph.input, *model.graph.output):
        _check_axes(value, part)


def _check_axes(value: onnx.ValueInfoProto, part: GraphPart) -> None:
    """Raise ExportError where an axis that should be free has one length, or is not there."""
    dims = value.type.tensor_type.shape.dim
    free = part.free_axes[value.name]
    why = f"{len(dims)} axes" if len(dims) <= max(free, default=-1) else ""
    if not why and (fixed := [name for axis, name in free.items() if dims[axis].HasField("dim_value")]):
        why = f"a fixed {', '.join(fixed)}"
    if why:
        raise ExportError(_unusable(f"part {part.role!r} of the net", f"came out with {why} in {value.name!r}"))


def _check_opset(opset: int) -> None:
    highest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= highest:
        raise ConfigError(
            explain(got=f"opset={opset}", need=f"{LOWEST_OPSET} to {highest}", hint=f"opset={min(20, highest)}")
        )


def _unusable(what: str, why: str) -> str:
    return explain(
        got=f"{what} {why}",
        need="a graph of any batch and size, as its inputs and outputs are declared",
        hint="replace what the graph cannot express in the net's forward",
    )
