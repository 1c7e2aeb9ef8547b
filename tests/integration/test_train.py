"""The whole way, small: train.py to pictures, export.py again, and the cellvision command on what they leave behind."""

import csv
import json

import numpy as np
import pytest
import tifffile
from toy import finish, finish_python, name_run, start

from cellvision.bundle import load_manifest
from cellvision.data.livedead import write_livedead_folder
from cellvision.data.synthetic import SyntheticLiveDead
from forked import call


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "first"
    printed = finish_python(*name_run(folder, "bundle=true", "predict=2", "find_lr=true", "trainer.max_epochs=2"))
    return folder, printed


def test_a_run_leaves_everything_it_names(run):
    folder, printed = run
    assert float(printed.split("learning rate found: ")[1].split()[0]) > 0
    for name in ("results.json", "curves.png", "confusion.png", "viability.png", "fields.csv", "history.csv"):
        assert (folder / name).stat().st_size > 0
    assert len(list((folder / "predicted").glob("*_overlay.png"))) == 2
    assert (folder.parent / "latest").resolve() == folder
    results = json.loads((folder / "results.json").read_text())
    assert results["held_out"].keys() >= {"pixel/miou", "cell/f1"}
    assert results["otsu_on_true_cells"]["cell/f1"] == 1.0
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["model"]["widths"] == [4, 8]
    assert record["versions"]["torch"] != "not installed"


def test_the_bundle_carries_what_was_measured(run):
    folder, _ = run
    manifest = load_manifest(folder / "bundle")
    assert manifest.parity["max_difference"] < 1e-3
    assert [channel.name for channel in manifest.channels] == ["hoechst", "calcein", "pi"]
    assert manifest.image_dtypes == ("float32", "uint16")
    assert manifest.accuracy
    assert manifest.splitting.min_area_px > 1


def test_tables_and_label_images_agree(run):
    folder, _ = run
    cells = list(csv.DictReader((folder / "predicted/cells.csv").read_text(encoding="utf-8").splitlines()))
    for path in (folder / "predicted").glob("*_labels.tif"):
        name = path.name.removesuffix("_labels.tif")
        labels = tifffile.imread(path)
        rows = [row for row in cells if row["image"] == name]
        assert [int(row["label"]) for row in rows] == list(range(1, labels.max() + 1))
        assert [int(row["area_px"]) for row in rows] == np.bincount(labels.ravel())[1:].tolist()


def test_export_again_from_the_checkpoint_alone(run, tmp_path):
    folder, _ = run
    words = ("export.py", f"ckpt={folder / 'checkpoints/best.ckpt'}", f"bundle={tmp_path / 'b'}", "input_dtype=uint16")
    made = call(*words)
    assert made.returncode == 0, made.stderr
    assert "largest difference from PyTorch" in made.stdout
    assert load_manifest(tmp_path / "b").image_dtypes == ("uint16",)
    refused = call(*words)
    assert refused.returncode == 2
    assert "overwrite=true" in refused.stderr
    unknown = call(*words, "overwrite=true", "input_dtype=int8")
    assert unknown.returncode == 2
    assert load_manifest(tmp_path / "b").input_dtype == "uint16"


def test_evaluate_scores_the_bundle_on_a_folder(run, tmp_path):
    folder, _ = run
    fields = SyntheticLiveDead(fields=3, height=64, width=64, cells=(3, 4), seed=9)
    write_livedead_folder(fields, tmp_path / "data")
    out = call(
        "-m", "cellvision", "evaluate", "--bundle", folder / "bundle", "--images", tmp_path / "data/images",
        "--labels", tmp_path / "data/labels", "--classes", tmp_path / "data/cells.csv", "--json", tmp_path / "s.json",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["data"]["images"] == 3
    assert "pixel/miou" in scores["scores"]
    assert scores["baseline"]["cell/f1"] > 0


def test_a_folder_that_holds_a_run_is_not_overwritten(run):
    folder, _ = run
    before = (folder / "checkpoints/best.ckpt").read_bytes()
    done = call(*name_run(folder))
    assert done.returncode == 2
    assert "holds a run; need a new folder; try: resume=auto" in done.stderr
    assert (folder / "checkpoints/best.ckpt").read_bytes() == before


def test_export_with_data_of_the_command_line(run, tmp_path):
    folder, _ = run
    write_livedead_folder(
        SyntheticLiveDead(fields=4, height=64, width=64, cells=(3, 4)),
        tmp_path / "d",
        splits={"train": [0, 1], "val": [2, 3]},
    )
    made = call(
        "export.py", f"ckpt={folder / 'checkpoints/best.ckpt'}", f"bundle={tmp_path / 'b'}", "data=livedead",
        f"data.root={tmp_path / 'd'}",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("++optim.lrr=1", "'optim.lrr'"),
        ("++trainer.max_epoch=3", "'trainer.max_epoch'"),
        ("++callbacks.best.x=1", ".x'"),
    ],
)
def test_a_mistyped_setting_is_found_before_any_file_is_read(tmp_path, setting, named):
    failed = call("train.py", f"run_dir={tmp_path / 'run'}", "data=coco", f"data.root={tmp_path / 'nowhere'}", setting)
    assert failed.returncode == 2
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("error: unknown setting ")
    assert named in line


def test_the_end_is_validated_without_callbacks_too(tmp_path):
    settings = ("callbacks=none", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "monitor=val/loss")
    finish(start(tmp_path / "run", *settings))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["monitored"] is not None
    (table,) = (tmp_path / "run").rglob("metrics.csv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    steps = [int(row["epoch"]) for row in rows if row["val/loss"]]
    assert steps == [1, 2]


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    failed = call("export.py", f"ckpt={tmp_path / 'no.ckpt'}", f"bundle={tmp_path / 'b'}")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "b").exists()
