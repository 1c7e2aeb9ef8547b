"""A net of known arithmetic, as an ONNX bundle made without torch, and images whose cells it finds exactly.

Channel "nuclei" holds domes of 4000 counts on 0; channel "PI" is bright over dead cells. The graph is:
foreground = sigmoid((nuclei - 1000) / 50), dead share = sigmoid((PI - 500) / 50), distance = 3x3 mean of nuclei / 4000.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cellvision.bundle import Channel, Graph, Manifest, Splitting, compute_sha256, write_manifest

CHANNELS = (Channel(name="nuclei", role="nuclear"), Channel(name="PI", role="dead"))
_ELEMENTS = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "float32": TensorProto.FLOAT}


def build_graph(
    *,
    input_dtype: str = "uint16",
    distance: bool = True,
    input_shape=("b", 2, "h", "w"),
    name="image",
    scale: float = 1.0,
) -> onnx.ModelProto:
    """The graph above; ``scale`` multiplies the counts first; ``distance=False`` leaves that output out."""
    constants = {
        "unit": np.float32(scale),
        "level": np.array([1000, 500], np.float32).reshape(1, 2, 1, 1),
        "width": np.float32(50),
        "one": np.float32(1),
        "first": np.int64([0]),
        "second": np.int64([1]),
        "third": np.int64([2]),
        "axis": np.int64([1]),
        "mean": np.full((1, 1, 3, 3), 1 / 9 / 4000, np.float32),
        "zero": np.float32(0),
    }
    nodes = [
        helper.make_node("Cast", [name], ["plain"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["plain", "unit"], ["counts"]),
        helper.make_node("Sub", ["counts", "level"], ["above"]),
        helper.make_node("Div", ["above", "width"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["shares"]),
        helper.make_node("Slice", ["shares", "first", "second", "axis"], ["cell"]),
        helper.make_node("Slice", ["shares", "second", "third", "axis"], ["dead_share"]),
        helper.make_node("Sub", ["one", "cell"], ["background"]),
        helper.make_node("Mul", ["cell", "dead_share"], ["dead"]),
        helper.make_node("Sub", ["cell", "dead"], ["live"]),
        helper.make_node("Concat", ["background", "live", "dead"], ["probabilities"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["b", 3, "h", "w"])]
    if distance:
        nodes += [
            helper.make_node("Slice", ["counts", "first", "second", "axis"], ["nuclei"]),
            helper.make_node("Conv", ["nuclei", "mean"], ["smooth"], pads=[1, 1, 1, 1]),
            helper.make_node("Clip", ["smooth", "zero", "one"], ["distance"]),
        ]
        outputs.append(helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["b", 1, "h", "w"]))
    inputs = [helper.make_tensor_value_info(name, _ELEMENTS[input_dtype], list(input_shape))]
    initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, "stain_net", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write_bundle(folder: Path, model: onnx.ModelProto | None = None, **facts) -> Path:
    """A bundle folder with the graph; ``facts`` replace manifest entries."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = folder / "model.onnx"
    graph.write_bytes((model or build_graph()).SerializeToString())
    entries = {
        "model": "stain_net",
        "kind": "viability",
        "graphs": (Graph(role="whole", file=graph.name, sha256=compute_sha256(graph)),),
        "input_dtype": "uint16",
        "image_dtypes": ("uint16",),
        "channels": CHANNELS,
        "pixel_size_um": 0.5,
        "classes": ("background", "live", "dead"),
        "outputs": ("probabilities", "distance"),
        "stride": 8,
        "splitting": Splitting(seed_threshold=0.6),
        "tile_px": 64,
        "overlap_px": 32,
    }
    write_manifest(Manifest(**(entries | facts)), folder)
    return folder


def draw_cells(shape: tuple[int, int], centres, radii, dead=()) -> np.ndarray:
    """(2, H, W) uint16 with a dome at each (y, x); cells whose index is in ``dead`` have PI."""
    image = np.zeros((2, *shape), np.uint16)
    radii = np.broadcast_to(radii, len(centres))
    for index, ((cy, cx), radius) in enumerate(zip(centres, radii, strict=True)):
        reach = int(np.ceil(radius)) + 1
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        bottom, right = min(shape[0], int(cy) + reach + 1), min(shape[1], int(cx) + reach + 1)
        y, x = np.mgrid[top:bottom, left:right]
        dome = np.clip(1 - ((y - cy) ** 2 + (x - cx) ** 2) / radius**2 * 0.75, 0.0, 1.0) * 4000
        window = image[0, top:bottom, left:right]
        inside = (dome >= 1000) & (dome > window)
        window[inside] = dome[inside]
        image[1, top:bottom, left:right][inside] = 1000 if index in dead else 0
    return image
