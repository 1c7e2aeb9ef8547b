"""Engines in the gate, on the made-up GPU of test_engine_session: what they were not built for is a finding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cellvision.bundle import Channel, Graph, Splitting, compute_sha256, load_manifest, write_manifest
from cellvision.errors import ShapeError
from cellvision.export.gate.decision import judge_forms
from cellvision.export.gate.measure import measure_forms
from cellvision.models.base import NetSpec, SegNet
from cellvision.runtime.engines.sidecar import EngineTensor
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.tiles import budget
from cellvision.runtime.tiles.budget import find_window_px
from cellvision.types import Sample
from stain_net import write_bundle

CLASSES = ("background", "cell")
FREE = ("batch", 2, "height", "width")


class Doubling(nn.Module):
    """Each channel is half of a class's probability."""

    part, detecting = SegNet.part, None

    def __init__(self):
        super().__init__()
        self.spec = NetSpec(
            name="doubling", kind="semantic", in_channels=2, classes=CLASSES, stride=4, outputs=("probabilities",),
            tiles=True,
        )  # fmt: skip

    def forward(self, images):
        return {"probabilities": 2 * images}


@pytest.fixture
def fakes(monkeypatch):
    """The made-up GPU, on which engines give their image twice as "probabilities"; memory is not measured."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "runtime" / "engines")
    import test_engine_session as found

    class Context(found.Context):
        def set_tensor_address(self, name, address):
            return super().set_tensor_address({"probabilities": "maps"}.get(name, name), address)

    class Engine(found.Engine):
        def get_tensor_name(self, number):
            return ("image", "probabilities")[number]

        def create_execution_context(self):
            return Context(self.cuda)

    monkeypatch.setattr(found, "Engine", Engine)
    found.put(monkeypatch, found.Cuda())
    monkeypatch.setattr(budget, "_measured", {})  # all of them have the same few bytes
    monkeypatch.setattr("cellvision.export.gate.measure.measure_bundle_memory", lambda *_, **__: None)
    return found


@pytest.fixture
def fp32(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "two"], ["probabilities"])],
        "doubling",
        [value("image", TensorProto.FLOAT, FREE)],
        [value("probabilities", TensorProto.FLOAT, FREE)],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return write_bundle(
        tmp_path / "fp32", model, kind="semantic", input_dtype="float32", image_dtypes=("float32",), stride=4,
        channels=(Channel(name="a"), Channel(name="b")), classes=CLASSES, outputs=("probabilities",), tile_px=16,
        overlap_px=8, splitting=Splitting(method="components"),
    )  # fmt: skip


def write_engine(fakes, fp32, folder, height, width):
    """A bundle of an engine with these smallest, best and largest edges."""
    folder.mkdir()
    profile = {"image": tuple((1, 2, *edges) for edges in zip(height, width, strict=True))}
    tensors = {
        name: (EngineTensor(name=port, element="float", shape=FREE),)
        for name, port in (("inputs", "image"), ("outputs", "probabilities"))
    }
    path = fakes.write(folder, profile=profile, **tensors)
    graph = Graph(role="whole", file=path.name, sha256=compute_sha256(path), engine="tensorrt")
    write_manifest(replace(load_manifest(fp32), graphs=(graph,)), folder)
    return folder


def draw_field(height, width):
    """Three round cells."""
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int32)
    for label, (y, x) in enumerate([(10, 10), (12, 30), (28, 16)], 1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 < 30] = label
    cell = np.where(labels > 0, 0.45, 0.05).astype(np.float32)
    return Sample(
        name="a", group="a", image=np.stack([0.5 - cell, cell]), label_image=labels,
        cell_classes=np.ones(3, np.int64),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [
        ((48, 48, 48), (48, 48, 48), (48, 48)),
        ((300, 512, 512), (300, 512, 512), (300, 512)),
        ((4, 16, 40), (8, 32, 256), (8, 40)),
        ((8, 16, 32), (64, 64, 128), (64, 32)),
    ],
)
def test_a_bundle_opens_whatever_sizes_its_engine_was_built_for(fakes, fp32, tmp_path, height, width, window):
    """It is opened with runs that show how much memory a window takes: at sizes of its own."""
    folder = write_engine(fakes, fp32, tmp_path / "engine", height, width)
    assert find_window_px(folder, load_manifest(folder)) == window
    predictor = Predictor(folder)
    field = draw_field(height[1], width[1])
    if max(field.label_image.shape) <= 32:  # one window
        assert len(predictor(field.image)) > 0
    with pytest.raises(ShapeError, match=r"need float32 .*, for which the engine was built"):
        predictor(field.image[:, : height[0] - 1])


def test_an_engine_is_shown_what_it_takes(fakes, fp32, tmp_path):
    """Fields larger than its windows are tiled for it, and times are of a size that all forms take."""
    engine = write_engine(fakes, fp32, tmp_path / "engine", (4, 16, 40), (4, 16, 40))
    forms = {"fp32": fp32, "engine": engine}
    _, whole, tiled = measure_forms(Doubling(), forms, [draw_field(44, 60)], threads=(1,), runs=1)
    assert tiled.failure == ""
    assert tiled.accuracy["pixel/miou"] == whole.accuracy["pixel/miou"] == 1.0
    assert tiled.agreement["max_difference"] < 1e-6
    assert tiled.latency[0]["shape"] == [1, 2, 40, 40]


@pytest.mark.parametrize("size", [(44, 60), (40, 40)])
def test_a_field_that_no_window_of_an_engine_fits_is_a_finding(fakes, fp32, tmp_path, size):
    engine = write_engine(fakes, fp32, tmp_path / "engine", (48, 48, 48), (48, 48, 48))
    forms = {"fp32": fp32, "engine": engine}
    found = measure_forms(Doubling(), forms, [draw_field(*size)], threads=(1,), runs=1)
    assert "for which the engine was built" in found[2].failure
    assert found[1].accuracy["pixel/miou"] == 1.0
    assert found[1].latency  # beside PyTorch
    verdict = judge_forms(found, load_manifest(fp32), tolerance_points=1.0, allow_worse=False)
    assert (verdict.kept, verdict.passed) == ("fp32", False)
    assert "engine could not be measured (input 'image' is float32 [1, 2, " in verdict.sentence


def test_an_engine_that_fails_when_it_is_timed_is_a_finding(fakes, fp32, tmp_path):
    engine = write_engine(fakes, fp32, tmp_path / "engine", (4, 16, 64), (4, 16, 64))
    forms = {"fp32": fp32, "engine": engine}
    found = measure_forms(Doubling(), forms, [draw_field(44, 60)], threads=(1,), sizes=((80, 80),), runs=1)
    assert found[2].failure.startswith("input 'image' is float32 [1, 2, 80, 80]; need float32 [1, 2, 4, 4] to")
    assert found[1].latency[0]["shape"] == [1, 2, 80, 80]
