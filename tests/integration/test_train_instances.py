"""A whole run with a net that finds cells: trained, its threshold fitted, every score again from its files."""

import json
import shlex
from dataclasses import asdict

import pytest

from cellvision.training.checkpoint import load_net
from forked import call

TINY = [
    "model=centermask2_lite", "model.backbone=vovnet19_slim_dw", "model.fpn_channels=32", "model.levels=[2,3,4]",
    "model.top_levels=0", "model.roi_levels=[2,3]", "model.assigning.sizes_of_interest=[24,48]",
    "model.decoding.score_threshold=0.001", "model.decoding.post_nms=60",
    "data=synthetic_cells", "data.datasets.all.fields=8", "+data.datasets.all.height=64", "+data.datasets.all.width=64",
    "data.datasets.all.cells=[8,12]", "data.fractions={train: 0.5, val: 0.25, test: 0.25}", "data.datasets.all.seed=1",
    "data.augment.crop.size=64",
    "data.batch_size=3", "data.workers=0", "trainer.max_epochs=2", "logger=csv",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    done = call("train.py", f"run_dir={folder}", *TINY)
    assert done.returncode == 0, done.stderr
    assert f"bundle    {folder / 'bundle'}  (largest difference from PyTorch " in done.stdout
    assert "net       random; norm batch, which is trained" in done.stdout
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_the_run_leaves_predictions_truth_and_pictures(folder):
    for name in (
        "predictions.json", "truth.json", "cells.png", "errors.png", "pr_curves.png", "curves.png", "confusion.png",
        "pictures/epoch_001.png", "results.json",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0
    results = json.loads((folder / "results.json").read_text())
    scores = results["held_out"]
    assert {"mask/ap", "box/ap50", "mask/afnr", "instance/ap_dsb_50", "instance/pq", "pixel/miou"} <= scores.keys()
    assert "pixel/auroc_foreground" not in scores
    assert all(0 <= scores[name] <= 1 for name in ("mask/ap", "instance/ap_dsb_50"))
    assert results["fields"] == 2


def test_the_fitted_threshold_is_in_the_checkpoint_and_the_results(folder):
    net, record = load_net(folder / "checkpoints" / "best.ckpt")
    assert net.spec.kind == "instance"
    assert record.splitting.method == "instances"
    assert 0 < record.splitting.score_threshold < 1
    assert json.loads((folder / "results.json").read_text())["splitting"] == asdict(record.splitting)


def test_the_printed_command_gives_every_score_of_cells_again(folder):
    command = next(line for line in (folder / "output.txt").read_text().splitlines() if line.startswith("again "))
    out = folder / "again.json"
    words = shlex.split(command.removeprefix("again"))
    done = call("-m", *words, "--out", str(out))
    assert done.returncode == 0, done.stderr
    again = json.loads(out.read_text())["scores"]
    scores = json.loads((folder / "results.json").read_text())["held_out"]
    cells = {name: value for name, value in scores.items() if name.startswith(("mask/", "box/", "instance/"))}
    assert cells["instance/pred_count"] > 0
    assert {name: again[name] for name in cells} == pytest.approx(cells, abs=1e-9)
