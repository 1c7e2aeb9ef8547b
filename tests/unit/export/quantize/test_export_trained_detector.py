"""CenterMask2 that rounds, as graphs: pyramid, towers and mask heads on integers, whole and in parts."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cellvision.compression.prune.runs import run_layers
from cellvision.compression.qat.plan import plan_rounding
from cellvision.export.onnx import export_part, split_net
from cellvision.export.quantize.finishing import finish_graph
from cellvision.export.quantize.trained import to_integers
from cellvision.models.build import build_model
from cellvision.models.structure.fake_quant import find_fake_quants, set_fake_quant, set_phase

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = build_model(
        name="centermask2", in_channels=1, classes=("background", "cell"), backbone="vovnet19_slim",
        levels=(3, 4), roi_levels=(3, 4), top_levels=0, assigning={"sizes_of_interest": [64]}, fpn_channels=16,
        class_convs=1, box_convs=1, mask_convs=1, maskiou_convs=1, decoding={"pre_nms": 20, "post_nms": 10},
    )  # fmt: skip
    images = torch.rand(2, 1, 64, 64) * 255
    with torch.no_grad():
        for _ in range(10):
            net.train().logits(images)
    plan = plan_rounding(net.eval(), lambda: run_layers(net, images[:1], regions=5))
    set_fake_quant(net, plan)
    set_phase(net, observing=True, rounding=False)
    for quant in find_fake_quants(net):
        quant.train()
    with torch.no_grad():
        run_layers(net, images[:1], regions=20)
    set_phase(net, observing=False, rounding=True)
    return net.eval()


@pytest.fixture(scope="module", params=[("onnxruntime", True), ("tensorrt", True), ("onnxruntime", False)])
def parts(request, net, tmp_path_factory):
    """Form, the parts of the net, and their graphs by role."""
    form, parted = request.param
    folder = tmp_path_factory.mktemp("parts")
    found = split_net(to_integers(net, form=form), input_dtype="uint8", detecting=net.detecting, parted=parted)
    return form, {part.role: (part, export_part(part, folder / f"{part.role}.onnx")) for part in found}


def run(path, inputs, *, literal, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})


def make_inputs(part):
    """The example of a part with a real image, and with feature maps as they are."""
    generator = np.random.default_rng(3)
    inputs = {name: value.numpy() for name, value in part.inputs.items()}
    if "image" in inputs:
        inputs["image"] = generator.integers(0, 256, inputs["image"].shape).astype(np.uint8)
    return inputs


def test_every_rounded_layer_is_computed_on_integers(net, parts, tmp_path):
    form, found = parts
    if form == "tensorrt":
        pytest.skip("ONNX Runtime does not fuse this form; it is for TensorRT")
    layers = Counter()
    for role, (part, path) in found.items():
        finished = tmp_path / f"{role}.onnx"
        finished.write_bytes(path.read_bytes())
        finish_graph(finished)
        run(finished, make_inputs(part), literal=False, optimized=tmp_path / "optimized.onnx")
        layers.update(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    rounded = [name for name, module in net.named_modules() if hasattr(module, "rounded")]
    shared = sum("tower" in name for name in rounded)  # once for each of two levels
    assert layers["QLinearConv"] + layers["QGemm"] == len(rounded) + shared > 25
    assert layers["QGemm"] == 2
    assert layers["ConvTranspose"] == 0


def test_the_graphs_as_written_give_what_the_net_gives(parts):
    """But for ties between two steps, one of which, through means over the whole map, can move all that follows by a
    step: 0.02 of the spread of a pyramid map here. A wrong scale or bound moves it by about the spread.
    """
    _, found = parts
    for role, (part, path) in found.items():
        inputs = make_inputs(part)
        with torch.no_grad():
            expected = [value.numpy() for value in part.module(*(torch.from_numpy(value) for value in inputs.values()))]
        outputs = dict(zip(part.outputs, zip(run(path, inputs, literal=True), expected, strict=True), strict=True))
        # Candidates of almost equal scores change places: scores are sorted already, what belongs to them is left out.
        for name in [name for name in outputs if name in ("scores", "masks", "mask_ious") or name.startswith("map_")]:
            one, other = (np.asarray(value, np.float64) for value in outputs[name])
            spread = max(other.std(), np.abs(other).mean(), 0.05)  # scores of a net of chance are about 0
            if role == "whole" and name == "masks":
                continue
            differences = np.abs(one - other) / spread
            assert differences.mean() < 0.05, name
            assert np.quantile(differences, 0.99) < 0.2, name
