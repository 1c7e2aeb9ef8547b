"""The ``cellvision`` command from the outside: files in, files and exit codes out."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from cellvision.bundle import Splitting
from cellvision.cli import main
from cellvision.data.images import read_label_image
from cellvision.errors import ConfigError
from cellvision.metrics.baseline import OtsuBaseline
from cellvision.metrics.cells import compute_cell_scores, compute_field_score, sum_fields
from cellvision.runtime.predictor import Predictor
from stain_net import CHANNELS, draw_cells, write_bundle

CENTRES = [(15, 15), (15, 60), (50, 20), (50, 75), (80, 45)]


@pytest.fixture
def fields(tmp_path):
    """A folder of two fields, and their truth: label images and a class table."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    rows = []
    for name, dead in (("A1", {0, 3}), ("B2", {2})):
        image = draw_cells((100, 90), CENTRES, 11, dead)
        tifffile.imwrite(images / f"{name}.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
        truth = np.zeros((100, 90), np.uint16)
        for index, (y, x) in enumerate(CENTRES):
            inside = np.zeros_like(truth, bool)
            inside[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13] = True
            truth[inside & (image[0] > 0)] = index + 1
            rows.append((name, index + 1, "dead" if index in dead else "live"))
        tifffile.imwrite(labels / f"{name}.tif", truth)
    with (tmp_path / "classes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label", "class"), *rows])
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def read_table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predict_writes_everything(stain_bundle, fields, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("predict", "--bundle", stain_bundle, fields / "images", "--out", out, "--pixel-size-um", 0.5) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "A1_labels.tif", "A1_overlay.png", "B2_labels.tif", "B2_overlay.png", "cells.csv", "fields.csv",
    ]  # fmt: skip
    assert [(f["image"], f["live"], f["dead"]) for f in read_table(out / "fields.csv")] == [
        ("A1", "3", "2"), ("B2", "4", "1"),
    ]  # fmt: skip
    cells = read_table(out / "cells.csv")
    labels = read_label_image(out / "B2_labels.tif")
    of_b2 = [cell for cell in cells if cell["image"] == "B2"]
    assert [int(c["area_px"]) for c in of_b2] == np.bincount(labels.ravel())[1:].tolist()
    assert [float(c["area_um2"]) for c in of_b2] == [int(c["area_px"]) / 4 for c in of_b2]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("A1: 5 cells, viability 60.0 % (")
    assert captured.err == ""


def test_options_reach_the_predictor(stain_bundle, fields, tmp_path):
    out = tmp_path / "out"
    image = draw_cells((100, 90), CENTRES, 11, {1})
    (tmp_path / "eight").mkdir()
    tifffile.imwrite(tmp_path / "eight" / "c.tif", (image[::-1] // 257).astype(np.uint8), photometric="minisblack")
    options = ["--channels", "PI, nuclei", "--intensity-scale", 257, "--tile-px", 32, "--overlap-px", 16]
    options += ["--threads", 1, "--memory-mib", 100, "--provider", "cpu", "--no-overlay"]
    assert run("predict", "--bundle", stain_bundle, tmp_path / "eight" / "c.tif", "--out", out, *options) == 0
    assert sorted(p.name for p in out.iterdir()) == ["c_labels.tif", "cells.csv", "fields.csv"]
    assert read_table(out / "fields.csv")[0]["dead"] == "1"


def test_one_bad_image_among_many(stain_bundle, fields, tmp_path, capsys):
    (fields / "images" / "A2.tif").write_bytes(b"II*\x00broken")
    (fields / "images" / "empty.png").touch()
    assert run("predict", "--bundle", stain_bundle, fields / "images", "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.out.splitlines()] == ["A1", "B2"]
    errors = captured.err.splitlines()
    assert errors[:2] == ["A2: failed", "empty: failed"]
    assert "A2.tif" in errors[2]
    assert "empty.png is an empty file" in errors[3]
    assert errors[4:] == ["cellvision: 2 of 4 images failed"]
    names = {path.name.split("_")[0] for path in (tmp_path / "out").iterdir()}
    assert names == {"A1", "B2", "cells.csv", "fields.csv"}
    assert [row["image"] for row in read_table(tmp_path / "out" / "fields.csv")] == ["A1", "B2"]


def test_nothing_done_leaves_nothing(stain_bundle, tmp_path, capsys):
    (tmp_path / "bad.tif").write_bytes(b"%PDF-1.7")
    assert run("predict", "--bundle", stain_bundle, tmp_path / "bad.tif", "--out", tmp_path / "out") == 2
    assert "bad.tif is a PDF" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_are_one_line_without_traceback(tmp_path, fields, capsys):
    assert run("predict", "--bundle", tmp_path, fields / "images", "--out", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"cellvision: {tmp_path} has no manifest.json; need a bundle folder; try: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    with pytest.raises(Exception, match=r"has no manifest\.json"):
        run("info", tmp_path, "--debug")


def test_damaged_file_is_one_line_too(stain_bundle, fields, tmp_path):
    path = fields / "images" / "A1.tif"
    path.write_bytes(path.read_bytes()[:-20000])
    command = [sys.executable, "-m", "cellvision", "predict", "--bundle", stain_bundle, path, "--out", tmp_path / "out"]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert [line.split(":")[0] for line in found.stderr.splitlines()] == ["A1", "cellvision"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--provider", "tpu"], "unknown provider 'tpu'; need one of: "),
        (["--threads", "0"], "threads=0; need a whole number from 1 to"),
        (["--tile-px", "-5"], "tile_px=-5; need"),
        (["--memory-mib", "0"], "memory_mib=0; need"),
        (["--arena", "roman"], "unknown arena 'roman'; need one of: keep, none, shrink"),
        (
            ["--provider-option", "device_id=1", "--provider-option", "a=b=c"],
            "provider_options a, device_id with provider=cpu; need none",
        ),
    ],
)
def test_bad_options(stain_bundle, fields, tmp_path, capsys, options, message):
    assert run("predict", "--bundle", stain_bundle, fields / "images", "--out", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_provider_options_reach_the_provider(stain_bundle, fields, tmp_path, capsys, monkeypatch):
    seen = []

    def note(folder, **settings):
        seen.append(settings)
        raise ConfigError("seen")

    monkeypatch.setattr("cellvision.runtime.predictor.open_session", note)
    options = ["--provider", "cuda", "--provider-option", "device_id=1", "--provider-option", "a=b=c"]
    arguments = ["--bundle", stain_bundle, fields / "images", "--out", tmp_path / "out"]
    assert run("predict", *arguments, *options, "--arena", "shrink") == 2
    assert (seen[0]["provider_options"], seen[0]["arena"]) == ({"device_id": "1", "a": "b=c"}, "shrink")
    for wrong in ("device_id", "=1"):
        with pytest.raises(SystemExit):
            run("predict", *arguments, "--provider-option", wrong)
        assert f"'{wrong}' is no KEY=VALUE like device_id=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--pixel-size-um", "0"), ("--intensity-scale", "-1"), ("--channels", "a,b")]
)
def test_bad_meaning_of_an_image(stain_bundle, fields, tmp_path, capsys, option, value):
    image = fields / "images" / "A1.tif"
    assert run("predict", "--bundle", stain_bundle, image, "--out", tmp_path / "out", option, value) == 2
    assert "; need " in capsys.readouterr().err.splitlines()[-1]


def test_results_never_mix_with_inputs(stain_bundle, fields, capsys):
    before = sorted((fields / "images").iterdir())
    assert run("predict", "--bundle", stain_bundle, fields / "images", "--out", fields / "images") == 2
    assert "is that of A1.tif; need another folder" in capsys.readouterr().err
    assert sorted((fields / "images").iterdir()) == before


def test_results_of_two_runs_never_mix(stain_bundle, fields, tmp_path, capsys):
    arguments = ["predict", "--bundle", stain_bundle, "--out", tmp_path / "out", "--no-overlay"]
    assert run(*arguments, fields / "images" / "A1.tif") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert run(*arguments, fields / "images" / "B2.tif") == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert f"{tmp_path / 'out'}, holds those of another run (cells.csv); need a folder for each run" in found.err
    assert found.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_place_that_cannot_be_written_is_named(stain_bundle, fields, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    image = fields / "images" / "A1.tif"
    assert run("predict", "--bundle", stain_bundle, image, "--out", tmp_path / "file") == 2
    assert capsys.readouterr().err.startswith(f"cellvision: {tmp_path / 'file'} is a file; need a folder; try: ")
    assert run("predict", "--bundle", stain_bundle, image, "--out", tmp_path / "file" / "out") == 2
    assert capsys.readouterr().err.startswith("cellvision: cannot write to the folder ")
    # Told before the work and not after it.
    monkeypatch.setattr(Predictor, "predict_with_probabilities", lambda *_, **__: pytest.fail("worked in vain"))
    for target, message in (
        (tmp_path, f"{tmp_path} is a folder; need the name of a file; try: "),
        (tmp_path / "file" / "a.json", f"{tmp_path / 'file'} is a file; need a folder; try: "),
    ):
        options = ["--images", fields / "images", "--labels", fields / "labels", "--json", target]
        assert run("evaluate", "--bundle", stain_bundle, *options) == 2
        assert capsys.readouterr().err.startswith(f"cellvision: {message}")


def test_equal_names_are_told_apart_or_refused(stain_bundle, fields, tmp_path, capsys):
    for plate in ("p1", "p2"):
        (tmp_path / plate).mkdir()
        (tmp_path / plate / "A1.tif").write_bytes((fields / "images" / "A1.tif").read_bytes())
    plates = [tmp_path / "p1", tmp_path / "p2"]
    assert run("predict", "--bundle", stain_bundle, *plates, "--out", tmp_path / "out", "--no-overlay") == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == ["p1_A1_labels.tif", "p2_A1_labels.tif"]
    assert [row["image"] for row in read_table(tmp_path / "out" / "fields.csv")] == ["p1_A1", "p2_A1"]
    capsys.readouterr()
    (tmp_path / "p1" / "A1.png").touch()
    assert run("predict", "--bundle", stain_bundle, tmp_path / "p1", "--out", tmp_path / "other") == 2
    assert "would have results of one name; need names that differ within a run" in capsys.readouterr().err


def test_missing_images_are_named_before_any_work(stain_bundle, fields, tmp_path, capsys):
    missing = [tmp_path / "x.tif", tmp_path / "y.tif"]
    good = fields / "images" / "A1.tif"
    assert run("predict", "--bundle", stain_bundle, good, *missing, "--out", tmp_path / "out") == 2
    assert f"{missing[0]}, {missing[1]}: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_odd_file_names_work_and_cannot_forge_lines(stain_bundle, fields, tmp_path, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    names = ["-leading", "two words", "тест 🧫", "line\nbreak\x1b[31m", "[red]markup[bold]", "CON", "n" * 230]
    for name in names:
        (folder / f"{name}.tif").write_bytes((fields / "images" / "A1.tif").read_bytes())
    assert run("predict", "--bundle", stain_bundle, folder, "--out", tmp_path / "out", "--no-overlay") == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == len(names)
    assert "\x1b" not in captured.out
    assert r"line\nbreak\x1b[31m: 5 cells" in captured.out
    assert {row["image"] for row in read_table(tmp_path / "out" / "fields.csv")} == set(names)


def test_other_pixel_size_is_noted(stain_bundle, fields, tmp_path, capsys):
    arguments = ["predict", "--bundle", stain_bundle, fields / "images" / "A1.tif", "--out", tmp_path / "out"]
    assert run(*arguments, "--pixel-size-um", 1.5) == 0
    assert "A1: note: a pixel is 1.5 um, the bundle was trained at 0.5 um" in capsys.readouterr().err


def test_tiles_of_a_net_that_sees_the_whole_image_are_noted(fields, tmp_path, capsys):
    bundle = write_bundle(tmp_path / "bundle", provenance={"tiling": {"exact": False, "reach_px": None}})
    image = fields / "images" / "A1.tif"
    assert run("predict", "--bundle", bundle, image, "--out", tmp_path / "out", "--no-overlay") == 0
    assert capsys.readouterr().err == ""
    tiled = ["--tile-px", 16, "--overlap-px", 16, "--no-overlay"]
    assert run("predict", "--bundle", bundle, image, "--out", tmp_path / "tiled", *tiled) == 0
    assert "A1: note: this net looks at the whole image, and was shown tiles" in capsys.readouterr().err


def evaluate(bundle, fields, *options):
    target = fields / "scores" / "scores.json"
    code = run("evaluate", "--bundle", bundle, "--images", fields / "images", "--json", target, *options)
    return code, json.loads(target.read_text()) if target.exists() else None


def test_evaluate_against_labels_and_classes(stain_bundle, fields, capsys):
    code, found = evaluate(stain_bundle, fields, "--labels", fields / "labels", "--classes", fields / "classes.csv")
    assert code == 0
    assert found["classes"] == ["background", "live", "dead"]
    assert found["data"]["images"] == 2
    assert len(found["data"]["fingerprint"]) == 64
    assert found["scores"]["cell/f1"] == found["scores"]["cell/live_dead_f1"] == 1.0
    assert found["scores"]["pixel/miou"] > 0.97
    assert found["scores"]["field/viability_error_pp"] == 0.0
    assert [field["image"] for field in found["fields"]] == ["A1", "B2"]
    assert found["fields"][0]["viability"]["true"]["live"] == 3
    printed = capsys.readouterr().out
    assert "cell/live_dead_f1" in printed
    assert "80.0%" in printed


@pytest.mark.parametrize(("margin_px", "area_px"), [(0, 20), (3, 20), (0, 400)])
def test_baseline_in_the_table_is_the_baseline_itself(fields, tmp_path, margin_px, area_px):
    splitting = Splitting(seed_threshold=0.6, min_area_px=area_px)
    bundle = write_bundle(tmp_path / "bundle", nucleus_margin_px=margin_px, splitting=splitting)
    _, found = evaluate(bundle, fields, "--labels", fields / "labels", "--classes", fields / "classes.csv")
    classes = ("background", "live", "dead")
    scores = []
    for name, dead in (("A1", {0, 3}), ("B2", {2})):
        baseline = OtsuBaseline(CHANNELS, expand_px=margin_px, min_area_px=area_px)
        cells = baseline(tifffile.imread(fields / "images" / f"{name}.tif"))
        truth = np.array([2 if i in dead else 1 for i in range(5)])
        labels = read_label_image(fields / "labels" / f"{name}.tif")
        scores.append(
            compute_field_score(
                pred_label_image=cells.label_image,
                pred_classes=cells.cell_classes,
                true_label_image=labels,
                true_classes=truth,
                classes=classes,
                p_live=cells.p_live,
            )
        )
    expected = compute_cell_scores(sum_fields(scores, 3)).to_dict(classes)
    assert {name: found["baseline"][name] for name in expected} == expected
    assert found["fields"][0]["baseline"]["predicted"]["dead"] == (2 if area_px == 20 else 0)


def test_evaluate_counts_wrong_classes(stain_bundle, fields):
    rows = (fields / "classes.csv").read_text().replace("A1,2,live", "A1,2,dead").replace("B2,5,live", "B2,5,uncertain")
    (fields / "classes.csv").write_text(rows)
    _, found = evaluate(stain_bundle, fields, "--labels", fields / "labels", "--classes", fields / "classes.csv")
    assert found["scores"]["cell/f1"] == 1.0
    assert found["scores"]["cell/live_dead_accuracy"] == pytest.approx(8 / 9)
    assert found["fields"][0]["viability"]["error_pp"] == pytest.approx(20.0)
    # The cell whose class nobody knows is neither right nor wrong.
    assert found["fields"][1]["viability"]["predicted"]["live"] == 3


def test_evaluate_without_classes_scores_cells_alone(stain_bundle, fields):
    code, found = evaluate(stain_bundle, fields, "--labels", fields / "labels")
    assert code == 0
    assert found["classes"] == ["background", "cell"]
    assert found["scores"]["cell/f1"] == 1.0
    assert found["baseline"] is None
    assert found["fields"] == []
    assert not [name for name in found["scores"] if "live" in name]


def write_coco(fields, *, categories, of_class):
    annotations, images = [], []
    for index, name in enumerate(("A1", "B2"), start=1):
        labels = read_label_image(fields / "labels" / f"{name}.tif")
        images.append({"id": index, "file_name": f"{name}.tif", "height": 100, "width": 90})
        for row in (r for r in read_table(fields / "classes.csv") if r["image"] == name):
            y, x = np.nonzero(labels == int(row["label"]))
            low, high = (x.min(), y.min()), (x.max() + 1, y.max() + 1)
            corners = [low[0], low[1], high[0], low[1], high[0], high[1], low[0], high[1]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": of_class[row["class"]],
                    "segmentation": [[int(c) for c in corners]],
                    "iscrowd": 0,
                    "area": 1,
                    "bbox": [0, 0, 1, 1],
                }
            )
    tables = {"images": images, "annotations": annotations, "categories": categories}
    (fields / "coco.json").write_text(json.dumps(tables))
    return fields / "coco.json"


def test_evaluate_against_coco(stain_bundle, fields):
    categories = [{"id": 1, "name": "live"}, {"id": 2, "name": "dead"}, {"id": 3, "name": "uncertain"}]
    coco = write_coco(fields, categories=categories, of_class={"live": 1, "dead": 2})
    code, found = evaluate(stain_bundle, fields, "--coco", coco, "--channels", "nuclei:nuclear,PI:dead")
    assert code == 0
    assert found["scores"]["cell/f1"] == found["scores"]["cell/live_dead_f1"] == 1.0
    assert 0.7 < found["scores"]["cell/iou"] < 0.9, "a disc fills pi/4 of its box"
    assert found["baseline"]["cell/f1"] == 1.0


def test_evaluate_against_coco_of_one_category(stain_bundle, fields):
    coco = write_coco(fields, categories=[{"id": 7, "name": "nucleus"}], of_class={"live": 7, "dead": 7})
    assert evaluate(stain_bundle, fields, "--coco", coco)[1]["classes"] == ["background", "cell"]


def test_evaluate_refuses_categories_that_mean_something_else(stain_bundle, fields, capsys):
    categories = [{"id": 1, "name": "alive"}, {"id": 2, "name": "dead"}]
    coco = write_coco(fields, categories=categories, of_class={"live": 1, "dead": 2})
    assert evaluate(stain_bundle, fields, "--coco", coco) == (2, None)
    assert "has the categories alive, dead; need live, dead, or a single category" in capsys.readouterr().err


def test_evaluate_refuses_a_table_that_lacks_cells(stain_bundle, fields, capsys):
    text = (fields / "classes.csv").read_text()
    (fields / "classes.csv").write_text("".join(line for line in text.splitlines(True) if not line.startswith("B2,4")))
    options = ["--labels", fields / "labels", "--classes", fields / "classes.csv"]
    assert evaluate(stain_bundle, fields, *options) == (2, None)
    assert "--classes lists no class for B2, labels 4; need one row per cell" in capsys.readouterr().err


def test_evaluate_takes_a_table_only_where_it_means_something(fields, tmp_path, stain_bundle, capsys):
    categories = [{"id": 1, "name": "live"}, {"id": 2, "name": "dead"}]
    coco = write_coco(fields, categories=categories, of_class={"live": 1, "dead": 2})
    assert evaluate(stain_bundle, fields, "--coco", coco, "--classes", fields / "classes.csv") == (2, None)
    semantic = write_bundle(tmp_path / "bundle", kind="semantic", classes=("background", "round", "flat"))
    options = ["--labels", fields / "labels", "--classes", fields / "classes.csv"]
    assert evaluate(semantic, fields, *options) == (2, None)
    assert capsys.readouterr().err.count("need --labels and a viability bundle beside it") == 2


def test_evaluate_says_what_predict_finds(stain_bundle, fields):
    """Both verbs go through the same predictor; a tile size that cuts every cell changes nothing."""
    _, whole = evaluate(stain_bundle, fields, "--labels", fields / "labels")
    _, tiled = evaluate(stain_bundle, fields, "--labels", fields / "labels", "--tile-px", 8, "--overlap-px", 16)
    assert tiled["scores"] == whole["scores"]
    cells = Predictor(stain_bundle)(tifffile.imread(fields / "images" / "A1.tif"))
    assert len(cells) == 5


def test_info_shows_the_manifest(stain_bundle, capsys):
    for options, words in (([], "method distance"), (["--all"], "method=distance")):
        assert run("info", stain_bundle, *options) == 0
        printed = capsys.readouterr().out
        for each in ("stain_net", "nuclei (nuclear), PI (dead)", "background, live, dead", words):
            assert each in printed


def test_version_and_help_are_fast():
    for arguments in (["--version"], ["predict", "--help"]):
        before = os.times()
        found = subprocess.run(
            [sys.executable, "-m", "cellvision", *arguments], capture_output=True, text=True, check=True
        )
        after = os.times()  # processor time: the clock would tell of what else the machine does
        assert after.children_user + after.children_system - before.children_user - before.children_system < 3
        assert found.stdout
    check = "import sys, cellvision.cli; print(sorted({'numpy', 'onnxruntime', 'rich', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_usage_errors_come_from_the_command_line_parser(capsys):
    with pytest.raises(SystemExit) as stopped:
        run("predict", "a.tif")
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_interrupt_leaves_nothing(stain_bundle, fields, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict_to_folder", interrupt)
    assert run("predict", "--bundle", stain_bundle, fields / "images", "--out", tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err == "cellvision: interrupted\n"
