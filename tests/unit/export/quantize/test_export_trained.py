"""A net that rounds, as a graph: the same integers, computed as integers."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cellvision.compression.qat.plan import plan_rounding
from cellvision.export.onnx import export_onnx
from cellvision.export.quantize.trained import is_trained, to_integers
from cellvision.models.build import build_model
from cellvision.models.structure.fake_quant import find_fake_quants, set_fake_quant, set_phase


@pytest.fixture(scope="module")
def rounding_net():
    torch.manual_seed(0)
    net = build_model(
        name="unet",
        kind="semantic",
        in_channels=1,
        classes=("background", "cell"),
        widths=(8, 16, 16),
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


def run(path, images, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images.numpy()})[0]


@pytest.mark.parametrize("form", ["onnxruntime", "tensorrt"])
def test_the_graph_gives_what_the_net_gives(rounding_net, tmp_path, form):
    torch.manual_seed(1)
    images = torch.rand(2, 1, 45, 61) * 255
    ready = to_integers(rounding_net, form=form)
    path = export_onnx(ready, tmp_path / "graph.onnx")
    with torch.no_grad():
        expected = ready(images)["probabilities"].numpy()
    found = run(path, images)
    # A value between two steps may be rounded the other way, and the next layers follow it.
    assert np.quantile(np.abs(found - expected), 0.99) < 0.1
    assert np.abs(found - expected).mean() < 0.02
    graph = onnx.load(path).graph
    steps = {node.op_type for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert steps == {"QuantizeLinear", "DequantizeLinear"}
    zeros = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {zeros[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {onnx.TensorProto.INT8 if form == "tensorrt" else onnx.TensorProto.UINT8}


def test_onnx_runtime_computes_every_rounded_layer_on_integers(rounding_net, tmp_path):
    path = export_onnx(to_integers(rounding_net), tmp_path / "graph.onnx")
    run(path, torch.zeros(1, 1, 32, 32), tmp_path / "optimized.onnx")
    counted = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    layers = [module for module in rounding_net.modules() if hasattr(module, "rounded")]
    assert counted["QLinearConv"] == len(layers) > 4
    assert counted["QLinearConcat"] == counted["QLinearAdd"] == counted["QLinearMul"] == 2
    assert counted["MaxPool"] + counted["NhwcMaxPool"] == 2


def test_folding_changes_nothing_and_leaves_the_net_alone(rounding_net):
    before = {name: value.clone() for name, value in rounding_net.state_dict().items()}
    images = torch.rand(1, 1, 32, 32) * 255
    with torch.no_grad():
        difference = to_integers(rounding_net)(images)["probabilities"] - rounding_net(images)["probabilities"]
    assert difference.abs().max() < 1e-2
    assert all(torch.equal(value, before[name]) for name, value in rounding_net.state_dict().items())
    assert is_trained(rounding_net)
