"""A net and its forms measured side by side, and what the gate makes of that: real graphs, good, spoiled and slow."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from cellvision.bundle import Channel, Splitting, load_manifest, write_manifest
from cellvision.data.batching import collate, to_field
from cellvision.errors import BundleError, ConfigError, ExportError
from cellvision.export.gate.decision import judge_forms, mark_bundle
from cellvision.export.gate.found import Agreement, open_bundle, open_net
from cellvision.export.gate.latency import compare_speed, find_ratio, find_sure_ratio
from cellvision.export.gate.measure import NET, measure_forms
from cellvision.export.gate.memory import measure_net_memory
from cellvision.export.gate.table import print_verdict
from cellvision.export.parity.comparison import cut
from cellvision.metrics.accuracy import Accuracy, choose_headlines
from cellvision.metrics.cost.timing import summarise
from cellvision.models.build import build_model
from cellvision.training.net_record import NetRecord
from cellvision.training.scoring import Scores, predict_field
from stain_net import write_bundle

RUNS = 5


def write_form(folder, model, *, precision="fp32"):
    """A bundle of a TinyNet graph."""
    facts = {"input_dtype": "float32", "pixel_size_um": None, "stride": 4, "overlap_px": 16}
    write_bundle(folder, model, **facts, splitting=Splitting(min_area_px=5))
    manifest = load_manifest(folder)
    write_manifest(replace(manifest, graphs=(replace(manifest.graphs[0], precision=precision),)), folder)
    return folder


@pytest.fixture(scope="module")
def fields(net, samples):
    """Samples whose true cells are what the net itself finds: it scores 1."""
    predict = open_net(net, splitting=Splitting(min_area_px=5), live_threshold=0.5)
    truths = [(sample, predict(sample).cells) for sample in samples]
    return [replace(one, label_image=cells.label_image, cell_classes=cells.class_id) for one, cells in truths]


@pytest.fixture(scope="module")
def forms(graphs, fields, tmp_path_factory):
    """Bundles of one net: fp32, int8, one with weights that were changed, one that does much for nothing."""
    folder = tmp_path_factory.mktemp("forms")
    good = onnx.load(graphs["float32"])
    quantize(graphs["float32"], folder / "int8.onnx", fields)
    return {
        "fp32": write_form(folder / "fp32", good),
        "int8": write_form(folder / "int8", onnx.load(folder / "int8.onnx"), precision="int8"),
        "spoiled": write_form(folder / "spoiled", spoil(good)),
        "slow": write_form(folder / "slow", slow_down(good)),
    }


class Feeds(CalibrationDataReader):
    def __init__(self, fields):
        self.feeds = iter([{"image": field.image[None].astype(np.float32)} for field in fields])

    def get_next(self):
        return next(self.feeds, None)


def quantize(path, out, fields):
    quantize_static(
        path, out, Feeds(fields), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, per_channel=True
    )


def spoil(model):
    """The graph with noise on its weights."""
    changed, rng = onnx.ModelProto(), np.random.default_rng(0)
    changed.CopyFrom(model)
    for weight in changed.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > 8:
            noisy = values + rng.normal(0, 0.7, values.shape).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(noisy, weight.name))
    return changed


def slow_down(model):
    """The graph with twenty convolutions of 32 channels, of which nothing is left in the result."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, last = changed.graph, "image"
    for at in range(20):
        shape = (32, 2 if at == 0 else 32, 3, 3)
        graph.initializer.append(numpy_helper.from_array(np.full(shape, 1e-6, np.float32), f"waste_{at}"))
        graph.node.append(helper.make_node("Conv", [last, f"waste_{at}"], [f"wasted_{at}"], pads=[1, 1, 1, 1]))
        last = f"wasted_{at}"
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "waste_axis"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-20), "waste_scale"))
    graph.node.append(helper.make_node("ReduceMean", [last, "waste_axis"], ["waste"], keepdims=1))
    graph.node.append(helper.make_node("Mul", ["waste", "waste_scale"], ["nearly_nothing"]))
    for node in graph.node:
        node.output[:] = ["true_distance" if name == "distance" else name for name in node.output]
        node.input[:] = ["true_distance" if name == "distance" else name for name in node.input]
    graph.node.append(helper.make_node("Add", ["true_distance", "nearly_nothing"], ["distance"]))
    onnx.checker.check_model(changed)
    return changed


@pytest.fixture(scope="module")
def measured(net, forms, fields):
    steps = []
    found = measure_forms(net, forms, fields, threads=(1,), runs=RUNS, progress=lambda *step: steps.append(step))
    return {one.name: one for one in found} | {"steps": steps}


def test_the_net_is_scored_as_in_training(net, fields):
    other = [replace(one, label_image=np.roll(one.label_image, 2, axis=0)) for one in fields]
    spec, splitting = net.spec, Splitting(min_area_px=5)
    scores = Scores(spec, mask_threshold=0.5)
    predict = open_net(net, splitting=splitting, live_threshold=0.5)
    for sample in other:
        batch = collate([(to_field(sample, range(2)), sample)])
        with torch.inference_mode():
            outputs = {name: values.numpy() for name, values in net(batch.images).items()}
        scores.update(predict_field(spec, batch, 0, outputs, splitting=splitting, live_threshold=0.5))
        assert len(predict(sample).cells) > 5
    found = score_net(net, other)
    expected = scores.compute()
    assert 0 < found["cell/f1"] <= 1
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-9)


def score_net(net, samples):
    accuracy, predict = (
        Accuracy(net.spec.classes),
        open_net(net, splitting=Splitting(min_area_px=5), live_threshold=0.5),
    )
    for sample in samples:
        accuracy.add(sample, predict(sample))
    return accuracy.compute()


def test_the_right_graph_agrees_and_the_spoiled_one_does_not(measured):
    reference, good, spoiled = measured[NET], measured["fp32"], measured["spoiled"]
    assert reference.accuracy["cell/f1"] == good.accuracy["cell/f1"] == 1.0
    assert reference.accuracy["pixel/miou"] == pytest.approx(good.accuracy["pixel/miou"], abs=1e-4)
    assert good.agreement["max_difference"] < 1e-4
    assert good.agreement["cell_f1"] == good.agreement["cell_iou"] == 1.0
    assert good.agreement["cells"] == good.agreement["cells_net"] == good.cells == reference.cells > 20
    assert reference.agreement == {}
    assert spoiled.agreement["max_difference"] > 0.1
    assert spoiled.agreement["class_difference"] > 0.01
    assert spoiled.agreement["mean_difference"] < spoiled.agreement["max_difference"]


def test_speed_size_and_memory_are_those_of_the_files(measured, forms):
    for name, folder in forms.items():
        assert measured[name].size_bytes == (folder / "model.onnx").stat().st_size
        (row,) = measured[name].latency
        assert (row["threads"], row["shape"], row["runs"]) == (1, [1, 2, 150, 131], RUNS)
    assert measured["fp32"].ratio == measured["fp32"].least_ratio == 1.0
    assert 2 < measured["slow"].least_ratio <= measured["slow"].ratio
    assert measured["slow"].ratio > 3
    assert measured[NET].ratio > 0
    assert measured[NET].size_bytes is None
    if measured["fp32"].memory is not None:
        assert measured["slow"].memory.peak_mib > measured["fp32"].memory.peak_mib
    assert measured[NET].memory is None  # no checkpoint was given
    done, totals = zip(*measured["steps"], strict=True)
    assert list(done) == list(range(1, len(done) + 1))
    assert set(totals) == {len(done)}


def test_int8_is_measured_as_it_is(measured, forms):
    int8 = measured["int8"]
    assert int8.precision == "int8"
    assert 1e-4 < int8.agreement["max_difference"] < 0.5
    assert int8.accuracy["cell/f1"] > 0.8
    assert set(int8.accuracy) == set(measured[NET].accuracy)
    json.dumps(int8.to_record(), allow_nan=False)


def test_gate_accepts_the_good_and_refuses_the_spoiled_and_the_slow(measured, forms):
    manifest = load_manifest(forms["fp32"])
    reference, good, spoiled, slow = (measured[name] for name in (NET, "fp32", "spoiled", "slow"))
    twin = replace(good, name="twin", ratio=0.9, least_ratio=0.8)
    how = {"tolerance_points": 1.0, "allow_worse": False}
    verdict = judge_forms([reference, good, twin], manifest, **how)
    assert (verdict.passed, verdict.kept, verdict.sentence) == (True, "twin", "")
    verdict.raise_if_refused()
    verdict = judge_forms([reference, good, replace(spoiled, ratio=0.5, least_ratio=0.5)], manifest, **how)
    assert (verdict.passed, verdict.kept) == (False, "fp32")
    with pytest.raises(ExportError, match=r"spoiled is [\d.]+ points worse in .*; fp32 is kept; need at most 1 point"):
        verdict.raise_if_refused()
    verdict = judge_forms([reference, good, slow], manifest, **how)
    assert verdict.kept == "fp32"
    with pytest.raises(ExportError, match=r"^slow takes [\d.]+ times as long as fp32; fp32 is kept"):
        verdict.raise_if_refused()


def test_a_bundle_is_marked_with_what_was_measured(measured, forms, tmp_path):
    manifest = load_manifest(forms["fp32"])
    verdict = judge_forms(
        [measured[name] for name in (NET, "fp32", "slow")], manifest, tolerance_points=1.0, allow_worse=True
    )
    verdict.raise_if_refused()  # it was wanted all the same
    assert verdict.kept == "slow"
    folder = write_form(tmp_path / "slow", onnx.load(forms["slow"] / "model.onnx"))
    gate = mark_bundle(folder, verdict, "slow").gate
    assert load_manifest(folder).gate == json.loads(json.dumps(gate))
    assert (gate["form"], gate["passed"], gate["allow_worse"], gate["kept"]) == ("slow", False, True, "slow")
    assert gate["forms"]["slow"]["faults"] == [f"takes {measured['slow'].ratio:.2f} times as long as fp32"]
    assert gate["forms"]["fp32"]["passed"]
    assert gate["forms"]["fp32"]["accuracy"]["cell/f1"] == gate["pytorch"]["accuracy"]["cell/f1"] == 1.0
    assert verdict.to_record("fp32")["passed"]


def broken_graph(model):
    """The graph, whose distance is now NaN."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        node.output[:] = ["true_distance" if name == "distance" else name for name in node.output]
    changed.graph.initializer.append(numpy_helper.from_array(np.float32("nan"), "not_a_number"))
    changed.graph.node.append(helper.make_node("Mul", ["true_distance", "not_a_number"], ["distance"]))
    return changed


def test_a_form_that_fails_is_a_finding_and_the_first_form_is_an_error(net, graphs, forms, fields, tmp_path):
    broken = write_form(tmp_path / "broken", broken_graph(onnx.load(graphs["float32"])))
    found = measure_forms(net, {"fp32": forms["fp32"], "broken": broken}, fields[:1], threads=(1,), runs=1)
    assert found[2].failure.startswith("model.onnx: output 'distance' holds NaN")
    assert found[2].accuracy == {}
    assert not found[2].latency
    assert [row["ratio"] for row in found[1].latency] == [1.0]  # what is left is timed beside PyTorch
    assert found[0].latency[0]["p50_ms"] > 0
    assert found[1].accuracy
    manifest = load_manifest(broken)
    verdict = judge_forms(found, manifest, tolerance_points=100.0, allow_worse=False)
    assert verdict.kept == "fp32"
    assert "broken could not be measured (model.onnx: output 'distance' holds NaN" in verdict.sentence
    json.dumps(verdict.to_record(), allow_nan=False)
    with pytest.raises(ExportError, match=r"first: model\.onnx: output 'distance' holds NaN"):
        measure_forms(net, {"first": broken}, fields[:1], runs=1)
    with pytest.raises(BundleError, match="manifest"):
        measure_forms(net, {"first": tmp_path}, fields[:1], runs=1)


def test_it_takes_samples_and_a_net_of_numbers(net, forms, fields, tiny):
    with pytest.raises(ExportError, match="no sample; need at least one field"):
        measure_forms(net, forms, [])
    spoiled = tiny[0]().eval()
    torch.nn.init.constant_(spoiled.head.bias, float("nan"))
    with pytest.raises(ExportError, match="the net gives NaN or infinite values for field_1"):
        measure_forms(spoiled, forms, fields)


def test_fields_larger_than_a_tile_are_shown_whole(forms, fields):
    """The forms' tiles are 64 px; a seam must not be taken for a difference."""
    found = open_bundle(forms["fp32"], largest_px=150, threads=1)(fields[0])
    assert found.cells.tiles == 1


def test_counts_of_another_dtype_are_taken_as_equal(forms, fields):
    predict = open_bundle(forms["fp32"], largest_px=150, threads=1)
    floats = replace(fields[0], image=fields[0].image.astype(np.float32))
    assert (predict(floats).cells.label_image == predict(fields[0]).cells.label_image).all()


def test_agreement_counts_by_hand(net, fields):
    """The last cell is gone from the form's label image, and one pixel's probability has changed."""
    predict = open_net(net, splitting=Splitting(min_area_px=5), live_threshold=0.5)
    of_net, of_form = predict(fields[0]), predict(fields[0])
    count = len(of_net.cells)
    keep = np.arange(count) < count - 1
    changed = of_form.probabilities.copy()
    changed[:, 0, 0] = [0.0, 0.25, 0.75]
    agreement = Agreement(net.spec.classes)
    agreement.add(of_net, replace(of_form, cells=of_form.cells.filter(keep), probabilities=changed))
    found = agreement.compute()
    before = of_net.probabilities[:, 0, 0]
    assert found["max_difference"] == pytest.approx(np.abs(before - changed[:, 0, 0]).max())
    assert found["mean_difference"] == pytest.approx(np.abs(before - changed[:, 0, 0]).sum() / changed.size)
    assert found["class_difference"] == 1 / changed[0].size
    assert (found["cells_net"], found["cells"]) == (count, count - 1)
    assert found["cell_f1"] == pytest.approx(2 * (count - 1) / (2 * count - 1))
    assert found["cell_class_difference"] == 0.0


def test_threads_of_pytorch_are_put_back():
    before = torch.get_num_threads()
    seen = []
    batch = np.zeros((1, 1, 8, 8), np.float32)

    def start(number):
        seen.append((number, torch.get_num_threads()))
        return lambda _: None

    rows = compare_speed({"a": start, "b": start}, {"a": [batch], "b": [batch]}, threads=(2, 1), runs=1)
    assert seen == [(2, 2), (2, 2), (1, 1), (1, 1)]
    assert [row["threads"] for row in rows] == [2, 1]
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        compare_speed({"a": lambda _: lambda _: 1 / 0}, {"a": [batch]}, threads=(2,), runs=1)
    assert torch.get_num_threads() == before


def test_mean_ratio_is_geometric():
    rows = [
        {
            "ways": summarise({"x": [1.0], "a": [ratio]}, shape=(1, 1, 8, 8)),
            "least_ratios": {"x": 1.0, "a": ratio / 2},
        }
        for ratio in (0.5, 2.0)
    ]
    assert (find_ratio(rows, "a"), find_sure_ratio(rows, "a")) == (1.0, 0.5)


def test_tolerance_is_a_number(measured, forms):
    manifest = load_manifest(forms["fp32"])
    for wrong in (float("nan"), -1.0, float("inf")):
        with pytest.raises(ConfigError, match=r"tolerance_points=.*; need points of accuracy, from 0 up"):
            judge_forms([measured[NET], measured["fp32"]], manifest, tolerance_points=wrong, allow_worse=False)


def test_the_net_is_weighed_by_its_checkpoint(tmp_path):
    net = build_model(
        name="unet", kind="viability", in_channels=2, classes=("background", "live", "dead"), widths=(4, 8)
    )
    record = NetRecord(
        net=net.config,
        channels=(Channel(name="a"), Channel(name="b")),
        image_dtypes=("uint16",),
        pixel_size_um=None,
        splitting=Splitting(),
        live_threshold=0.5,
        nucleus_margin_px=0,
        fingerprint="00",
    )
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": weights, "cellvision": record.to_plain()}, tmp_path / "best.ckpt")
    found = measure_net_memory(tmp_path / "best.ckpt", batch=np.zeros((1, 2, 64, 64), np.float32), threads=1)
    assert found is None or found.peak_mib > 100  # PyTorch itself


def test_memory_is_that_of_a_real_field(net, forms, fields, monkeypatch):
    """An instance net finds few cells in noise, and takes less for it."""
    seen = {}
    weigh = lambda folder, *, batch, threads: seen.update({folder: batch})  # noqa: E731
    monkeypatch.setattr("cellvision.export.gate.measure.measure_bundle_memory", weigh)
    measure_forms(net, {"fp32": forms["fp32"]}, fields, threads=(1,), sizes=((60, 70),), batches=(2,), runs=1)
    np.testing.assert_array_equal(seen[forms["fp32"]], cut(fields[0].image, 60, 70)[None])
    assert seen[forms["fp32"]].dtype == np.float32


def test_the_verdict_is_printed(measured, forms, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    manifest = load_manifest(forms["fp32"])
    found = [measured[name] for name in (NET, "fp32", "int8", "slow")]
    verdict = judge_forms(found, manifest, tolerance_points=1.0, allow_worse=False)
    print_verdict(verdict, choose_headlines(manifest.kind, manifest.classes))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["pytorch", "fp32", "int8", "slow"]
    assert lines[2][:4] == ["found", "F1", "1.000", "1.000"]
    assert ["cells", "found", "in", str(found[0].fields), "fields", *(str(one.cells) for one in found)] in lines
    (said,) = (line for line in lines if line[0] == "gate")
    assert said[-1] == "refused"
    assert said.count("kept") == 1
