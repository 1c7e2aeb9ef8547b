"""``cellvision benchmark``: tables, files, and what is said where something is wrong."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from matplotlib.axes import Axes
from PIL import Image

from cellvision.bundle import load_manifest
from cellvision.cli import main
from cellvision.commands import benchmark as benchmark_module
from cellvision.commands.benchmark import Benchmark, find_accuracy
from cellvision.commands.benchmarking.inputs import cut_middle, load_images
from cellvision.commands.benchmarking.options import RESULTS
from cellvision.errors import BundleError
from cellvision.metrics.cost.peak_memory import PeakMemory
from cellvision.runtime.predictor import Predictor
from dot_net import draw_dots, write_dot_bundle
from stain_net import build_graph, draw_cells, write_bundle

CENTRES = [(15, 15), (15, 60), (50, 20), (50, 75), (80, 45)]


@pytest.fixture
def fields(tmp_path):
    """Two images, and their truth as label images with a class table; one cell of B2 is called dead and is live."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    rows = []
    for name, dead in (("A1", {0, 3}), ("B2", {2})):
        image = draw_cells((100, 90), CENTRES, 11, dead)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
        truth = np.zeros((100, 90), np.uint16)
        for index, (y, x) in enumerate(CENTRES):
            window = (slice(max(0, y - 12), y + 13), slice(max(0, x - 12), x + 13))
            truth[window][image[0][window] > 0] = index + 1
            called_dead = index in dead or (name, index) == ("B2", 4)
            rows.append((name, index + 1, "dead" if called_dead else "live"))
        tifffile.imwrite(tmp_path / "labels" / f"{name}.tif", truth)
    with (tmp_path / "classes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label", "class"), *rows])
    return tmp_path


@pytest.fixture
def quick_memory(monkeypatch):
    """No process of its own for the tests of everything else; what it was asked for is kept."""
    asked = []

    def measure(bundle, **how):
        asked.append((bundle, how))
        return PeakMemory(peak_mib=64.0, growth_mib=10.0)

    monkeypatch.setattr(benchmark_module, "measure_bundle_memory", measure)
    return asked


def run(*arguments):
    return main(["benchmark", *(str(argument) for argument in arguments)])


def test_two_bundles_side_by_side(stain_bundle, fields, tmp_path, quick_memory, capsys):
    other = write_bundle(tmp_path / "other")
    options = ["--threads", "1,2", "--batch", "1,3", "--runs", 3, "--out", tmp_path / "out", "--profile"]
    truth = ["--images", fields / "images", "--truth", fields / "labels", "--classes", fields / "classes.csv"]
    assert run(stain_bundle, other, *options, *truth) == 0
    record = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert record["complete"]
    assert record["size"] == [100, 90]
    assert record["images"] == ["A1.tif", "B2.tif"]
    keys = [(row["bundle"], row["threads"], row["batch"]) for row in record["rows"]]
    assert keys == [(name, threads, batch) for threads in (1, 2) for batch in (1, 3) for name in ("bundle", "other")]
    for row in record["rows"]:
        found = row["latency"]
        assert found["runs"] == 3
        assert 0 < found["lowest_ms"] <= found["p50_ms"] <= found["p95_ms"]
        assert found["images_per_s"] == pytest.approx(1e3 * row["batch"] / found["p50_ms"], rel=2e-3)
        assert found["ratio"] == 1.0 or row["bundle"] == "other"
    assert [len(how["batch"]) for _, how in quick_memory] == [1, 1, 3, 3] * 2
    assert {how["batch"].shape[2:] for _, how in quick_memory} == {(100, 90)}
    for entry in record["bundles"].values():
        assert entry["size_bytes"] == (stain_bundle / "model.onnx").stat().st_size
        assert entry["accuracy_measured_on"] == 2
        assert entry["accuracy"]["cell/f1"] == 1.0
        assert entry["accuracy"]["field/viability_error_pp"] == 10.0  # one of ten cells, 20 points of one field
        assert sum(op["share"] for op in entry["operators"]) == pytest.approx(1.0)
    with Image.open(tmp_path / "out" / "benchmark.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    printed = capsys.readouterr().out
    for text in ("found F1", "1.000", "2 fields", "Conv", "operators", "p95", "64"):
        assert text in printed


def test_sizes_of_small_graphs_are_told_apart(stain_bundle, tmp_path, quick_memory, monkeypatch):
    labels = []

    def note(_, bars, *, fmt, **__):
        labels.extend(fmt % bar.get_height() for bar in bars)

    monkeypatch.setattr(Axes, "bar_label", note)
    monkeypatch.setattr(Benchmark, "find_size", lambda _, name: {"bundle": 5700, "other": 7500}[name])
    other = write_bundle(tmp_path / "other")
    options = ["--size", "32x32", "--runs", 1, "--threads", 1, "--out", tmp_path / "out"]
    assert run(stain_bundle, other, *options) == 0
    assert {"0.0057", "0.0075"} <= set(labels)


def test_random_counts_and_the_accuracy_of_the_manifest(tmp_path, quick_memory, capsys):
    one = write_bundle(tmp_path / "one", accuracy={"val/cell/f1": 0.875, "val/cell/live_dead_f1": 0.75})
    assert run(one, "--size", "48x40", "--runs", 1, "--threads", 1) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("48x40 px, random counts, on ")
    assert "0.875" in printed
    assert "0.750" in printed
    assert "manifest" in printed
    assert "median over the rounds" in printed
    assert quick_memory[0][1]["batch"].shape == (1, 2, 48, 40)


def test_memory_is_that_of_a_process(stain_bundle, tmp_path):
    assert run(stain_bundle, "--size", "32x32", "--runs", 1, "--threads", 1, "--out", tmp_path / "out") == 0
    (row,) = json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]
    assert row["memory"] is None or row["memory"]["peak_mib"] > row["memory"]["growth_mib"] > 0


def test_the_net_gets_what_the_runtime_gives_it(stain_bundle, fields, monkeypatch):
    """The middle of the images, channels in the bundle's order, counts scaled: as `Predictor` does."""
    image = draw_cells((100, 90), CENTRES, 11)
    tifffile.imwrite(fields / "images" / "A1.tif", (image[::-1] // 257).astype(np.uint8), photometric="minisblack")
    manifest = load_manifest(stain_bundle)
    how = {"channels": ("PI", "nuclei"), "intensity_scale": 257.0}
    inputs = load_images(fields / "images" / "A1.tif", most=4, window=manifest, **how)
    batch = inputs.build_batch(manifest, 2)
    assert (batch.dtype, batch.shape) == (np.uint16, (2, 2, 100, 90))
    assert (batch[1] == image // 257 * 257).all()
    seen = []
    predictor = Predictor(stain_bundle, tile_px=128)
    monkeypatch.setattr(predictor.session, "_run", lambda *given: seen.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictor((image[::-1] // 257).astype(np.uint8), channel_names=("PI", "nuclei"), intensity_scale=257.0)
    (feeds,) = (part for part in seen[0] if isinstance(part, dict))
    assert (feeds["image"][0] == batch[0]).all()


def test_images_larger_than_a_window_are_cut_to_it(stain_bundle, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 300, 90), np.uint16), photometric="minisblack")
    inputs = load_images(
        tmp_path / "a.tif", most=1, window=load_manifest(stain_bundle), channels=None, intensity_scale=None
    )
    assert inputs.size == (128, 90)  # tiles of 64 px with 32 px on each side
    image = np.arange(2 * 7 * 5).reshape(2, 7, 5)
    assert (cut_middle(image, 3, 5) == image[:, 2:5]).all()
    assert cut_middle(image, 16, 16).shape == (2, 16, 16)


def test_names_of_bundles_stay_apart(stain_bundle, tmp_path):
    write_bundle(tmp_path / "bundle")
    made = Benchmark(bundles=[stain_bundle, tmp_path / "bundle", stain_bundle], size=(32, 32))
    first, second, third = made.folders
    assert len({first, second, third}) == 3
    assert third == f"{first} (2)"
    assert list(made.folders.values()) == [stain_bundle, tmp_path / "bundle", stain_bundle]


def test_accuracy_of_manifests_says_of_how_many_fields_it_is(tmp_path, quick_memory, capsys):
    gate = {"form": "fp32", "forms": {"fp32": {"accuracy": {"cell/f1": 0.9}, "fields": 7}}}
    one = write_bundle(tmp_path / "one", gate=gate)
    assert run(one, "--size", "32x32", "--runs", 1, "--threads", 1) == 0
    assert "manifest, 7 fields" in " ".join(capsys.readouterr().out.split())


def test_accuracy_of_the_form_goes_before_that_of_the_net(tmp_path):
    form = {"accuracy": {"cell/f1": 0.8}}
    gate = {"form": "int8", "forms": {"int8": form, "fp32": {"accuracy": {"cell/f1": 0.9}}}}
    folder = write_bundle(tmp_path / "b", accuracy={"val/cell/f1": 0.95}, gate=gate)
    assert find_accuracy(load_manifest(folder)) == {"cell/f1": 0.8}
    for odd in (
        {"form": "int8"},
        {"form": "x", "forms": gate["forms"]},
        {"forms": 5},
        {"form": "a", "forms": {"a": 1}},
    ):
        folder = write_bundle(tmp_path / "c", accuracy={"val/cell/f1": 0.95}, gate=odd)
        assert find_accuracy(load_manifest(folder)) == {"cell/f1": 0.95}


@pytest.mark.parametrize("error", [BundleError("graph failed"), KeyboardInterrupt()])
def test_what_was_measured_before_an_error_stays(stain_bundle, tmp_path, quick_memory, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(benchmark_module, "profile_bundle", fail)
    options = ["--size", "32x32", "--runs", 1, "--threads", 1, "--profile", "--out", tmp_path / "out"]
    assert run(stain_bundle, *options) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    record = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert not record["complete"]
    assert len(record["rows"]) == 1
    assert "threads" in capsys.readouterr().out


def test_nothing_measured_leaves_nothing(stain_bundle, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise BundleError("no memory")

    monkeypatch.setattr(benchmark_module, "measure_bundle_memory", fail)
    assert run(stain_bundle, "--size", "32x32", "--runs", 1, "--threads", 1, "--out", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert captured.err == "cellvision: no memory\n"
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


WRONG = [
    (["{bundle}", "{tmp}"], "has no manifest.json; need a bundle folder"),
    (["{bundle}", "--images", "{tmp}/absent"], "absent: no such file; need a folder of images"),
    (["{bundle}", "--truth", "{tmp}/labels"], "--truth without --images; need both"),
    (["{bundle}", "--classes", "{tmp}/classes.csv"], "--classes without --truth; need label images beside it"),
    (["{bundle}", "--images", "{tmp}/images", "--truth", "{tmp}/absent.json"], "absent.json"),
    (
        ["{bundle}", "--images", "{tmp}/images/A1.tif", "--truth", "{tmp}/labels"],
        "A1.tif with --truth; need a folder of the images",
    ),
    (["{bundle}", "--images", "{tmp}/images", "--channels", "a,b"], "need nuclei, PI once among them"),
    (["{bundle}", "--provider", "nope"], "unknown provider 'nope'"),
    (["{bundle}", "--out", "{bundle}"], "where a bundle or an image lies; need a folder of its own"),
    (["{bundle}", "--images", "{tmp}/images", "--out", "{tmp}/images"], "where a bundle or an image lies"),
    (["{bundle}", "--images", "{tmp}/images/A1.tif", "--out", "{tmp}/images"], "where a bundle or an image lies"),
    (["{bundle}", "--out", "{tmp}/classes.csv"], "classes.csv is a file; need a folder"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line(stain_bundle, fields, capsys, options, message):
    given = [option.format(bundle=stain_bundle, tmp=fields) for option in options]
    assert run(*given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("cellvision: ")
    assert message in captured.err
    assert sorted(path.name for path in stain_bundle.iterdir()) == ["manifest.json", "model.onnx"]


def test_results_of_another_run_are_not_replaced(stain_bundle, tmp_path, capsys):
    (tmp_path / RESULTS[1]).write_bytes(b"mine")
    assert run(stain_bundle, "--out", tmp_path) == 2
    assert "holds the benchmark.png of another run; need a folder for each run" in capsys.readouterr().err
    assert (tmp_path / RESULTS[1]).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--threads", "1,0", "'1,0' is no list of whole numbers from 1 up like 1,2,4"),
        ("--batch", "two", "is no list of whole numbers"),
        ("--runs", "0", "'0' is no whole number from 1 up"),
        ("--size", "64", "'64' is no height and width like 520x704"),
        ("--size", "0x64", "is no height and width"),
    ],
)
def test_numbers_are_checked(stain_bundle, capsys, option, value, message):
    with pytest.raises(SystemExit) as left:
        run(stain_bundle, option, value)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_bundle_that_the_images_do_not_suit_is_refused_before_any_time_is_spent(fields, tmp_path, quick_memory):
    dtypes = {"input_dtype": "uint8", "image_dtypes": ("uint8",)}
    other = write_bundle(tmp_path / "other", build_graph(input_dtype="uint8"), **dtypes)
    with pytest.raises(BundleError, match=r"A1\.tif is uint16"):
        Benchmark(bundles=[other], images=fields / "images")
    assert quick_memory == []


def test_an_instance_net_in_one_graph_and_in_two(tmp_path, quick_memory, capsys):
    """Both find the same cells; the truth has one more, and the profile of two graphs says which is which."""
    whole, parted = write_dot_bundle(tmp_path / "whole"), write_dot_bundle(tmp_path / "parted", parted=True)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    image = draw_dots((90, 80), [(20, 20), (20, 60), (60, 30)], [9, 8, 9])
    tifffile.imwrite(tmp_path / "images" / "a.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
    truth = Predictor(whole)(image).label_image.astype(np.uint16)
    truth[80:88, 60:70] = 9
    tifffile.imwrite(tmp_path / "labels" / "a.tif", truth)
    options = ["--threads", 1, "--batch", "1,2", "--runs", 3, "--profile", "--out", tmp_path / "out"]
    assert run(whole, parted, "--images", tmp_path / "images", "--truth", tmp_path / "labels", *options) == 0
    record = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    one, two = record["bundles"]["whole"], record["bundles"]["parted"]
    assert one["accuracy"] == two["accuracy"]
    assert one["accuracy"]["instance/ap_dsb_50"] == 0.75
    assert {op["graph"] for op in one["operators"]} == {""}
    assert {op["graph"] for op in two["operators"]} == {"trunk", "masks"}
    assert sum(op["share"] for op in two["operators"]) == pytest.approx(1.0)
    assert "parted" in capsys.readouterr().out


WITHOUT_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchmetrics", "lightning", "onnx", "hydra"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
from cellvision.cli import main
raise SystemExit(main(["benchmark", *sys.argv[1:]]))
"""


def test_it_runs_without_torch(stain_bundle, fields, tmp_path):
    options = ["--images", fields / "images", "--truth", fields / "labels", "--runs", 1, "--threads", 1, "--profile"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, [stain_bundle, *options, "--out", tmp_path / "out"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(RESULTS)
