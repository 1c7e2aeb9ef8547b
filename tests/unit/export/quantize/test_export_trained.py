"""A net that rounds, as a graph: the same integers, computed as integers."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cellvision.compression.qat.plan import plan_rounding
from cellvision.export.onnx import export_onnx
from cellvision.export.quantize.finishing import count_layers, finish_graph
from cellvision.export.quantize.trained import to_float, to_integers
from cellvision.models.build import build_model
from cellvision.models.structure.fake_quant import find_fake_quants, is_rounding, set_fake_quant, set_phase


@pytest.fixture(scope="module")
def rounding_net():
    torch.manual_seed(0)
    net = build_model(
        name="unet",
        kind="semantic",
        in_channels=1,
        classes=("background", "cell"),
        widths=(8, 16),
        attention="gate",
    )
    images = torch.rand(4, 1, 32, 32) * 255
    for _ in range(20):  # batch statistics
        net.train()(images)
    net.eval()
    set_fake_quant(net, plan_rounding(net, lambda: net(images)))
    set_phase(net, observing=True, rounding=False)
    for quant in find_fake_quants(net):
        quant.train()
    with torch.no_grad():
        net(images)
    set_phase(net, observing=False, rounding=True)
    return net.eval()


@pytest.fixture(scope="module")
def graphs(rounding_net, tmp_path_factory):
    """By form the net made ready and its graph; "finished" is that for ONNX Runtime rewritten."""
    folder = tmp_path_factory.mktemp("graphs")
    ready = {form: to_integers(rounding_net, form=form) for form in ("onnxruntime", "tensorrt")}
    found = {form: (net, export_onnx(net, folder / f"{form}.onnx")) for form, net in ready.items()}
    net, path = found["onnxruntime"]
    finished = folder / "finished.onnx"
    finished.write_bytes(path.read_bytes())
    finish_graph(finished)
    return found | {"finished": (net, finished)}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 1, 21, 30, generator=generator) * 255 for _ in range(8)]


def run(path, images, *, literal=False, optimized=None):
    """Probabilities of each image; literal: node by node as written, in float between Q and DQ, nothing fused."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"image": image.numpy()})[0][0] for image in images])


def compute_expected(net, images):
    with torch.no_grad():
        return np.concatenate([net(image)["probabilities"].numpy() for image in images])


def check_equal_but_for_ties(found, expected):
    """Sums in another order differ in their last bit: of some ten thousand values per image a few lie so close to the
    middle between two steps that this decides, and what follows goes along. Most images have none of them that shows.
    """
    differences = np.abs(found - expected).reshape(len(found), -1)
    assert (differences.max(axis=1) < 1e-5).sum() >= len(found) / 2
    assert differences.mean() < 1e-3
    assert differences.max() < 0.05


@pytest.mark.parametrize("form", ["onnxruntime", "tensorrt"])
def test_the_graph_as_written_gives_what_the_net_gives(graphs, images, form):
    net, path = graphs[form]
    check_equal_but_for_ties(run(path, images, literal=True), compute_expected(net, images))
    graph = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {onnx.TensorProto.INT8 if form == "tensorrt" else onnx.TensorProto.UINT8}


def test_values_beyond_the_range_are_cut_off_alike(graphs, images):
    """Brighter than anything in calibration; with signed integers, too, half of which are left for what is positive."""
    for form in ("onnxruntime", "tensorrt"):
        net, path = graphs[form]
        bright = [3 * image for image in images]
        check_equal_but_for_ties(run(path, bright, literal=True), compute_expected(net, bright))


def test_integers_give_what_the_rewritten_graph_says(graphs, images):
    _, path = graphs["finished"]
    assert np.array_equal(run(path, images), run(path, images))
    check_equal_but_for_ties(run(path, images), run(path, images, literal=True))


def test_rounding_biases_is_all_that_rewriting_changes(graphs, images):
    """A bias moves by at most half a step of the sum, some thousandth of a step of the result: one value in a thousand
    comes out a step away in each layer, and after 9 layers most by a few. Their steps are 1 / 255 of the range.
    """
    net, path = graphs["finished"]
    differences = np.abs(run(path, images) - compute_expected(net, images))
    assert differences.mean() < 0.005
    assert differences.max() < 0.05


def test_onnx_runtime_computes_every_rounded_layer_on_integers(rounding_net, graphs, images, tmp_path):
    _, path = graphs["finished"]
    run(path, images[:1], optimized=tmp_path / "optimized.onnx")
    counted = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    layers = [module for module in rounding_net.modules() if hasattr(module, "rounded")]
    assert counted["QLinearConv"] == len(layers) > 4
    assert counted["QLinearConcat"] == counted["QLinearAdd"] == counted["QLinearMul"] == 1
    assert counted["MaxPool"] + counted["NhwcMaxPool"] == 1
    counts = count_layers(path)
    assert (counts["integer"], counts["float"]) == (len(layers), 2)


def test_folding_changes_nothing_and_leaves_the_net_alone(rounding_net):
    before = {name: value.clone() for name, value in rounding_net.state_dict().items()}
    images = torch.rand(1, 1, 32, 32) * 255
    with torch.no_grad():
        difference = to_integers(rounding_net)(images)["probabilities"] - rounding_net(images)["probabilities"]
    assert difference.abs().max() < 1e-2
    assert all(torch.equal(value, before[name]) for name, value in rounding_net.state_dict().items())
    assert is_rounding(rounding_net)


def test_the_same_weights_without_rounding(rounding_net):
    plain = to_float(rounding_net)
    again = build_model(**rounding_net.config)
    again.load_state_dict(plain.state_dict())
    images = torch.rand(1, 1, 32, 32) * 255
    with torch.no_grad():
        assert torch.equal(plain(images)["probabilities"], again.eval()(images)["probabilities"])
    assert not is_rounding(plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
