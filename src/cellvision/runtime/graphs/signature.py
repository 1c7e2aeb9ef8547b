"""Whether a bundle's graphs have the inputs and outputs that its manifest says they have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cellvision.bundle import Manifest
from cellvision.errors import BundleError, explain
from cellvision.runtime.graphs.onnx_graph import AnyPort, GraphRunner, Port

ANY = "any"
"""In an expected shape: a size that may be fixed or free."""

_MAP = re.compile(r"map_\d+")


def check_map_graph(graph: GraphRunner, manifest: Manifest) -> None:
    """Raise BundleError unless a graph of maps and its manifest describe the same inputs and outputs."""
    planes = {"probabilities": len(manifest.classes), "distance": 1}
    if odd := [name for name in manifest.outputs if name not in planes]:
        raise BundleError(_mismatch(graph, f"outputs {', '.join(odd)}", f"outputs among {', '.join(planes)}"))
    _check(graph, "inputs", [_expect_image(manifest)])
    _check(graph, "outputs", [_expect(name, "float", "B", planes[name], "H", "W") for name in manifest.outputs])


def check_detection_graph(graph: GraphRunner, manifest: Manifest) -> None:
    """Raise BundleError unless a whole graph of detections and its manifest describe the same inputs and outputs."""
    assert manifest.detecting is not None
    cells, side = manifest.detecting.max_cells, manifest.detecting.mask_side
    shapes: dict[str, Port] = {
        "boxes": _expect("boxes", "float", "B", cells, 4),
        "scores": _expect("scores", "float", "B", cells),
        "classes": _expect("classes", "int64", "B", cells),
        "valid": _expect("valid", "bool", "B", cells),
        "class_scores": _expect("class_scores", "float", "B", cells, len(manifest.classes) - 1),
        "masks": _expect("masks", "float", "B", cells, side, side),
        "mask_scores": _expect("mask_scores", "float", "B", cells),
    }
    _check(graph, "inputs", [_expect_image(manifest)])
    _check(graph, "outputs", [shapes[name] for name in manifest.outputs])


def check_parted_graphs(trunk: GraphRunner, masks: GraphRunner, manifest: Manifest) -> tuple[str, ...]:
    """Names of the pyramid maps that go from trunk to masks.

    Raises:
        BundleError: the graphs do not suit the manifest or each other.
    """
    assert manifest.detecting is not None
    side = manifest.detecting.mask_side
    count = max(1, sum(_MAP.fullmatch(port.name) is not None for port in trunk.outputs))
    maps = [_expect(f"map_{level}", "float", "B", ANY, ANY, ANY) for level in range(count)]
    _check(trunk, "inputs", [_expect_image(manifest)])
    found = [
        _expect("boxes", "float", "B", ANY, 4),
        _expect("scores", "float", "B", ANY),
        _expect("classes", "int64", "B", ANY),
        _expect("class_scores", "float", "B", ANY, len(manifest.classes) - 1),
    ]
    _check(trunk, "outputs", [*found, *maps])
    regions = [
        _expect("boxes", "float", "R", 4),
        _expect("images", "int64", "R"),
        _expect("classes", "int64", "R"),
        _expect("image_area", "float", 1),
    ]
    _check(masks, "inputs", [*maps, *regions])
    rated = [_expect("mask_ious", "float", "R")] if "mask_scores" in manifest.outputs else []
    _check(masks, "outputs", [_expect("masks", "float", "R", side, side), *rated])
    return tuple(port.name for port in maps)


def _expect_image(manifest: Manifest) -> Port:
    element = {"float32": "float"}.get(manifest.input_dtype, manifest.input_dtype)
    return _expect("image", element, "B", len(manifest.channels), "H", "W")


def _expect(name: str, element: str, *shape: int | str) -> Port:
    return Port(name=name, element=element, shape=shape)


def _check(graph: GraphRunner, what: str, expected: Sequence[Port]) -> None:
    """Raise BundleError, expected beside found, unless they are the same; their order does not matter."""
    shapes = {port.name: port.shape for port in expected}
    found = [_describe(port, shapes.get(port.name, ())) for port in getattr(graph, what)]
    wanted = [_describe(port, port.shape) for port in expected]
    if sorted(found) != sorted(wanted):
        raise BundleError(_mismatch(graph, f"{what} {', '.join(found)}", f"{what} {', '.join(wanted)}"))


def _describe(port: AnyPort, expected: tuple[Any, ...]) -> str:
    # Names of free dimensions are the exporter's taste; only fixed numbers and the rank are compared.
    letters = [*expected, *"BCHW"[len(expected) :], *port.shape[4:]]
    shape = [
        size if isinstance(size, int) and letter != ANY else letter
        for size, letter in zip(port.shape, letters, strict=False)
    ]
    return f"{port.name}: tensor({port.element}) [{', '.join(map(str, shape))}]"


def _mismatch(graph: GraphRunner, found: str, expected: str) -> str:
    return explain(got=f"{graph.path} has {found}", need=expected, hint="export the bundle again")
