"""Everything that a runner needs to know of a net, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cellvision.bundle.checks import PIXEL_SIZES, are_names, check, check_whole, is_between, is_name, is_pixel_size

KINDS = ("semantic", "viability", "instance")
DTYPES = ("uint8", "uint16", "float32")
SPLITTING_METHODS = ("distance", "components", "instances")
GRAPH_ROLES = (("whole",), ("trunk", "masks"))
ENGINES = ("onnx", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "fp16", "int8")
FIELD_COLUMNS = ("image", "cells", "viability_percent", "low_percent", "high_percent")
"""Of ``fields.csv``, beside a column for each class."""
DETECTION_OUTPUTS = ("boxes", "scores", "classes", "valid", "class_scores", "masks")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One image channel: its name, and its role where the library needs one ("nuclear", "live", "dead", or "")."""

    name: str
    role: str = ""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One file of a bundle that runs.

    Attributes:
        role: "whole" goes from the image to all outputs. An instance net can be parted: "trunk" goes from the image to
            candidate boxes and pyramid maps, "masks" from boxes and pyramid maps to masks; what lies between,
            suppression of doubles, is the runtime's.
        file: name inside the bundle folder, never a path.
        sha256: of that file, 64 lowercase hex digits; checked when the bundle is opened.
        engine: one of ENGINES, what the file is for.
        precision: one of PRECISIONS, in which most of it computes.
    """

    role: str
    file: str
    sha256: str
    engine: str = "onnx"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        roles = [role for form in GRAPH_ROLES for role in form]
        check(self.role in roles, "graphs.role", self.role, f"one of {', '.join(roles)}", "whole")
        check(is_name(self.file), "graphs.file", self.file, "a name", "graph.onnx")
        is_digest = is_name(self.sha256) and len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        hint = "what sha256sum prints for the file"
        check(is_digest, "graphs.sha256", self.sha256, "64 lowercase hex digits", hint)
        for name, known in (("engine", ENGINES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            check(value in known, f"graphs.{name}", value, f"one of {', '.join(known)}", known[0])


@dataclass(frozen=True, kw_only=True)
class Detecting:
    """How an instance net's candidates become detections; done inside a whole graph, by the runtime for a parted one.

    Attributes:
        nms_iou: of two boxes of one class whose intersection over union is above it, the worse is dropped; in (0, 1).
        min_score: boxes with a lower score get no mask, and are no detections; in 0..1. A cell's final score is hardly
            ever above that of its box, so cells that count from 0.5 up lose nothing where this is 0.45.
        max_cells: so many of an image's best are kept, and have their place in the outputs; 1..LARGEST_SIZE.
        mask_side: px of a mask, which is stretched over its box; 1..LARGEST_SIZE.
    """

    nms_iou: float = 0.6
    min_score: float = 0.0
    max_cells: int = 1000
    mask_side: int = 28

    def __post_init__(self) -> None:
        check(is_between(self.nms_iou, 0, 1), "detecting.nms_iou", self.nms_iou, "a number between 0 and 1", 0.6)
        is_right = self.min_score == 0 or is_between(self.min_score, 0, 1)
        check(is_right, "detecting.min_score", self.min_score, "a number from 0 up and below 1", 0.0)
        for name, usual in (("max_cells", 1000), ("mask_side", 28)):
            check_whole(f"detecting.{name}", getattr(self, name), least=1, usual=usual)


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """How a net's outputs become separate cells.

    Attributes:
        method: "distance" floods from the distance map's peaks; "components" takes connected foreground; "instances"
            takes the cells that the net itself found.
        foreground_threshold: a pixel is foreground where 1 - P(background) reaches it, or the cell's mask; in (0, 1).
        seed_threshold: a cell's core is where the distance map reaches it, in (0, 1).
        score_threshold, min_visible: "instances": a cell with a lower score is dropped, and one of which better cells
            leave a smaller share; in (0, 1).
        min_area_px: smaller cells are dropped; 1..LARGEST_SIZE.
        min_seed_px: smaller cores start no cell of their own; 1..LARGEST_SIZE.
    """

    method: str = "distance"
    foreground_threshold: float = 0.5
    seed_threshold: float = 0.5
    score_threshold: float = 0.5
    min_visible: float = 0.5
    min_area_px: int = 20
    min_seed_px: int = 3

    def __post_init__(self) -> None:
        methods = ", ".join(SPLITTING_METHODS)
        check(self.method in SPLITTING_METHODS, "splitting.method", self.method, f"one of {methods}", "distance")
        for name in ("foreground_threshold", "seed_threshold", "score_threshold", "min_visible"):
            value = getattr(self, name)
            check(is_between(value, 0, 1), f"splitting.{name}", value, "a number between 0 and 1", 0.5)
        for name in ("min_area_px", "min_seed_px"):
            check_whole(f"splitting.{name}", getattr(self, name), least=1, usual=1)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runner needs to know; nobody repeats any of it on a command line.

    Attributes:
        model: registry name of the net, e.g. "unet".
        kind: one of KINDS.
        graphs: one "whole", or a "trunk" and "masks"; see Graph.
        input_dtype: dtype of the graph's input "image" (B, C, H, W).
        image_dtypes: dtypes of images whose counts mean what the training counts meant.
        channels: in the graph's order.
        pixel_size_um: of the training images, in 0.0001..1000000, or None where unknown.
        classes: background first, and none of FIELD_COLUMNS.
        outputs: names of a whole graph's outputs in order. Kinds semantic and viability: "probabilities" (B, K, H, W)
            and, for viability, "distance" (B, 1, H, W); both float32 in 0..1 and of the input's height and width. Kind
            instance: DETECTION_OUTPUTS, with D = detecting.max_cells places per image of which only the "valid" ones
            mean anything, and "mask_scores" where the net rates its masks; shapes as in cellvision.models.base.SegNet.
        stride: tile origins are multiples of it, so that tiled and untiled results agree; 1..LARGEST_SIZE.
        splitting: see Splitting.
        detecting: see Detecting; None for other kinds than instance.
        live_threshold: a cell is live where P(live) reaches it, in (0, 1).
        tile_px, overlap_px: edge of a tile's core, and the margin read around it; multiples of the stride.
        nucleus_margin_px: px from a nucleus to the annotated outline, told to the Otsu baseline when the bundle is
            evaluated; >= 0.
        recipe: compression records, oldest first; empty where uncompressed.
        parity: measured differences from PyTorch.
        accuracy: measured scores, with the data they were measured on.
        latency: measured times, with the machine they were measured on.
        gate: what was measured against PyTorch before this form was chosen over others.
        provenance: checkpoint hash, data fingerprint, git state, settings.
        versions: of the packages that made the bundle.
    """

    model: str
    kind: str
    graphs: tuple[Graph, ...]
    input_dtype: str
    image_dtypes: tuple[str, ...]
    channels: tuple[Channel, ...]
    pixel_size_um: float | None
    classes: tuple[str, ...]
    outputs: tuple[str, ...]
    stride: int
    splitting: Splitting
    detecting: Detecting | None = None
    live_threshold: float = 0.5
    tile_px: int = 512
    overlap_px: int = 96
    nucleus_margin_px: int = 0
    recipe: tuple[dict[str, Any], ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_graphs(self)
        check_shared(self)
        _check_meaning(self)
        _check_detecting(self)
        _check_tiles(self)
        _check_records(self)

    def find_graph(self, role: str) -> Graph:
        """The graph of a role that the bundle has."""
        return next(graph for graph in self.graphs if graph.role == role)

    @property
    def is_parted(self) -> bool:
        """Whether boxes and masks come from two graphs."""
        return len(self.graphs) > 1


def _check_graphs(found: Manifest) -> None:
    check(found.kind in KINDS, "kind", found.kind, f"one of {', '.join(KINDS)}", "semantic")
    check(is_name(found.model), "model", found.model, "a name", "unet")
    is_right = isinstance(found.graphs, tuple) and all(isinstance(graph, Graph) for graph in found.graphs)
    roles = tuple(graph.role for graph in found.graphs) if is_right else found.graphs
    forms = GRAPH_ROLES if found.kind == "instance" else GRAPH_ROLES[:1]
    need = " or ".join(" and ".join(form) for form in forms)
    check(roles in forms, "graphs", roles, f"roles {need}", '[{"role": "whole", "file": "graph.onnx", ..}]')
    files = tuple(graph.file for graph in found.graphs)
    check(are_names(files, least=1), "graphs.file", files, "different names", "trunk.onnx, masks.onnx")
    known = ", ".join(DTYPES)
    check(found.input_dtype in DTYPES, "input_dtype", found.input_dtype, f"one of {known}", "float32")


def check_shared(found: Any) -> None:
    """Raise BundleError unless all that a manifest shares with the record of a checkpoint is of its kind and in range.

    Args:
        found: has image_dtypes, channels, pixel_size_um, splitting, live_threshold, nucleus_margin_px and recipe, as
            Manifest has them.
    """
    dtypes = found.image_dtypes
    is_known = are_names(dtypes, least=1) and set(dtypes) <= set(DTYPES)
    check(is_known, "image_dtypes", dtypes, f"different ones of {', '.join(DTYPES)}", "uint8, uint16")
    _check_channels(found.channels)
    is_right = isinstance(found.splitting, Splitting)
    check(is_right, "splitting", found.splitting, "method, thresholds and sizes", '{"method": "components"}')
    is_right = is_between(found.live_threshold, 0, 1)
    check(is_right, "live_threshold", found.live_threshold, "a number between 0 and 1", 0.5)
    is_right = found.pixel_size_um is None or is_pixel_size(found.pixel_size_um)
    check(is_right, "pixel_size_um", found.pixel_size_um, f"{PIXEL_SIZES}, or null where unknown", 0.5)
    check_whole("nucleus_margin_px", found.nucleus_margin_px, least=0, usual=0)
    is_right = isinstance(found.recipe, tuple) and all(isinstance(step, dict) for step in found.recipe)
    check(is_right, "recipe", found.recipe, "a list of records", "[]")


def _check_channels(channels: Any) -> None:
    is_right = isinstance(channels, tuple) and all(isinstance(c, Channel) for c in channels)
    check(is_right, "channels", channels, "a list of channels", '[{"name": "DAPI", "role": "nuclear"}]')
    names = tuple(channel.name for channel in channels)
    check(are_names(names, least=1), "channels.name", names, "at least one name, all different", "DAPI, PI")
    roles = tuple(channel.role for channel in channels)
    check(all(isinstance(role, str) for role in roles), "channels.role", roles, 'nuclear, live, dead or ""', "nuclear")


def _check_meaning(found: Manifest) -> None:
    """Classes and outputs: what the graph's numbers mean."""
    names, outputs = found.classes, found.outputs
    is_right = are_names(names, least=2)
    check(is_right, "classes", names, "at least two different names, background first", "background, cell")
    is_right = not set(names[1:]) & set(FIELD_COLUMNS)
    need = f"other names than the columns {', '.join(FIELD_COLUMNS)} of fields.csv"
    check(is_right, "classes", names, need, "background, cell")
    is_right = found.kind != "viability" or {"live", "dead"} <= set(names[1:])
    check(is_right, "classes", names, "live and dead after the background, for viability", "background, live, dead")
    _check_outputs(found.kind, outputs, found.splitting.method)


def _check_outputs(kind: str, outputs: Any, method: str) -> None:
    if kind == "instance":
        is_right = outputs in (DETECTION_OUTPUTS, (*DETECTION_OUTPUTS, "mask_scores"))
        need = f"{', '.join(DETECTION_OUTPUTS)}, and mask_scores where the net rates its masks"
        check(is_right, "outputs", outputs, need, ", ".join(DETECTION_OUTPUTS))
    else:
        is_right = are_names(outputs, least=1) and outputs[0] == "probabilities"
        check(is_right, "outputs", outputs, "different names, probabilities first", "probabilities, distance")
        is_right = method != "distance" or "distance" in outputs
        check(is_right, "outputs", outputs, "distance too for splitting.method=distance", "probabilities, distance")
    is_right = (kind == "instance") == (method == "instances")
    need = "instances for kind=instance, and only there"
    check(is_right, "splitting.method", method, need, "instances" if kind == "instance" else "components")


def _check_detecting(found: Manifest) -> None:
    is_right = isinstance(found.detecting, Detecting) if found.kind == "instance" else found.detecting is None
    need = "nms_iou, max_cells and mask_side" if found.kind == "instance" else "null for a net without detections"
    check(is_right, "detecting", found.detecting, need, "{..}" if found.kind == "instance" else "null")


def _check_tiles(found: Manifest) -> None:
    for key, usual in (("stride", 16), ("tile_px", 512), ("overlap_px", 96)):
        check_whole(key, getattr(found, key), least=int(key in ("stride", "tile_px")), usual=usual)
    for key in ("tile_px", "overlap_px"):
        value, stride = getattr(found, key), found.stride
        check(value % stride == 0, key, value, f"a multiple of stride={stride}", -(-value // stride) * stride)


def _check_records(found: Manifest) -> None:
    for key in ("parity", "accuracy", "latency", "gate", "provenance", "versions"):
        check(isinstance(getattr(found, key), dict), key, getattr(found, key), "names with values", "{}")
    tiling = found.provenance.get("tiling", {})
    check(isinstance(tiling, dict), "provenance.tiling", tiling, "names with values", "{}")
