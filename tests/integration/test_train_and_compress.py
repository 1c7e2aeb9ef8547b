"""Training and compression in one run of train.py, down to the report and the bundle; and a sweep over ratios."""

import json
from pathlib import Path

import pytest
from toy import finish, name_run, start

from cellvision.bundle import load_manifest
from cellvision.training.checkpoint import load_net
from forked import call

SHORT = [
    "callbacks=compress", "~callbacks.pictures", "bundle=true", "report.tolerance_points=100", "report.samples=2",
    "report.calibration_fields=8", "model.widths=[8,16]", "compress.distill.epochs=1",
]  # fmt: skip
STEPS = [
    "compress=[prune,distill,qat]", "compress.prune.epochs=1", "compress.prune.steps=1", "compress.prune.round_to=1",
    "compress.qat.epochs=1", "compress.qat.when=always", "predict=1", "trainer.max_epochs=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, finish(start(folder, *SHORT, *STEPS))


def test_one_run_trains_compresses_and_reports(run):
    folder, printed = run
    for name, steps in {"base": 0, "prune": 1, "distill": 2, "quantize": 3, "best": 3}.items():
        assert len(load_net(folder / "checkpoints" / f"{name}.ckpt")[1].recipe) == steps
    report = json.loads((folder / "report" / "compression.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["base", "prune", "distill", "quantize", "ptq"]
    for name in ("compression.html", "compression.png", "pareto.png"):
        assert (folder / "report" / name).stat().st_size > 5000
    manifest = load_manifest(folder / "bundle")
    assert manifest.graphs[0].precision == "int8"
    assert [each["step"] for each in manifest.recipe] == ["prune", "distill", "quantize"]
    assert manifest.recipe[1]["teacher"] == "base.ckpt"
    assert "bundle    " in printed
    assert list((folder / "predicted").glob("*_overlay.png"))


def test_what_loses_too_much_is_reported_and_then_an_error(run, tmp_path):
    """The net of a moment ago, which no cut by nine tenths leaves as it was."""
    folder, _ = run
    given = [f"ckpt={folder}/checkpoints/base.ckpt", f"hydra.run.dir={tmp_path}", "compress=[prune]", "logger=csv"]
    given += [
        "compress.prune.macs=0.1",
        "compress.prune.round_to=1",
        "compress.prune.max_ratio=0.97",
        "compress.prune.epochs=1",
        "predict=0",
    ]
    given += ["compress.prune.steps=1", "optim.lr=1e-9", "report.samples=2", "report.ptq=[]", "~callbacks.pictures"]
    done = call("compress.py", *given)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "prune loses" in done.stderr.splitlines()[-1]
    assert Path(tmp_path / "report" / "compression.html").is_file()
    assert (tmp_path / "bundle" / "manifest.json").is_file()


def test_a_net_that_learned_nothing_is_no_teacher(tmp_path):
    done = call(*name_run(tmp_path, *SHORT, "trainer.max_epochs=0", "compress=[distill]"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: trainer.max_epochs=0 with compress.distill.teacher=null; need a net that has")


def test_a_net_is_taught_from_its_first_step_on(run, tmp_path):
    teacher = run[0] / "checkpoints" / "base.ckpt"
    given = ["trainer.max_epochs=0", "compress=[distill]", f"compress.distill.teacher={teacher}", "predict=0"]
    printed = finish(start(tmp_path, *SHORT, *given))
    assert "report    none: trainer.max_epochs=0" in printed
    assert [each["step"] for each in load_manifest(tmp_path / "bundle").recipe] == ["distill"]
