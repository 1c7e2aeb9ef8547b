"""Bundles in fewer bits, and the gate between them and the folder that was asked for."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch

from cellvision.bundle import Channel, Splitting, load_manifest
from cellvision.compression.qat.plan import plan_rounding
from cellvision.errors import ConfigError, ExportError
from cellvision.export.forms import Quantizing, write_half, write_int8
from cellvision.export.gate.judged import Request, export_judged
from cellvision.export.gate.table import print_verdict
from cellvision.export.graph_options import GraphOptions
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.export.writer import check_options, export_bundle
from cellvision.metrics.accuracy import choose_headlines
from cellvision.models.build import build_model
from cellvision.models.structure.fake_quant import find_fake_quants, set_fake_quant, set_phase
from cellvision.runtime.session import open_session
from cellvision.training.net_record import NetRecord
from cellvision.types import DataStats, Sample

CLASSES = ("background", "cell")
FACTS = {
    "channels": (Channel(name="grey"),), "image_dtypes": ("uint8",), "pixel_size_um": None,
    "accuracy": {}, "live_threshold": 0.5, "nucleus_margin_px": 0,
}  # fmt: skip
OPTIONS = GraphOptions(input_dtype="uint8")
STATS = DataStats(offset=(20.0,), scale=(200.0,), class_pixels=(9, 1))


def make_field(seed, size=(120, 100)):
    """Round spots on noise, and their labels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.int32)
    for label, (y, x) in enumerate(rng.uniform(8, 92, (12, 2)), 1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 < 36] = label
    _, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(size).astype(np.int32)
    image = np.clip(40 + 150 * (labels > 0) + rng.normal(0, 9, size), 0, 255).astype(np.uint8)
    return Sample(
        name=str(seed), group=str(seed), image=image[None], label_image=labels,
        cell_classes=np.ones(labels.max(), np.int64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def samples():
    return [make_field(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def unet(samples):
    """Trained for some seconds: spots are bright."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = build_model(name="unet", kind="semantic", in_channels=1, classes=CLASSES, widths=(24, 64), attention="none")
    net.set_statistics(STATS)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    truth = torch.from_numpy(np.stack([sample.label_image > 0 for sample in samples])).long()
    for _ in range(25):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(net(images)["probabilities"].clamp_min(1e-6).log(), truth).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(unet, tmp_path_factory):
    record = NetRecord(net=unet.config, fingerprint="00", splitting=Splitting(method="components"), **FACTS)
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    weights = {f"net.{name}": value for name, value in unet.state_dict().items()}
    torch.save({"state_dict": weights, "cellvision": record.to_plain()}, path)
    return path


@pytest.fixture(scope="module")
def fp32(unet, samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms") / "fp32"
    export_bundle(
        unet, folder, samples=samples, splitting=Splitting(method="components"), provenance={}, options=OPTIONS, **FACTS
    )
    return folder


def run(folder, sample):
    return open_session(folder, threads=1).run(sample.image).probabilities


def test_sixteen_bits_are_half_the_file_and_almost_the_same(unet, fp32, samples, tmp_path):
    manifest = write_half(unet, fp32, tmp_path)
    assert manifest == load_manifest(tmp_path)
    assert manifest.graphs[0].precision == "fp16"
    assert (tmp_path / "graph.onnx").stat().st_size < 0.65 * (fp32 / "graph.onnx").stat().st_size
    assert 0 < np.abs(run(tmp_path, samples[0]) - run(fp32, samples[0])).max() < 0.02


@pytest.mark.parametrize("form", ["onnxruntime", "tensorrt"])
def test_eight_bits_are_a_smaller_file_and_nearly_the_same(fp32, samples, tmp_path, form):
    manifest = write_int8(fp32, tmp_path, Quantizing(images=[sample.image for sample in samples]), form=form)
    assert manifest == load_manifest(tmp_path)
    assert manifest.graphs[0].precision == "int8"
    assert manifest.provenance["form"]["graphs"]["whole"]["calibration_images"] == 3
    assert (tmp_path / "graph.onnx").stat().st_size < 0.5 * (fp32 / "graph.onnx").stat().st_size
    other = (run(tmp_path, samples[0]).argmax(0) != run(fp32, samples[0]).argmax(0)).mean()
    assert other < 0.01


def judge(checkpoint, folder, samples, **changes):
    fields = [make_field(seed) for seed in range(5, 8)]
    request = Request(**({"precision": "int8", "fields": fields, "runs": 3, "rounds": 1} | changes))
    return export_judged(checkpoint, folder, request, samples=samples, options=OPTIONS, tolerance=1e-3, overwrite=True)


def test_a_form_that_is_kept_is_marked_with_what_was_measured(checkpoint, samples, tmp_path):
    verdict = judge(checkpoint, tmp_path / "bundle", samples, allow_worse=True)
    manifest = load_manifest(tmp_path / "bundle")
    assert verdict.kept == "int8" == manifest.graphs[0].precision
    assert manifest.gate["form"] == "int8"
    assert manifest.gate["pytorch"]["accuracy"]["pixel/miou"] > 0.8
    assert set(manifest.gate["forms"]) == {"fp32", "int8"}
    assert 0 < manifest.parity["max_difference"] < 1
    verdict.raise_if_refused()
    json.dumps(manifest.gate)


def test_a_form_that_loses_too_much_is_refused_and_fp32_kept(checkpoint, samples, tmp_path, monkeypatch):
    from cellvision.export import forms

    def spoil(source, folder, quantizing, *, form):
        manifest = write_int8(source, folder, quantizing, form=form)
        path = folder / "graph.onnx"
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.int8 and values.ndim > 1:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(values), tensor.name))
        path.write_bytes(model.SerializeToString())
        return forms._describe(manifest, folder, precision="int8", how={})

    monkeypatch.setattr("cellvision.export.gate.judged.write_int8", spoil)
    verdict = judge(checkpoint, tmp_path / "bundle", samples)
    assert verdict.kept == "fp32"
    assert load_manifest(tmp_path / "bundle").graphs[0].precision == "fp32"
    with pytest.raises(ExportError, match=r"int8 .*mean IoU.*; need .*; try: "):
        verdict.raise_if_refused()


def test_fp32_itself_is_judged_against_pytorch(checkpoint, samples, tmp_path, capsys):
    verdict = judge(checkpoint, tmp_path / "bundle", samples, precision="fp32")
    assert (verdict.kept, verdict.passed) == ("fp32", True)
    gate = load_manifest(tmp_path / "bundle").gate
    assert (gate["form"], gate["passed"], set(gate["forms"])) == ("fp32", True, {"fp32"})
    form, pytorch = gate["forms"]["fp32"], gate["pytorch"]
    assert form["accuracy"]["pixel/miou"] == pytest.approx(pytorch["accuracy"]["pixel/miou"])
    assert pytorch["accuracy"]["pixel/miou"] > 0.8
    assert form["latency"][0]["shape"] == pytorch["latency"][0]["shape"] == [1, 1, 120, 100]
    assert (form["memory"] is None) == (pytorch["memory"] is None)
    print_verdict(verdict, choose_headlines("semantic", CLASSES))
    printed = capsys.readouterr().out
    assert "peak MiB" in printed
    assert printed.split()[:2] == ["pytorch", "fp32"]


def test_a_net_that_learned_to_round_is_judged_without_that(unet, checkpoint, samples, tmp_path, monkeypatch):
    net, seen = copy.deepcopy(unet), {}
    images = torch.from_numpy(samples[0].image[None])
    set_fake_quant(net, plan_rounding(net, lambda: net(images)))
    set_phase(net, observing=True, rounding=False)
    for quant in find_fake_quants(net):
        quant.train()
    net(images)
    set_phase(net, observing=False, rounding=True)
    facts = {"splitting": Splitting(method="components"), "provenance": {}, **FACTS}
    monkeypatch.setattr("cellvision.export.gate.judged.load_facts", lambda _: (net.eval(), facts))
    weigh = lambda *_, batch, **how: seen.update(how)  # noqa: E731
    monkeypatch.setattr("cellvision.export.gate.measure.measure_net_memory", weigh)
    verdict = judge(checkpoint, tmp_path / "bundle", samples, precision="fp32")
    manifest = load_manifest(tmp_path / "bundle")
    assert (verdict.kept, verdict.passed, manifest.graphs[0].precision) == ("fp32", True, "fp32")
    assert manifest.provenance["form"]["rounding"] == "learned, and left out"
    assert manifest.gate["forms"]["fp32"]["agreement"]["max_difference"] < 1e-3  # from the net that does not round
    assert seen["rounds"] is False


def test_what_cannot_be_judged(checkpoint, samples, tmp_path):
    blank = [Sample(
        name="a", group="a", image=samples[0].image, label_image=np.zeros((120, 100), np.int32),
        cell_classes=np.zeros(0, np.int64),
    )]  # fmt: skip
    with pytest.raises(ExportError, match="1 held-out fields without a cell; need true cells"):
        judge(checkpoint, tmp_path / "bundle", blank)
    with pytest.raises(ConfigError, match="unknown precision 'int4'; need one of"):
        judge(checkpoint, tmp_path / "bundle", samples, precision="int4")
    with pytest.raises(ConfigError, match="tolerance_points=-1"):
        judge(checkpoint, tmp_path / "bundle", samples, tolerance_points=-1)
    assert not list(tmp_path.iterdir())


def test_what_no_engine_can_have_is_said_before_graphs_are_made(checkpoint):
    engines = TensorrtOptions(backend="tensorrt_rtx")
    with pytest.raises(ExportError, match=r"input_dtype=uint16; need an input that TensorRT knows; try: input_dtype="):
        check_options(checkpoint, GraphOptions(input_dtype="uint16"), engines)
    check_options(checkpoint, GraphOptions(input_dtype="uint16"))
