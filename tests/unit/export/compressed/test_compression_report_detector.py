"""The report of a compression run of a CenterMask2, in two scores and without rounding."""

import pytest
import torch
from compressed_run import build_samples, prune, save, start
from torch.utils.flop_counter import FlopCounterMode

from cellvision.bundle import Splitting, load_manifest
from cellvision.compression.prune.runs import run_layers
from cellvision.export.compressed.report import report_compression
from cellvision.export.compressed.rows import list_rows
from cellvision.export.gate.found import open_bundle
from cellvision.metrics.accuracy import Accuracy
from cellvision.training.checkpoint import load_net
from small_detector import DETECTOR

pytestmark = pytest.mark.slow
INSTANCES = Splitting(method="instances", score_threshold=0.01, min_visible=0.1, min_area_px=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    net = start(**DETECTOR, decoding={"score_threshold": 0.0, "post_nms": 20})
    with torch.no_grad():  # boxes and masks with an area
        net.detector.proposal_generator.fcos_head.bbox_pred.bias.fill_(0.8)
        net.detector.roi_heads.mask_head.predictor.bias.fill_(1.0)
    samples = build_samples(net, splitting=INSTANCES)
    base = save(net, folder / "base.ckpt", splitting=INSTANCES)
    record = prune(net, macs=0.5)
    save(net, folder / "checkpoints" / "prune.ckpt", record, splitting=INSTANCES)
    return folder, list_rows(folder, base=base, static=()), samples


@pytest.fixture(scope="module")
def report(run):
    folder, rows, samples = run
    return report_compression(rows, folder / "report", samples=samples, threads=(1,), runs=2)


def test_numbers_are_those_of_the_nets(report, run):
    assert [row.name for row in report.rows] == ["base", "prune"]
    for row, source in zip(report.rows, run[1], strict=True):
        net, _ = load_net(source.checkpoint)
        assert row.parameters == sum(parameter.numel() for parameter in net.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run_layers(net, torch.zeros(1, 1, *report.size))
        assert row.macs == counter.get_total_flops() / 2
        graphs = load_manifest(run[0] / "report" / row.name).graphs
        assert row.size_bytes == sum((run[0] / "report" / row.name / one.file).stat().st_size for one in graphs)
    assert report.compare(report.final, report.base).macs == pytest.approx(0.5, abs=0.1)


def test_both_scores_are_those_of_the_bundles(report, run):
    assert [headline.score for headline in report.headlines] == ["mask/ap", "instance/ap_dsb_50"]
    for row in report.rows:
        accuracy = Accuracy(("background", "cell"))
        predict = open_bundle(run[0] / "report" / row.name, largest_px=96)
        for sample in run[2]:
            accuracy.add(sample, predict(sample))
        assert row.accuracy == accuracy.compute()
        assert row.cells == accuracy.cells > 0
    assert report.base.accuracy["mask/ap"] > 0.1


def test_both_losses_are_in_the_sentence(report):
    lost = report.compare(report.final, report.base).lost_points
    words = {"mask/ap": "mask AP", "instance/ap_dsb_50": "TP / (TP + FP + FN) at IoU 0.5"}
    assert max(lost.values()) > 1
    for score, points in lost.items():
        assert (f"loses {points:.2f} points of {words[score]}" in report.fault) == (points > 1)
