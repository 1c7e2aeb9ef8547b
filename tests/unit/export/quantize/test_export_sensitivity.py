import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cellvision.errors import ConfigError
from cellvision.export.quantize.calibration import build_feeds
from cellvision.export.quantize.sensitivity import draw_sensitivities, quantize_within, rank_nodes
from cellvision.export.quantize.static import Quantizer

LAYERS = ("stem", "one", "two", "three")


def build_graph(*, spoilt):
    """Four layers and a head; spoilt, one channel between "one" and "two" is a thousand times the others."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.15, (8, 8, 3, 3)).astype(np.float32) for name in LAYERS}
    weights["stem"] = rng.normal(0, 0.15, (8, 4, 3, 3)).astype(np.float32)
    weights["head"] = rng.normal(0, 0.3, (1, 8, 1, 1)).astype(np.float32)
    if spoilt:
        weights["one"][0] *= 1000
        weights["two"][:, 0] /= 1000
    nodes, source = [], "image"
    for name in LAYERS:
        nodes.append(helper.make_node("Conv", [source, f"{name}_w"], [name], name=name, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [name], [f"{name}_relu"], name=f"{name}_relu"))
        source = f"{name}_relu"
    nodes.append(helper.make_node("Conv", [source, "head_w"], ["map"], name="head"))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, "height", "width"])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        [numpy_helper.from_array(value, f"{name}_w") for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(path, image):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).normal(0, 1, (2, 4, 24, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def feeds(image):
    return build_feeds(list(image), dtype="float32")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "graph.onnx"
    onnx.save(build_graph(spoilt=False), path)
    return path


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    path = tmp_path_factory.mktemp("spoilt") / "graph.onnx"
    onnx.save(build_graph(spoilt=True), path)
    return path


def test_finds_the_sensitive_layers_and_keeps_them(spoilt, feeds, image, tmp_path):
    quantizer = Quantizer(spoilt, feeds=feeds)
    expected = run(spoilt, image)[0]
    lines = []

    def measure(path):
        return 100 * float(np.abs(run(path, image)[0] - expected).mean())

    report = quantize_within(quantizer, tmp_path / "int8.onnx", measure=measure, tolerance=0.5, tell=lines.append)

    assert report.met
    assert report.losses[0] > 0.5 >= report.loss == measure(tmp_path / "int8.onnx")
    assert {one.layer for one in report.sensitivities[:2]} == {"one", "two"}
    kept = {one.layer for one in report.sensitivities if one.kept}
    assert kept
    assert not kept & set(report.quantized.quantized)
    assert report.to_record()["sensitivities"][0]["kept"] is True
    assert any(line.startswith("round 0: 0 nodes kept in float") for line in lines)
    picture = draw_sensitivities(report.sensitivities, tmp_path / "bars.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_writes_the_best_file_where_none_is_good_enough(graph, feeds, tmp_path):
    quantizer, losses = Quantizer(graph, feeds=feeds), iter([3.0, 1.0, float("nan"), 2.0])
    report = quantize_within(
        quantizer, tmp_path / "int8.onnx", measure=lambda _: next(losses), tolerance=0.0, rounds=3, keep_float=["stem"]
    )
    assert (report.met, report.loss, len(report.losses)) == (False, 1.0, 4)
    kept = [one.layer for one in report.sensitivities if one.kept]
    assert kept == [one.layer for one in report.sensitivities[: len(kept)]]
    assert not {"stem", *kept} & set(report.quantized.quantized)


@pytest.mark.parametrize("keep_float", [[], ["stem", "t*"]])
def test_the_search_ends_when_no_layer_would_be_left(graph, feeds, tmp_path, keep_float):
    """However many rounds are asked for, with the best file so far."""
    losses, out = [5.0, 3.0, 4.0, 4.5], tmp_path / "int8.onnx"
    told = iter(losses)
    report = quantize_within(
        Quantizer(graph, feeds=feeds), out, measure=lambda _: next(told), tolerance=1.0, rounds=8, keep_float=keep_float
    )
    ranked = [one.layer for one in report.sensitivities]
    tries = 1 + max(ranked.index(layer) for layer in (["one"] if keep_float else LAYERS))  # one more each
    assert report.losses == tuple(losses[:tries])
    assert (report.met, report.loss) == (False, min(losses[:tries]))
    assert out.stat().st_size == report.quantized.bytes
    assert set(report.quantized.quantized) & set(LAYERS)


def test_a_good_file_needs_no_search(graph, feeds, tmp_path):
    report = quantize_within(Quantizer(graph, feeds=feeds), tmp_path / "a.onnx", measure=lambda _: 0.2, tolerance=0.5)
    assert report.met
    assert report.sensitivities == ()
    with pytest.raises(ConfigError, match="need rounds from 0 up"):
        quantize_within(Quantizer(graph, feeds=feeds), tmp_path / "a.onnx", measure=len, tolerance=0.5, rounds=-1)


def test_ranks_every_node_with_a_rounding_of_its_own(graph, feeds):
    quantizer = Quantizer(graph, feeds=feeds)
    ranked = rank_nodes(quantizer, feeds=feeds[:1])
    assert {one.layer for one in ranked} == set(LAYERS)
    assert [one.error for one in ranked] == sorted((one.error for one in ranked), reverse=True)
    assert all(one.error > 0 for one in ranked)
