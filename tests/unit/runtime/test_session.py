import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cellvision.bundle import Splitting, load_manifest, write_manifest
from cellvision.errors import BundleError, ConfigError, ShapeError
from cellvision.runtime.engines import session as engine_session
from cellvision.runtime.graphs.graph_file import has_external_data
from cellvision.runtime.graphs.onnx_graph import open_onnx_graph
from cellvision.runtime.run_settings import RunSettings
from cellvision.runtime.session import list_providers, open_session
from dot_net import draw_dots, write_dot_bundle
from stain_net import build_graph, write_bundle

COMPONENTS = {"splitting": Splitting(method="components")}


def test_maps_of_known_arithmetic(stain_bundle):
    image = np.zeros((2, 5, 7), np.uint16)
    image[0, 1:4, 1:4] = 4000
    image[1, 1:4, 1:3] = 1000
    maps = open_session(stain_bundle, threads=1).run(image)
    assert maps.probabilities.shape == (3, 5, 7)
    np.testing.assert_array_equal(maps.probabilities.argmax(axis=0)[2], [0, 2, 2, 1, 0, 0, 0])
    assert maps.distance.shape == (5, 7)
    assert maps.distance[2, 2] == pytest.approx(1.0)
    assert maps.distance[1, 1] == pytest.approx(4 / 9)


def test_providers_are_listed_by_short_name():
    assert "cpu" in list_providers()
    assert len(list_providers()) == len(onnxruntime.get_available_providers())


def test_unknown_provider_lists_what_is_there(stain_bundle):
    with pytest.raises(ConfigError, match=r"unknown provider 'cdua'; need one of: .*cpu"):
        open_session(stain_bundle, provider="cdua")


def test_provider_that_does_not_start_is_no_fallback(stain_bundle, monkeypatch):
    class Fallen(onnxruntime.InferenceSession):
        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda graph, options, **_: Fallen(graph, options))
    with pytest.raises(ConfigError, match="CUDAExecutionProvider is installed but did not start; running: CPU"):
        open_session(stain_bundle, provider="cuda")


def test_threads_must_be_positive(stain_bundle):
    with pytest.raises(ConfigError, match="threads=0; need a whole number from 1 to"):
        open_session(stain_bundle, threads=0)


def test_changed_graph_is_refused(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"\x00")
    with pytest.raises(BundleError, match="expects SHA-256"):
        open_session(folder)


def refer_elsewhere(tensor, location):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(location)


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "weights.bin"])
def test_weights_in_other_files_are_refused(tmp_path, location):
    model = build_graph()
    refer_elsewhere(model.graph.initializer[1], location)
    folder = write_bundle(tmp_path / "bundle", model)
    with pytest.raises(BundleError, match="keeps weights in other files; need one file that holds everything"):
        open_session(folder)


def test_external_data_is_found_wherever_it_hides():
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    refer_elsewhere(tensor, "x")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])
    branch = helper.make_node("If", ["b"], ["c"], then_branch=inner, else_branch=inner)
    sparse = onnx.SparseTensorProto(values=tensor, dims=[1])
    function = helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 20)])
    outer = helper.make_graph([branch], "outer", [], [])
    opset = [helper.make_opsetid("", 20)]
    hidden = [
        helper.make_model(outer, opset_imports=opset),
        helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]), opset_imports=opset),
        helper.make_model(helper.make_graph([], "g", [], []), functions=[function], opset_imports=opset),
    ]
    assert [has_external_data(model.SerializeToString()) for model in hidden] == [True, True, True]
    assert not has_external_data(build_graph().SerializeToString())


@pytest.mark.parametrize("cut", [b"\xff" * 40, b"\x3a\xff\xff\x03ab", b"\x0b"])
def test_bytes_that_are_no_graph(tmp_path, cut):
    folder = write_bundle(tmp_path / "bundle", type("Bytes", (), {"SerializeToString": lambda self: cut})())
    with pytest.raises(BundleError, match="cut short or not ONNX"):
        open_session(folder)


def test_graph_that_does_not_load(tmp_path):
    model = build_graph()
    model.graph.node[0].op_type = "Teleport"
    with pytest.raises(BundleError, match="does not load"):
        open_session(write_bundle(tmp_path / "bundle", model))


@pytest.mark.parametrize(
    ("graph", "facts", "message"),
    [
        (
            {"name": "picture"},
            {},
            r"inputs picture: tensor\(uint16\) \[B, 2, H, W\]; need inputs image: tensor\(uint16\)",
        ),
        ({"input_dtype": "float32"}, {}, r"tensor\(float\) .* need inputs image: tensor\(uint16\)"),
        ({"input_shape": (1, 2, "h", "w")}, {}, r"\[1, 2, H, W\]; need inputs .*\[B, 2, H, W\]"),
        ({"input_shape": ("b", 2, 64, 64)}, {}, r"\[B, 2, 64, 64\]; need"),
        ({}, COMPONENTS | {"outputs": ("probabilities",)}, "has outputs .*distance.*; need outputs probabilities"),
        ({"distance": False}, {}, "need .*distance"),
        (
            {},
            COMPONENTS | {"outputs": ("probabilities", "flows")},
            "outputs flows; need outputs among probabilities, distance",
        ),
        ({}, {"kind": "semantic", "classes": ("background", "live")}, r"\[B, 3, H, W\].* need .*\[B, 2, H, W\]"),
    ],
)
def test_graph_that_does_not_suit_its_manifest(tmp_path, graph, facts, message):
    folder = write_bundle(tmp_path / "bundle", build_graph(**graph), **facts)
    with pytest.raises(BundleError, match=message):
        open_session(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"kind": "panoptic"}, "kind='panoptic'; need one of semantic, viability"),
        ({"classes": ("background", "alive", "dead")}, "need live and dead after the background"),
        ({"outputs": ("probabilities",)}, "need distance too for splitting.method=distance"),
        ({"outputs": ("distance",)}, "need different names, probabilities first"),
        ({"input_dtype": "float16"}, "input_dtype='float16'; need one of"),
        ({"stride": 0}, "stride=0; need a whole number from 1 to 500000000"),
    ],
)
def test_manifest_that_cannot_be_followed(tmp_path, facts, message):
    with pytest.raises(BundleError, match=message):
        open_session(write_bundle(tmp_path / "bundle", **facts))


def test_result_that_is_not_a_number_is_refused(tmp_path):
    session = open_session(write_bundle(tmp_path / "bundle", build_graph(scale=float("nan"))))
    with pytest.raises(BundleError, match="'probabilities' holds NaN or infinite values"):
        session.run(np.ones((2, 4, 4), np.uint16))


def test_result_of_another_size_is_refused(tmp_path):
    model = build_graph()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.attribute[0].ints[:] = [0, 0, 0, 0]
    session = open_session(write_bundle(tmp_path / "bundle", model))
    with pytest.raises(BundleError, match=r"output 'distance' has shape \(1, 1, 6, 7\); need \(1, 1, 8, 9\)"):
        session.run(np.ones((2, 8, 9), np.uint16))


def test_graph_that_fails_names_the_size(stain_bundle):
    with pytest.raises(BundleError, match=r"model.onnx failed on 4x4 px"):
        open_session(stain_bundle).run(np.ones((3, 4, 4), np.uint16))


def test_onnx_runtime_keeps_quiet(tmp_path, capfd):
    model = build_graph()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    open_session(write_bundle(tmp_path / "bundle", model))
    assert capfd.readouterr().err == ""


def test_folder_without_a_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"has no manifest.json; need a bundle folder"):
        open_session(os.fspath(tmp_path))


@pytest.mark.parametrize("role", ["trunk", "masks"])
def test_engines_take_the_place_of_graphs(tmp_path, monkeypatch, role):
    """One part runs on an engine, the other in ONNX Runtime; what goes between them suits both."""
    folder = write_dot_bundle(tmp_path / "bundle", parted=True)
    manifest = load_manifest(folder)
    graphs = tuple(replace(graph, engine="tensorrt") if graph.role == role else graph for graph in manifest.graphs)
    expected = open_session(folder).run(image := draw_dots((40, 50), [(20, 20), (9, 33)], 8))
    write_manifest(replace(manifest, graphs=graphs), folder)
    opened, fed = [], []

    class Engine:
        def __init__(self, path, devices):
            opened.append((path.name, devices))
            self._graph = open_onnx_graph(path, RunSettings())
            self.path, self.inputs, self.outputs = path, self._graph.inputs, self._graph.outputs

        def run(self, feeds, wanted, held=()):
            if 5 in next(iter(feeds.values())).shape:
                raise ShapeError("5 px")
            fed.extend(feeds.values())
            return self._graph.run(feeds, wanted)

    monkeypatch.setattr(engine_session, "open_engine", Engine)
    session = open_session(folder)
    assert opened == [(f"{role}.onnx", (0,))]
    found = session.run(image)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.masks, expected.masks)
    assert all(isinstance(value, np.ndarray) for value in fed)
    with pytest.raises(ShapeError, match="5 px"):  # what an engine says stays as it says it
        session.run(draw_dots((5, 5), [(2, 2)], 2))
