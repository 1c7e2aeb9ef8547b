"""A net that learned to round in a report: its graph in integers, what it costs as without rounding."""

import math

import numpy as np
import onnx
import pytest
import torch
from compressed_run import MAPS, SIZE, UNET, build_samples, draw_images, prune, save, start
from torch.utils.flop_counter import FlopCounterMode

from cellvision.compression.qat.plan import plan_rounding
from cellvision.errors import ConfigError
from cellvision.export.compressed.report import report_compression
from cellvision.export.compressed.rows import Row, describe_net, list_rows
from cellvision.models.build import build_model
from cellvision.models.structure.fake_quant import set_fake_quant
from cellvision.models.structure.restore import restore_structure


def count_int8(path):
    weights = [each for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.INT8]
    return sum(math.prod(each.dims) for each in weights)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    net = start(**UNET)
    samples = build_samples(net, splitting=MAPS)
    base = save(net, folder / "base.ckpt", splitting=MAPS)
    pruned = prune(net, macs=0.6)
    images = torch.from_numpy(np.stack(draw_images()))
    with torch.no_grad():
        plan = plan_rounding(net.eval(), lambda: net(images))
        set_fake_quant(net, plan)
        net.train()
        for _ in range(3):
            net.logits(images)
    rounded = {"step": "quantize", "plan": plan.to_plain()}
    save(net.eval(), folder / "checkpoints" / "quantize.ckpt", pruned, rounded, splitting=MAPS)
    return folder, list_rows(folder, base=base, static=()), samples, pruned


@pytest.fixture(scope="module")
def report(run):
    folder, rows, samples, _ = run
    return report_compression(rows, folder / "report", samples=samples, threads=(1,), runs=2)


def test_a_net_that_learned_to_round_is_measured_as_integers(report, run):
    _, rounded = report.rows
    assert (rounded.name, rounded.precision, rounded.steps) == ("quantize", "int8", ("prune", "quantize"))
    assert rounded.size_bytes == (run[0] / "report" / "quantize" / "graph.onnx").stat().st_size
    assert count_int8(run[0] / "report" / "quantize" / "graph.onnx") > 0.5 * rounded.parameters
    assert count_int8(run[0] / "report" / "base" / "graph.onnx") == 0
    assert report.final is rounded
    assert rounded.before == "base"


def test_it_costs_what_the_pruned_net_does(report, run):
    plain = build_model(**start(**UNET).config)
    restore_structure(plain, [run[3]])
    assert report.final.parameters == sum(parameter.numel() for parameter in plain.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.eval().logits(torch.zeros(1, 1, *SIZE))
    assert report.final.macs == counter.get_total_flops() / 2 > 0
    assert describe_net(run[1][1].checkpoint, torch.zeros(1, 1, *SIZE)).macs == report.final.macs


def test_it_cannot_be_rounded_again(report, run):
    folder, rows, samples, _ = run
    again = Row(name="again", checkpoint=rows[1].checkpoint, role="static")
    with pytest.raises(ConfigError, match="static row 'again' of a net that rounds already; need a net in float"):
        report_compression([*rows, again], folder / "report", samples=samples, fields=samples)
