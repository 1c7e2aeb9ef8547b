"""The C++ program gives the files that ``cellvision predict`` gives, and refuses what that refuses."""

import csv
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

import cpp_build
from cellvision.cli import main
from cellvision.runtime.files.claim import LOCK_NAME, claim_folder
from cellvision.runtime.predictor import Predictor
from cpp_vectors import write_vectors
from dot_net import CHANNELS as DOT_CHANNELS
from dot_net import DETECTING, draw_dots, write_dot_bundle
from stain_net import CHANNELS, build_graph, draw_cells, write_bundle

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def built():
    return cpp_build.build()


def predict_cpp(*arguments):
    done = cpp_build.run("cellvision_predict", *arguments)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def write_field(path, image, channels, pixel_size_um=0.5):
    metadata = {"axes": "CYX", "Channel": {"Name": [channel.name for channel in channels]}}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": pixel_size_um, f"PhysicalSize{axis}Unit": "µm"}
    tifffile.imwrite(path, image, ome=True, photometric="minisblack", compression="zlib", metadata=metadata)


def draw_stained(rng, shape, count):
    centres = list(zip(*(rng.integers(0, length, count) for length in shape), strict=True))
    return draw_cells(shape, centres, rng.uniform(4, 12, count), dead=range(0, count, 3))


@pytest.fixture(scope="module")
def stained(tmp_path_factory):
    """A viability bundle and a folder of fields: many cells in many tiles, few, none, and a name to be quoted."""
    folder = tmp_path_factory.mktemp("stained")
    rng = np.random.default_rng(3)
    (folder / "images").mkdir()
    write_bundle(folder / "bundle")
    for name, shape, count in (("crowd", (230, 301), 140), ("few", (97, 133), 9), ('odd, "name"', (64, 50), 3)):
        write_field(folder / "images" / f"{name}.ome.tif", draw_stained(rng, shape, count), CHANNELS)
    write_field(folder / "images" / "none.ome.tif", np.zeros((2, 40, 50), np.uint16), CHANNELS)
    return folder


@pytest.fixture(scope="module", params=["whole", "parted"])
def dotted(request, tmp_path_factory):
    """An instance bundle, in one graph or in two, and a folder of fields."""
    folder = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(4)
    (folder / "images").mkdir()
    write_dot_bundle(folder / "bundle", parted=request.param == "parted")
    for name, shape, count in (("crowd", (150, 170), 55), ("few", (33, 70), 4)):
        places = rng.permutation(shape[0] * shape[1])[:count]
        centres = np.stack(np.divmod(places, shape[1]), axis=1)
        image = draw_dots(shape, centres, rng.uniform(2, 12, count), dead=range(0, count, 4))
        write_field(folder / "images" / f"{name}.tif", image, DOT_CHANNELS)
    write_field(folder / "images" / "none.tif", np.zeros((3, 40, 50), np.uint16), DOT_CHANNELS)
    return folder


def compare_runs(folder, tmp_path, *options):
    """Both programs on one folder; the names of the images."""
    arguments = ["--bundle", folder / "bundle", folder / "images", "--threads", 1, *options]
    assert main([str(word) for word in ("predict", *arguments, "--out", tmp_path / "python")]) == 0
    status, said, complaints = predict_cpp(*arguments, "--out", tmp_path / "cpp")
    assert (status, complaints) == (0, "")
    for path in sorted((tmp_path / "python").glob("*_labels.tif")):
        compare_label_files(path, tmp_path / "cpp" / path.name)
        compare_overlays(path.with_name(path.name.replace("_labels.tif", "_overlay.png")), tmp_path / "cpp")
    for table in ("cells.csv", "fields.csv"):
        expected, found = ((tmp_path / side / table).read_text(encoding="utf-8") for side in ("python", "cpp"))
        assert found == expected
    hidden = [path.name for path in (tmp_path / "cpp").iterdir() if path.name.startswith(".")]
    assert hidden == []
    return said


def compare_label_files(expected_path, found_path):
    with tifffile.TiffFile(expected_path) as expected, tifffile.TiffFile(found_path) as found:
        pages = expected.pages[0], found.pages[0]
        np.testing.assert_array_equal(pages[1].asarray(), pages[0].asarray())
        assert pages[1].dtype == pages[0].dtype
        for tag in ("Compression", "RowsPerStrip", "Software", "XResolution", "YResolution", "ResolutionUnit"):
            values = [page.tags[tag].value if tag in page.tags else None for page in pages]
            if tag.endswith("Resolution"):  # as fractions, which each library chooses
                values = [value and value[0] / value[1] for value in values]
            assert values[1] == (pytest.approx(values[0], rel=1e-6) if tag.endswith("Resolution") else values[0]), tag


def compare_overlays(expected_path, folder):
    expected = np.asarray(Image.open(expected_path))
    found = np.asarray(Image.open(folder / expected_path.name))
    height, width = tifffile.imread(folder / expected_path.name.replace("_overlay.png", "_labels.tif")).shape
    # Python takes rows of two bands for equal where it looks for outlines.
    same = expected[:height, :width] == found[:height, :width]
    assert same.all(axis=-1).mean() > 0.998
    # Below are counts in the colours of their classes: in C++ in plain letters, in Python in those of a font.
    assert list_bright(found[height:]) == list_bright(expected[height:])


def list_bright(legend):
    """Which of red, green and blue the bright pixels have; the edges of smooth letters are darker."""
    pixels = legend.reshape(-1, 3)
    return np.unique(pixels[pixels.max(axis=1) > 150] > 40, axis=0).tolist()


@pytest.mark.parametrize(
    "options", [(), ("--tile-px", 32, "--overlap-px", 16), ("--tile-px", 32, "--overlap-px", 16, "--batch", 3)]
)
def test_viability_files_are_those_of_python(stained, tmp_path, capsys, options):
    said = compare_runs(stained, tmp_path, *options)
    assert said == capsys.readouterr().out
    assert "viability" in said


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--tile-px", 32, "--overlap-px", 16, "--arena", "shrink"),
        ("--tile-px", 32, "--overlap-px", 16, "--batch", 3),
    ],
)
def test_instance_files_are_those_of_python(dotted, tmp_path, capsys, options):
    said = compare_runs(dotted, tmp_path, *options)
    assert said == capsys.readouterr().out
    with (tmp_path / "cpp" / "cells.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) > 30


@pytest.mark.parametrize("parted", [False, True])
def test_no_box_below_the_least_score_becomes_a_cell(dotted, tmp_path, parted):
    """In one graph the graph sees to it, in two the runner; the dot net's whole graph knows nothing of it."""
    counts = []
    for name, least in (("all", 0.0), ("good", 0.6)):
        folder = tmp_path / name
        write_dot_bundle(folder / "bundle", parted=parted, detecting=replace(DETECTING, min_score=least))
        (folder / "images").symlink_to(dotted / "images")
        compare_runs(folder, folder)
        with (folder / "cpp" / "fields.csv").open(encoding="utf-8") as stream:
            counts.append(sum(int(row["cells"]) for row in csv.DictReader(stream)))
    assert counts[1] < 0.7 * counts[0] if parted else counts[1] == counts[0] > 30


@pytest.mark.parametrize("parted", [False, True])
def test_a_tile_without_room_for_all_cells_is_said(dotted, tmp_path, capsys, parted):
    write_dot_bundle(tmp_path / "bundle", parted=parted, detecting=replace(DETECTING, max_cells=5))
    arguments = ["--bundle", tmp_path / "bundle", dotted / "images" / "crowd.tif", "--no-overlay"]
    assert main([str(word) for word in ("predict", *arguments, "--out", tmp_path / "python")]) == 0
    status, _, complaints = predict_cpp(*arguments, "--out", tmp_path / "cpp")
    assert (status, complaints) == (0, capsys.readouterr().err)
    assert "tiles of 64 px hold 5 cells, as many as the bundle finds in one; " in complaints


def test_only_one_run_at_a_time_works_in_a_folder(stained, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "images").mkdir()
    for number in range(10):  # enough to be seen at work on a busy machine too
        (tmp_path / "images" / f"{number}.ome.tif").symlink_to(stained / "images" / "crowd.ome.tif")
    arguments = ["--bundle", stained / "bundle", tmp_path / "images", "--out", out]
    with claim_folder(out):
        status, said, complaints = predict_cpp(*arguments)
        assert (status, said) == (2, "")
        assert f"another run is at work in the folder for results, {out} (process {os.getpid()} of " in complaints
    environment = os.environ | {"CELLVISION_ORT_LIBRARY": str(cpp_build.find_ort_library())}
    command = [cpp_build.build() / "cellvision_predict", *arguments]
    with subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL) as first:
        while not (lock := out / LOCK_NAME).exists() or not lock.read_text():
            assert first.poll() is None
            time.sleep(0.0005)
        first.send_signal(signal.SIGSTOP)
        owner = f"process {first.pid} of {platform.node()}"
        assert lock.read_text() == f"{owner}\n"
        assert main(["predict", *map(str, arguments)]) == 2
        refused = capsys.readouterr().err.partition(": ")[2]
        assert f"{out} ({owner}); need a folder for each run" in refused
        assert predict_cpp(*arguments)[2].partition(": ")[2] == refused
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert sorted(path.name for path in out.glob("*.csv")) == ["cells.csv", "fields.csv"]
    assert not lock.exists()


def test_what_a_killed_run_left_is_taken_over(stained, tmp_path):
    (tmp_path / LOCK_NAME).write_text("process 1 of elsewhere\n")
    status, _, complaints = predict_cpp("--bundle", stained / "bundle", stained / "images", "--out", tmp_path)
    assert (status, complaints) == (0, "")
    assert not (tmp_path / LOCK_NAME).exists()


def test_staged_files_of_killed_processes_are_removed_by_either_program(stained, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    few = stained / "images" / "few.ome.tif"
    for run in ("python", "cpp"):
        out = tmp_path / run
        out.mkdir()
        names = [f".{host}-{ended.pid}-{n}.part" for n, host in enumerate((platform.node(),) * 2 + ("elsewhere",))]
        names.append(f".{platform.node()}-{os.getpid()}-999.part")
        for name in names:
            (out / name).write_text("a")
            os.utime(out / name, (0, 0))
        os.utime(out / names[1])
        arguments = [str(word) for word in ("--bundle", stained / "bundle", few, "--out", out, "--no-overlay")]
        status = predict_cpp(*arguments)[0] if run == "cpp" else main(["predict", *arguments])
        assert status == 0
        assert sorted(path.name for path in out.glob(".*")) == sorted(names[1:])


def test_a_killed_run_leaves_names_that_tell_whose_they_are(stained, tmp_path):
    """The tables are open under names for the time being from the start to the end of a run."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        (tmp_path / "images" / f"{number}.ome.tif").symlink_to(stained / "images" / "crowd.ome.tif")
    out = tmp_path / "out"
    environment = os.environ | {"CELLVISION_ORT_LIBRARY": str(cpp_build.find_ort_library())}
    arguments = ["--bundle", stained / "bundle", tmp_path / "images", "--out", out]
    command = [cpp_build.build() / "cellvision_predict", *arguments]
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL) as run:
            while len(left := list(out.glob(".*.part"))) < 2:
                assert run.poll() is None
                time.sleep(0.0005)
            run.send_signal(number)
            assert run.wait() == status
        assert {path.name.rpartition("-")[0] for path in left} == {f".{platform.node()}-{run.pid}"}
        assert bool(list(out.glob(".*.part"))) == (status < 0)
        shutil.rmtree(out, ignore_errors=True)


def test_an_image_is_left_between_two_of_its_tiles(stained, tmp_path):
    """Of a thousand tiles and more, which all together take a minute."""
    write_field(tmp_path / "large.ome.tif", np.zeros((2, 6000, 6000), np.uint16), CHANNELS)
    environment = os.environ | {"CELLVISION_ORT_LIBRARY": str(cpp_build.find_ort_library())}
    arguments = ["--bundle", stained / "bundle", tmp_path / "large.ome.tif", "--out", tmp_path / "out"]
    command = [cpp_build.build() / "cellvision_predict", *arguments, "--tile-px", 16, "--threads", 1]
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True) as run:
        time.sleep(3)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert run.wait() == 130
        assert time.monotonic() - began < 10
        assert run.stderr.read() == "cellvision_predict: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_tiles_of_a_net_that_looks_at_the_whole_image_are_said(stained, tmp_path, capsys):
    shutil.copytree(stained / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    for exact, notes in ((False, 1), (True, 0)):
        manifest = json.loads(path.read_text()) | {"provenance": {"tiling": {"exact": exact}}}
        path.write_text(json.dumps(manifest))
        for name, count in (("crowd", notes), ("none", 0)):  # the second is smaller than a tile
            out = tmp_path / f"{name}_{exact}"
            arguments = ["--bundle", tmp_path / "bundle", stained / "images" / f"{name}.ome.tif", "--out", out]
            assert main(["predict", *map(str, arguments)]) == 0
            status, _, complaints = predict_cpp(*arguments[:3], "--out", f"{out}_cpp")
            note = f"{name}: note: this net looks at the whole image, and was shown tiles; cells of doubtful score may"
            assert (status, capsys.readouterr().err) == (0, complaints)
            assert complaints.count(note) == count


def test_smaller_tiles_for_little_memory_are_said(tmp_path, capsys):
    """Once, and in the same words; the numbers differ, for each program measures what the net takes."""
    write_bundle(tmp_path / "bundle", tile_px=512)
    (tmp_path / "images").mkdir()
    for name in "ab":
        write_field(tmp_path / "images" / f"{name}.ome.tif", np.zeros((2, 1080, 1080), np.uint16), CHANNELS)
    arguments = ["--bundle", tmp_path / "bundle", tmp_path / "images", "--threads", 1, "--no-overlay", "--memory-mib"]
    for memory_mib, notes in ((14, 1), (1024, 0)):
        assert main([str(w) for w in ("predict", *arguments, memory_mib, "--out", tmp_path / f"py{memory_mib}")]) == 0
        status, _, complaints = predict_cpp(*arguments, memory_mib, "--out", tmp_path / f"cpp{memory_mib}")
        assert status == 0
        note = (
            rf"a: note: \d+ tiles of \d+ px keep within memory_mib={memory_mib}; "
            r"memory_mib=\d+ allows 4 of 512 px, which is faster\n"
        )
        for said in (capsys.readouterr().err, complaints):
            assert re.fullmatch(note * notes, said), said


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is that of Linux")
@pytest.mark.skipif(cpp_build.PRESET == "sanitize", reason="sanitizers take terabytes of addresses")
def test_too_little_memory_is_one_sentence_and_no_file(stained, tmp_path):
    write_field(tmp_path / "large.ome.tif", np.zeros((2, 3000, 3000), np.uint16), CHANNELS)
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (400 * 2**20, 400 * 2**20))  # noqa: E731
    arguments = ["--bundle", stained / "bundle", "--threads", 1, "--no-overlay", "--out", tmp_path / "out"]
    arguments += ["--tile-px", 4096, "--memory-mib", 100_000, tmp_path / "large.ome.tif"]
    done = cpp_build.run("cellvision_predict", *arguments, preexec_fn=limit)
    assert done.returncode == 2
    assert re.fullmatch(r"large: failed\ncellvision_predict: .*memory.*; need .*; try: .*\n", done.stderr.decode())
    assert not any((tmp_path / "out").glob("*"))


def test_sizes_have_the_bounds_of_python(stained, tmp_path, capsys):
    few = stained / "images" / "few.ome.tif"
    for option in ("--tile-px", "--overlap-px", "--memory-mib", "--batch"):
        arguments = ["--bundle", stained / "bundle", few, option]
        for value in (0, 500_000_001, 10**30):
            to = [*arguments, value, "--out", tmp_path / "out"]
            check_refused(tmp_path / "out", *to, names="need a whole number from 1 to 500000000; try: ")
            assert main(["predict", *map(str, to)]) == 2
            assert "need a whole number from 1 to 500000000; try: " in capsys.readouterr().err
    most = max(16, os.cpu_count() or 1)
    for value in (0, most + 1, 1.5):
        to = [*arguments[:3], "--threads", value, "--out", tmp_path / "out"]
        check_refused(tmp_path / "out", *to, names=f"need a whole number from 1 to {most}; try: ")
    assert main(["predict", *map(str, arguments[:3]), "--threads", f"{most + 1}", "--out", f"{tmp_path / 'out'}"]) == 2
    assert f"threads={most + 1}; need a whole number from 1 to {most}; try: " in capsys.readouterr().err
    largest = [*arguments[:3], "--tile-px", 500_000_000, "--memory-mib", 500_000_000, "--batch", 500_000_000]
    assert predict_cpp(*largest, "--out", tmp_path / "a")[0] == 0
    assert main(["predict", *map(str, largest), "--out", str(tmp_path / "b")]) == 0


def test_the_summary_says_what_the_tables_say(stained, tmp_path):
    status, said, _ = predict_cpp(
        "--bundle", stained / "bundle", "--out", tmp_path, "--timing", "--no-overlay", stained / "images"
    )
    assert status == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    with (tmp_path / "fields.csv").open(encoding="utf-8", newline="") as stream:
        fields = {row["image"]: row for row in csv.DictReader(stream)}
    assert set(fields) == {record["image"] for record in summary["images"]} == {"crowd", "few", "none", 'odd, "name"'}
    for record in summary["images"]:
        row = fields[record["image"]]
        assert record["cells"] == int(row["cells"])
        assert record["classes"] == {"live": int(row["live"]), "dead": int(row["dead"])}
        assert sorted(record["seconds"]) == ["cells", "net", "read", "write"]
        assert all(value >= 0 for value in record["seconds"].values())
    assert summary["run"]["provider"] == "cpu"
    for step in ("read ", "net ", "cells ", "write ", "total: open "):
        assert step in said
    assert not list(tmp_path.glob("*_overlay.png"))


def test_other_kinds_of_files_give_the_same_cells(tmp_path):
    """PNG, 8 bits with a factor, and channels in another order that the file or the command line names."""
    facts = {"input_dtype": "float32", "image_dtypes": ("uint8", "uint16", "float32")}
    write_bundle(tmp_path / "bundle", build_graph(input_dtype="float32"), **facts)
    image = draw_stained(np.random.default_rng(8), (120, 90), 20)
    (tmp_path / "images").mkdir()
    write_field(tmp_path / "images" / "turned.ome.tif", image[::-1], CHANNELS[::-1])
    tifffile.imwrite(tmp_path / "images" / "last.tif", np.moveaxis(image, 0, -1), photometric="minisblack")
    tifffile.imwrite(tmp_path / "images" / "float.tif", image.astype(np.float32), photometric="minisblack")
    compare_runs(tmp_path, tmp_path / "one")
    (tmp_path / "two").mkdir()
    eight = tmp_path / "eight"
    (eight / "images").mkdir(parents=True)
    (tmp_path / "bundle").rename(eight / "bundle")
    colour = np.zeros((120, 90, 3), np.uint8)
    colour[..., 1], colour[..., 2] = image[1] // 257, image[0] // 257
    Image.fromarray(colour).save(eight / "images" / "colour.png")
    compare_runs(
        eight, tmp_path / "two", "--channels", "x,PI,nuclei", "--intensity-scale", 257, "--pixel-size-um", 0.55
    )


def check_refused(out, *arguments, names):
    status, said, complaints = predict_cpp(*arguments)
    assert status == 2
    assert said == ""
    last = complaints.strip().splitlines()[-1]
    assert last.startswith("cellvision_predict: ")
    for part in (names, "; need ", "; try: "):
        assert part in last
    assert not out.exists(), "nothing is written"


def test_what_cannot_be_done_is_one_sentence_and_no_file(stained, tmp_path):
    bundle, out = ("--bundle", stained / "bundle"), tmp_path / "out"
    few = stained / "images" / "few.ome.tif"
    to = (*bundle, "--out", out)
    check_refused(out, *to, names="no IMAGE")
    check_refused(out, *bundle, few, names="no --out")
    check_refused(out, *to, few, "--surprise", names="--surprise")
    check_refused(out, *to, few, "--threads", 0, names="--threads 0")
    check_refused(out, *to, few, "--threads", names="--threads")
    check_refused(out, *to, few, "--pixel-size-um", -1, names="--pixel-size-um -1")
    check_refused(out, *to, few, "--pixel-size-um", 6.5e-7, names="6.5e-07; need a number of micrometres from 0.0001")
    check_refused(out, *to, few, "--pixel-size-um", 1e300, names="1e+300; need a number of micrometres from 0.0001")
    check_refused(out, *to, few, "--tile-px", "wide", names="--tile-px wide")
    check_refused(out, *to, few, "--arena", "roman", names="arena=roman")
    check_refused(out, *to, few, "--provider", "abacus", names="abacus")
    lacking = "provider=cuda with an ONNX Runtime that has only "
    check_refused(out, *to, few, "--provider", "cuda", names=lacking)
    check_refused(out, *to, few, "--channels", "nuclei,nuclei", names="nuclei")
    check_refused(out, *to, few, few, names="results of one name")
    check_refused(out, *to, tmp_path / "none.tif", names="no such file")
    check_refused(out, "--bundle", tmp_path, "--out", out, few, names="no manifest.json")
    check_refused(out, *to, few, "--ort-library", few, names="ONNX Runtime")
    broken = tmp_path / "in" / "broken.tif"
    broken.parent.mkdir()
    broken.write_bytes(few.read_bytes()[:500])
    check_refused(out, *to, broken, names="broken.tif")
    tifffile.imwrite(broken, np.zeros((5, 5), np.uint16))
    check_refused(out, *to, broken, names="broken.tif has 1 channels")
    tifffile.imwrite(broken, np.zeros((2, 5, 5), np.uint8), photometric="minisblack")
    check_refused(out, *to, broken, names="broken.tif is uint8, whose counts")


def test_an_altered_bundle_is_refused(tmp_path, stained):
    bundle = write_bundle(tmp_path / "bundle")
    graph = bundle / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    image = stained / "images" / "few.ome.tif"
    check_refused(tmp_path / "out", "--bundle", bundle, "--out", tmp_path / "out", image, names="SHA-256")


def test_what_was_done_before_a_bad_image_stays(stained, tmp_path):
    broken = tmp_path / "in" / "broken.tif"
    broken.parent.mkdir()
    broken.write_bytes(b"II*\0")
    images = (stained / "images" / "few.ome.tif", broken)
    status, said, complaints = predict_cpp("--bundle", stained / "bundle", "--out", tmp_path / "out", *images)
    assert status == 1
    assert said.startswith("few: ")
    assert "1 of 2 images failed" in complaints
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["cells.csv", "few_labels.tif", "few_overlay.png", "fields.csv", "summary.json"]


def test_no_result_is_taken_for_that_of_another_run(stained, tmp_path):
    image = stained / "images" / "few.ome.tif"
    (tmp_path / "cells.csv").write_text("mine")
    status, _, complaints = predict_cpp("--bundle", stained / "bundle", "--out", tmp_path, image)
    assert status == 2
    assert "another run (cells.csv)" in complaints
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"]
    status, _, complaints = predict_cpp("--bundle", stained / "bundle", "--out", image.parent, image)
    assert status == 2
    assert "another folder" in complaints


def test_help_lists_all_options():
    status, said, _ = predict_cpp("--help")
    assert status == 0
    for option in ("--bundle", "--provider-option", "--threads", "--tile-px", "--arena", "--timing", "--no-overlay"):
        assert option in said


def test_every_part_agrees_with_python(tmp_path):
    count = write_vectors(tmp_path)
    done = cpp_build.run("tests/core_vectors", tmp_path)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert f"{count} of {count} cases agree" in done.stdout.decode()


def test_a_c_program_finds_the_same_cells(stained, tmp_path):
    image = draw_stained(np.random.default_rng(9), (150, 110), 30)
    (tmp_path / "counts.raw").write_bytes(image.tobytes())
    done = cpp_build.run("tests/c_interface", stained / "bundle", tmp_path / "counts.raw", 1, *image.shape)
    assert done.returncode == 0, done.stderr
    cells = Predictor(stained / "bundle", threads=1)(image)
    area = cells.area_px.sum()
    assert done.stdout.decode().startswith(f"cells {len(cells)}, labelled pixels {area}, area {area}")
