import json
import os

import numpy as np
import onnx
import pytest
import torch

from cellvision.bundle import Channel, Splitting, compute_sha256, load_manifest
from cellvision.errors import BundleError, ConfigError, ExportError
from cellvision.export import folder as folders
from cellvision.export import writer
from cellvision.export.folder import make_folder
from cellvision.export.gate.latency import describe_machine, measure_latency
from cellvision.export.graph_options import GraphOptions
from cellvision.export.writer import export_bundle, export_checkpoint
from cellvision.models.build import build_model
from cellvision.runtime.maps.splitting import split_cells
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.session import open_session
from cellvision.training.net_record import NetRecord
from cellvision.types import DataStats


@pytest.fixture(autouse=True)
def share_graphs(monkeypatch, graphs):
    """Take the graph of ``net`` from the shared ones; another net is exported as usual."""
    export_part = writer.export_part

    def take(part, path):
        if not getattr(part.module.net, "is_shared", False):
            return export_part(part, path)
        path.write_bytes(graphs[str(part.inputs["image"].dtype).removeprefix("torch.")].read_bytes())
        return path

    monkeypatch.setattr(writer, "export_part", take)


def test_bundle_says_what_was_measured(net, facts, tmp_path):
    manifest = export_bundle(net, tmp_path / "made" / "bundle", **facts)
    assert manifest == load_manifest(tmp_path / "made" / "bundle")
    assert manifest.parity["max_difference"] < manifest.parity["tolerance"] == 1e-3
    assert {(c["batch"], c["image_dtype"]) for c in manifest.parity["cases"]} == {
        (batch, dtype) for batch in (1, 2) for dtype in ("uint16", "float32")
    }
    assert manifest.parity["cells_net"] == manifest.parity["cells_graph"] > 0
    assert manifest.latency["size"] == [2, 256, 256]
    for side in ("pytorch_ms", "onnxruntime_ms"):
        times = manifest.latency[side]
        assert 0 < times["lowest"] <= times["median"] <= times["highest"]
    assert {"cellvision", "torch", "onnx", "onnxruntime", "numpy", "python"} <= manifest.versions.keys()
    assert manifest.overlap_px % manifest.stride == manifest.tile_px % manifest.stride == 0
    # Blocks of 4 px: one is touched by the first layer, one by the second, half of one by the bilinear resize.
    assert manifest.provenance["tiling"] == {"exact": True, "reach_px": 12, "long_cell_px": 0}
    assert manifest.provenance["data_fingerprint"] == "00"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["bundle"]


@pytest.mark.parametrize("input_dtype", ["uint8", "uint16", "float32"])
def test_runtime_opens_the_bundle_and_agrees_with_the_net(net, facts, samples, tmp_path, input_dtype):
    facts["image_dtypes"] = ("uint8", "uint16", "float32")
    manifest = export_bundle(net, tmp_path / "bundle", options=GraphOptions(input_dtype=input_dtype), **facts)
    expected = {"uint8": ("uint8",), "uint16": ("uint8", "uint16"), "float32": ("uint8", "uint16", "float32")}
    assert manifest.image_dtypes == expected[input_dtype]
    image = samples[1].image.astype(input_dtype)
    maps = open_session(tmp_path / "bundle").run(image)
    with torch.inference_mode():
        of_net = net(torch.from_numpy(image)[None])
    np.testing.assert_allclose(maps.probabilities, of_net["probabilities"][0].numpy(), atol=1e-5)
    np.testing.assert_allclose(maps.distance, of_net["distance"][0, 0].numpy(), atol=1e-5)


def test_predictor_finds_the_same_cells_as_the_net(net, facts, samples, tmp_path):
    manifest = export_bundle(net, tmp_path / "bundle", **facts)
    cells = Predictor(tmp_path / "bundle")(samples[0].image, channel_names=["calcein", "PI"])
    with torch.inference_mode():
        of_net = net(torch.from_numpy(samples[0].image)[None])
    probabilities, distance = of_net["probabilities"][0].numpy(), of_net["distance"][0, 0].numpy()
    expected = split_cells(probabilities, distance, splitting=manifest.splitting)
    assert len(cells) > 5
    np.testing.assert_array_equal(cells.label_image, expected)


def test_overlap_is_enough_for_equal_tiles(net, facts, tmp_path):
    manifest = export_bundle(net, tmp_path / "bundle", **facts)
    session = open_session(tmp_path / "bundle")
    image = np.random.default_rng(0).integers(0, 400, (2, 64, 256)).astype(np.float32)
    whole = session.run(image).probabilities
    window = session.run(np.ascontiguousarray(image[:, :, 128 - manifest.overlap_px :])).probabilities
    np.testing.assert_allclose(whole[:, :, 128:], window[:, :, manifest.overlap_px :], atol=1e-6)


def test_semantic_net_that_sees_the_whole_image_is_marked(tiny, facts, tmp_path):
    facts |= {"splitting": Splitting(method="components"), "channels": (Channel(name="DAPI", role="nuclear"),)}
    facts["samples"] = [tiny[1](channels=1)]
    net = tiny[0](kind="semantic", channels=1, tiles=False)
    manifest = export_bundle(net, tmp_path / "bundle", **facts)
    assert manifest.provenance["tiling"] == {"exact": False, "reach_px": None, "long_cell_px": 0}
    assert manifest.overlap_px == 128
    assert manifest.outputs == ("probabilities",)
    assert open_session(tmp_path / "bundle").run(np.zeros((1, 5, 5), np.float32)).distance is None


def test_checkpoint_of_an_attention_unet_becomes_a_bundle_that_predicts(facts, samples, tmp_path):
    torch.manual_seed(0)
    net = build_model(
        name="unet", kind="viability", in_channels=2, classes=("background", "live", "dead"), widths=(4, 8, 8)
    )
    net.set_statistics(DataStats(offset=(60.0, 60.0), scale=(100.0, 100.0), class_pixels=(10, 1, 1)))
    facts["nucleus_margin_px"] = 6
    shared = (
        "channels", "image_dtypes", "pixel_size_um", "splitting", "live_threshold", "nucleus_margin_px", "accuracy",
    )  # fmt: skip
    record = NetRecord(net=net.config, fingerprint="00", **{name: facts[name] for name in shared})
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": weights, "cellvision": record.to_plain()}, tmp_path / "best.ckpt")

    manifest = export_checkpoint(tmp_path / "best.ckpt", tmp_path / "bundle", samples=samples)

    assert manifest.model == "unet"
    assert manifest.parity["max_difference"] < 1e-5
    assert manifest.provenance["checkpoint_sha256"] == compute_sha256(tmp_path / "best.ckpt")
    assert manifest.provenance["data_fingerprint"] == "00"
    assert manifest.provenance["tiling"]["exact"]
    for name in shared:
        assert getattr(manifest, name) == facts[name]
    cells = Predictor(tmp_path / "bundle")(samples[0].image)
    assert cells.label_image.shape == samples[0].image.shape[1:]


def test_graph_that_disagrees_leaves_nothing(net, facts, tmp_path, monkeypatch):
    def export_and_perturb(part, path):
        model = onnx.load(export_part(part, path))
        weights = next(t for t in model.graph.initializer if t.name.endswith("head.bias"))
        values = onnx.numpy_helper.to_array(weights) + np.array([0.1, 0, 0, 0], np.float32)
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        onnx.save(model, path)
        return path

    export_part = writer.export_part
    monkeypatch.setattr(writer, "export_part", export_and_perturb)
    with pytest.raises(ExportError, match=r"graph and net differ by up to .*; need at most 0.001 and the same cells"):
        export_bundle(net, tmp_path / "bundle", **facts)
    assert not list(tmp_path.iterdir())


def test_failed_export_keeps_the_bundle_it_would_have_replaced(net, facts, tmp_path, monkeypatch):
    export_bundle(net, tmp_path / "bundle", **facts)
    before = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    with pytest.raises(ExportError, match="need at most 1e-12"):
        export_bundle(net, tmp_path / "bundle", overwrite=True, tolerance=1e-12, **facts)
    assert {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_bundle_is_replaced_only_when_asked(net, facts, tmp_path):
    export_bundle(net, tmp_path / "bundle", **facts)
    with pytest.raises(ConfigError, match=r"holds a bundle; need a new folder; try: overwrite=true"):
        export_bundle(net, tmp_path / "bundle", **facts)
    facts["live_threshold"] = 0.7
    assert export_bundle(net, tmp_path / "bundle", overwrite=True, **facts).live_threshold == 0.7
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"manifest.json": '{"name": "a web page"}'}])
def test_foreign_folder_is_never_replaced(net, facts, tmp_path, content):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    with pytest.raises(ConfigError, match="is not a bundle only"):
        export_bundle(net, folder, overwrite=True, **facts)
    assert {path.name: path.read_text() for path in folder.iterdir()} == content


def test_bundle_with_a_strangers_file_is_not_replaced(net, facts, tmp_path):
    export_bundle(net, tmp_path / "bundle", **facts)
    (tmp_path / "bundle" / "results.csv").write_text("mine")
    with pytest.raises(ConfigError, match="is not a bundle only"):
        export_bundle(net, tmp_path / "bundle", overwrite=True, **facts)


def test_rename_that_fails_puts_the_old_bundle_back(tmp_path):
    (tmp_path / "workplace").mkdir()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old").touch()
    with pytest.raises(OSError):
        folders._put_in_place(tmp_path / "workplace" / "missing", tmp_path / "bundle", tmp_path / "workplace")
    assert (tmp_path / "bundle" / "old").exists()


@pytest.mark.skipif(os.name != "posix", reason="file modes are of POSIX")
def test_bundle_is_as_readable_as_any_other_folder(net, facts, tmp_path):
    export_bundle(net, tmp_path / "bundle", **facts)
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples": []}, ExportError, "no sample; need at least one real field"),
        ({"channels": (Channel(name="DAPI"),)}, ConfigError, "the channel list has 1 channels; need 2"),
        ({"tolerance": -1}, ConfigError, "tolerance=-1; need a difference from 0 up; try: tolerance=0.001"),
        ({"tolerance": "small"}, ConfigError, "tolerance=small; need a difference from 0 up"),
        ({"live_threshold": 1.0}, ConfigError, "live_threshold=1.0; need a number between 0 and 1"),
        ({"image_dtypes": ("int8",)}, ConfigError, "unknown image dtype 'int8'"),
        (
            {"options": GraphOptions(input_dtype="uint8")},
            ConfigError,
            "input_dtype=uint8 for images of uint16, float32",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(net, facts, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        export_bundle(net, tmp_path / "bundle", **(facts | change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (Channel(name="PI"), Channel(name="PI"))}, "channels.name=.* all different"),
        ({"pixel_size_um": 0.0}, "pixel_size_um=0.0; need a number of micrometres from 0.0001"),
        ({"nucleus_margin_px": 1.5}, "nucleus_margin_px=1.5; need a whole number from 0 to 500000000"),
    ],
)
def test_facts_that_no_manifest_can_hold_are_named_before_any_work(net, facts, tmp_path, change, message):
    with pytest.raises(BundleError, match=message):
        export_bundle(net, tmp_path / "bundle", **(facts | change))
    assert not list(tmp_path.iterdir())


def test_sample_of_other_channels_is_named(net, facts, tiny, tmp_path):
    facts["samples"] = [tiny[1]("field_7", channels=3)]
    with pytest.raises(ConfigError, match="field_7 has 3 channels; need 2 as the net"):
        export_bundle(net, tmp_path / "bundle", **facts)


def test_distance_splitting_needs_a_distance_output(tiny, facts, tmp_path):
    with pytest.raises(ConfigError, match=r"splitting\.method=distance for a semantic net"):
        export_bundle(tiny[0](kind="semantic"), tmp_path / "bundle", **facts)


def test_tampered_graph_is_refused_by_the_runtime(net, facts, tmp_path):
    export_bundle(net, tmp_path / "bundle", **facts)
    graph = tmp_path / "bundle" / "graph.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BundleError, match="expects SHA-256"):
        open_session(tmp_path / "bundle")


def test_manifest_is_strict_json(net, facts, tmp_path):
    export_bundle(net, tmp_path / "bundle", **facts)
    text = (tmp_path / "bundle" / "manifest.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_latency_is_of_both_sides_at_equal_threads(net, facts, tmp_path):
    export_bundle(net, tmp_path / "bundle", **facts)
    latency = measure_latency(net, open_session(tmp_path / "bundle").run_batch, np.zeros((2, 8, 8), np.float32))
    assert latency["threads"] == torch.get_num_threads()
    assert latency["machine"] == describe_machine()
    assert all(describe_machine().values())


def test_what_was_put_there_meanwhile_stays(tmp_path):
    folder = tmp_path / "bundle"

    def work():
        with make_folder(folder, overwrite=True) as made:
            (made / "manifest.json").write_text("{}")
            folder.mkdir()
            (folder / "thesis.txt").write_text("years of work")

    with pytest.raises(ConfigError, match="exists and is not a bundle only"):
        work()
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [folder]
