"""What is timed of a net: its graph in fp32, or with integers where it rounds."""

from collections import Counter

import onnx
import pytest
import torch

from cellvision.compression.prune.runs import run_layers
from cellvision.compression.qat.plan import plan_rounding
from cellvision.export import latency_probe
from cellvision.models.build import build_model
from cellvision.models.structure.fake_quant import find_fake_quants, is_rounding, set_fake_quant
from small_detector import DETECTOR

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("keep_float", [None, (), ("decoder.*",)])
def test_a_net_that_rounds_is_timed_with_integers(keep_float, monkeypatch):
    net = build_model(name="unet", kind="viability", in_channels=3, classes=("live", "dead"), widths=(4, 8)).eval()
    image, layers = torch.rand(1, 3, 32, 32), []
    if keep_float is not None:
        plan = plan_rounding(net, lambda: run_layers(net, image), keep_float=keep_float)
        layers = plan.layers
        set_fake_quant(net, plan)
        for quant in find_fake_quants(net):
            quant.bound.fill_(1.0)
    seen, opened = Counter(), latency_probe.open_onnx_graph

    def look(path, settings):
        model = onnx.load(path)
        integers = {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8}
        integers = {one.name for one in model.graph.initializer if one.name in integers and len(one.dims) == 4}
        seen.update({"graphs": 1, "integer": len(integers)})
        return opened(path, settings)

    monkeypatch.setattr(latency_probe, "open_onnx_graph", look)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert 0 < latency_probe.measure_graph_ms(net, image, threads=1, runs=3) < 60_000
    assert seen == {"graphs": 1, "integer": len(layers)}
    assert is_rounding(net) is (keep_float is not None)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("once_ms", "runs"), [(2.5, 200), (400.0, latency_probe.RUNS)])
def test_a_quick_net_runs_for_half_a_second(once_ms, runs, monkeypatch):
    asked = []

    def time(ways, *, runs):
        asked.append(runs)
        return {"net": [once_ms * (1 + number / 1000) for number in range(runs)]}

    monkeypatch.setattr(latency_probe, "open_graph", lambda net, image, **kwargs: None)
    monkeypatch.setattr(latency_probe, "time_in_turns", time)
    net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(4, 8))
    assert latency_probe.measure_graph_ms(net, torch.rand(1, 1, 32, 32)) == pytest.approx(once_ms, rel=0.2)
    assert asked == [1, runs]


@pytest.mark.slow
@pytest.mark.parametrize(("bias", "cells", "drawn"), [(-9.0, 7, 7), (5.0, 7, 7), (-9.0, 0, 1)])
def test_a_net_that_finds_no_cell_is_timed_with_as_many_as_one_that_finds_cells_everywhere(
    bias, cells, drawn, monkeypatch
):
    net = build_model(in_channels=1, classes=("background", "cell"), **DETECTOR).eval()
    with torch.no_grad():
        net.detector.proposal_generator.fcos_head.cls_logits.bias.fill_(bias)
        net.detector.proposal_generator.fcos_head.bbox_pred.bias.fill_(0.1)
    seen, opened = [], latency_probe.open_onnx_graph

    def look(path, settings):
        graph = opened(path, settings)
        run = graph.run
        graph.run = lambda inputs, names: seen.append(run(inputs, names))
        return graph

    monkeypatch.setattr(latency_probe, "open_onnx_graph", look)
    assert latency_probe.measure_graph_ms(net, 255 * torch.rand(1, 1, 96, 96), cells, threads=1, runs=1) > 0
    assert all(found["valid"].sum() == found["masks"].shape[1] == drawn for found in seen)
    assert seen
