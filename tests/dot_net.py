"""An instance net of known arithmetic, as an ONNX bundle made without torch: whole, or parted in two graphs.

Each pixel above 0 in the channel "dots" is a cell with its middle there. Its score is that count / 60000, its box
reaches as many px to all sides as the channel "radius" says (in halves of px), it is dead where the channel "dead" is
above 0, and its mask is a disc that fills the box. Nothing outside the window is seen, and with ``clip`` a box ends at
the window's sides, as those of a real net do.

The parted form says the same through more steps: its trunk gives every cell twice, the second time 1 px to the right
and with 0.9 of the score, so that suppression has something to do; and its second graph reads from the pyramid maps,
at the middle of each box, how strong the mask is, so that a wrong map, box or position in the batch shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cellvision.bundle import Channel, Detecting, Graph, Manifest, Splitting, compute_sha256, write_manifest

CHANNELS = (Channel(name="dots", role="nuclear"), Channel(name="radius"), Channel(name="dead", role="dead"))
OUTPUTS = ("boxes", "scores", "classes", "valid", "class_scores", "masks", "mask_scores")
FULL_SCORE = 60000
MASK_SIDE = 28
DETECTING = Detecting(nms_iou=0.6, max_cells=64, mask_side=MASK_SIDE)
_FLOAT, _INT, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def draw_disc(side: int = MASK_SIDE) -> np.ndarray:
    """(side, side) float32, 1 in a disc that fills the square."""
    at = np.arange(side) + 0.5 - side / 2
    return (at[:, None] ** 2 + at**2 <= (side / 2) ** 2).astype(np.float32)


class _Nodes:
    """Collects nodes, each named by its output; plain numbers and arrays become constants."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], {}

    def __call__(self, op: str, *inputs, to=None, **attributes) -> str:
        names = [name if isinstance(name, str) else self.constant(name) for name in inputs]
        output = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def constant(self, value) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def to_model(self, inputs, outputs) -> onnx.ModelProto:
        ports = [[helper.make_tensor_value_info(*port) for port in side] for side in (inputs, outputs)]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "dot_net", *ports, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def _find_dots(add: _Nodes, count: int, *, clip: bool) -> dict[str, str]:
    """The best ``count`` dots: left, top, right, bottom, score (B, D, 1), dead (B, D) bool, valid (B, D) bool."""
    counts = _cast(add, "image", _FLOAT)
    size = add("Shape", counts)
    width = add("Slice", size, np.int64([3]), np.int64([4]))
    height = add("Slice", size, np.int64([2]), np.int64([3]))
    flat = add("Reshape", counts, np.int64([0, 0, -1]))
    padded = add("Pad", flat, np.int64([0, 0, 0, 0, 0, count]))  # a small image has fewer pixels than places
    planes = [add("Squeeze", add("Slice", padded, np.int64([i]), np.int64([i + 1]), np.int64([1])), np.int64([1]))
              for i in range(3)]  # fmt: skip
    add.nodes.append(helper.make_node("TopK", [planes[0], add.constant(np.int64([count]))], ["value", "place"], axis=1))
    radius = add("Div", add("GatherElements", planes[1], "place", axis=1), np.float32(2))
    dead = add("Greater", add("GatherElements", planes[2], "place", axis=1), np.float32(0))
    x = add("Add", _cast(add, add("Mod", "place", width), _FLOAT), np.float32(0.5))
    y = add("Add", _cast(add, add("Div", "place", width), _FLOAT), np.float32(0.5))
    sides = [add("Sub", x, radius), add("Sub", y, radius), add("Add", x, radius), add("Add", y, radius)]
    if clip:
        limits = [_cast(add, add("Squeeze", length), _FLOAT) for length in (width, height)]
        sides = [add("Clip", side, np.float32(0), limits[i % 2]) for i, side in enumerate(sides)]
    boxes = add("Concat", *(add("Unsqueeze", side, np.int64([2])) for side in sides), axis=2)
    score = add("Div", "value", np.float32(FULL_SCORE))
    return {"boxes": boxes, "score": score, "dead": dead, "valid": add("Greater", "value", np.float32(0))}


def _cast(add: _Nodes, name: str, element: int, output: str | None = None) -> str:
    output = output or f"n{len(add.nodes)}"
    add.nodes.append(helper.make_node("Cast", [name], [output], to=element))
    return output


def _tell_classes(add: _Nodes, score: str, dead: str, axis: int) -> tuple[str, str]:
    """(class 1 or 2 as float, class scores with ``axis`` new)."""
    share = _cast(add, dead, _FLOAT)
    pair = [add("Mul", score, add("Sub", np.float32(1), share)), add("Mul", score, share)]
    scores = add("Concat", *(add("Unsqueeze", one, np.int64([axis])) for one in pair), axis=axis)
    return add("Add", share, np.float32(1)), scores


def build_whole(
    *, detecting: Detecting = DETECTING, clip: bool = False, input_dtype: str = "uint16", rated: bool = True
) -> onnx.ModelProto:
    """The whole graph; ``rated`` adds mask_scores: the score for live cells, 0.75 of it for dead ones."""
    add = _Nodes()
    count, side = detecting.max_cells, detecting.mask_side
    found = _find_dots(add, count, clip=clip)
    valid = _cast(add, found["valid"], _FLOAT)
    wide = add("Unsqueeze", valid, np.int64([2]))
    add("Mul", found["boxes"], wide, to="boxes")
    add("Identity", found["score"], to="scores")
    kind, scores = _tell_classes(add, found["score"], found["dead"], 2)
    _cast(add, add("Mul", kind, valid), _INT, output="classes")
    add("Identity", found["valid"], to="valid")
    add("Identity", scores, to="class_scores")
    add("Mul", add("Unsqueeze", wide, np.int64([3])), draw_disc(side)[None, None], to="masks")
    outputs = [
        ("boxes", _FLOAT, ["b", count, 4]),
        ("scores", _FLOAT, ["b", count]),
        ("classes", _INT, ["b", count]),
        ("valid", _BOOL, ["b", count]),
        ("class_scores", _FLOAT, ["b", count, 2]),
        ("masks", _FLOAT, ["b", count, side, side]),
    ]
    if rated:
        add("Mul", found["score"], _rate(add, kind), to="mask_scores")
        outputs.append(("mask_scores", _FLOAT, ["b", count]))
    return add.to_model([_image(input_dtype)], outputs)


def build_trunk(*, candidates: int = 64, input_dtype: str = "uint16") -> onnx.ModelProto:
    """The first of two graphs: ``candidates`` dots, each twice, the worse of the two first."""
    add = _Nodes()
    found = _find_dots(add, candidates, clip=False)  # the middle of a clipped box is no dot
    score = add("Where", found["valid"], found["score"], np.float32(-1))
    worse = add("Where", found["valid"], add("Mul", found["score"], np.float32(0.9)), np.float32(-1))
    moved = add("Add", found["boxes"], np.float32([1, 0, 1, 0]))
    add("Concat", moved, found["boxes"], to="boxes", axis=1)
    add("Concat", worse, score, to="scores", axis=1)
    dead = add("Concat", found["dead"], found["dead"], axis=1)
    kind, scores = _tell_classes(add, "scores", dead, 2)
    _cast(add, kind, _INT, output="classes")
    add("Identity", scores, to="class_scores")
    counts = _cast(add, "image", _FLOAT)
    for level in (0, 1):  # dots and radii
        add("Slice", counts, np.int64([level]), np.int64([level + 1]), np.int64([1]), to=f"map_{level}")
    places = 2 * candidates
    outputs = [
        ("boxes", _FLOAT, ["b", places, 4]),
        ("scores", _FLOAT, ["b", places]),
        ("classes", _INT, ["b", places]),
        ("class_scores", _FLOAT, ["b", places, 2]),
        ("map_0", _FLOAT, ["b", 1, "h0", "w0"]),
        ("map_1", _FLOAT, ["b", 1, "h1", "w1"]),
    ]
    return add.to_model([_image(input_dtype)], outputs)


def build_masks(*, side: int = MASK_SIDE, rated: bool = True) -> onnx.ModelProto:
    """The second of two graphs: discs where the maps show a dot in the middle of the box, else nothing."""
    add = _Nodes()
    corners = [add("Gather", "boxes", np.int64(i), axis=1) for i in range(4)]
    middle = [_cast(add, add("Floor", add("Div", add("Add", corners[i], corners[i + 2]), np.float32(2))), _INT)
              for i in (1, 0)]  # fmt: skip
    place = add("Concat", *(add("Unsqueeze", n, np.int64([1])) for n in ("images", *middle)), axis=1)
    shown = []
    for level in (0, 1):
        plane = add("Squeeze", f"map_{level}", np.int64([1]))
        last = add("Sub", add("Shape", plane), np.int64(1))
        inside = add("Min", add("Max", place, np.int64(0)), last)
        shown.append(add("Greater", add("GatherND", plane, inside), np.float32(0)))
    strength = _cast(add, add("And", *shown), _FLOAT)
    has_area = _cast(add, add("Greater", "image_area", np.float32(0)), _FLOAT)
    strength = add("Mul", strength, has_area)
    add("Mul", add("Unsqueeze", strength, np.int64([1, 2])), draw_disc(side)[None], to="masks")
    outputs = [("masks", _FLOAT, ["r", side, side])]
    if rated:
        add("Identity", _rate(add, _cast(add, "classes", _FLOAT)), to="mask_ious")
        outputs.append(("mask_ious", _FLOAT, ["r"]))
    inputs = [
        ("map_0", _FLOAT, ["b", 1, "h0", "w0"]),
        ("map_1", _FLOAT, ["b", 1, "h1", "w1"]),
        ("boxes", _FLOAT, ["r", 4]),
        ("images", _INT, ["r"]),
        ("classes", _INT, ["r"]),
        ("image_area", _FLOAT, [1]),
    ]
    return add.to_model(inputs, outputs)


def _rate(add: _Nodes, kind: str) -> str:
    """Predicted IoU of masks: 1 for class 1, 0.75 for class 2."""
    return add("Sub", np.float32(1.25), add("Mul", kind, np.float32(0.25)))


def _image(dtype: str) -> tuple:
    element = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "float32": TensorProto.FLOAT}[dtype]
    return ("image", element, ["b", 3, "h", "w"])


def write_dot_bundle(folder: Path, *graphs: onnx.ModelProto, parted: bool = False, **facts) -> Path:
    """A bundle folder of the dot net, or of the ``graphs`` given; ``facts`` replace manifest entries."""
    folder.mkdir(parents=True, exist_ok=True)
    detecting = facts.get("detecting", DETECTING)
    roles = ("trunk", "masks") if parted else ("whole",)
    rated = "mask_scores" in facts.get("outputs", OUTPUTS)
    if not graphs and parted:
        graphs = (build_trunk(candidates=detecting.max_cells), build_masks(side=detecting.mask_side, rated=rated))
    elif not graphs:
        graphs = (build_whole(detecting=detecting, rated=rated),)
    files = [folder / f"{role}.onnx" for role in roles]
    for file, graph in zip(files, graphs, strict=True):
        file.write_bytes(graph.SerializeToString())
    entries = {
        "model": "dot_net",
        "kind": "instance",
        "graphs": tuple(
            Graph(role=role, file=file.name, sha256=compute_sha256(file))
            for role, file in zip(roles, files, strict=True)
        ),
        "input_dtype": "uint16",
        "image_dtypes": ("uint16",),
        "channels": CHANNELS,
        "pixel_size_um": 0.5,
        "classes": ("background", "live", "dead"),
        "outputs": OUTPUTS,
        "stride": 8,
        "splitting": Splitting(method="instances", score_threshold=0.05, min_area_px=5),
        "detecting": detecting,
        "tile_px": 64,
        "overlap_px": 32,
    }
    write_manifest(Manifest(**(entries | facts)), folder)
    return folder


def draw_dots(shape: tuple[int, int], centres, radii, *, dead=(), scores=None) -> np.ndarray:
    """(3, H, W) uint16 with a cell at each whole (y, x); ``scores`` fall from the first cell to the last."""
    image = np.zeros((3, *shape), np.uint16)
    if scores is None:
        scores = np.linspace(1.0, 0.2, len(centres))
    cells = zip(centres, np.broadcast_to(radii, len(centres)), scores, strict=True)
    for index, ((y, x), radius, score) in enumerate(cells):
        image[:, y, x] = round(score * FULL_SCORE), round(2 * radius), 500 * (index in dead)
    return image
