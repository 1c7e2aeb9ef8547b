"""What a compression begins with: a checkpoint that stays the same one, settings over its data, and a folder."""

import json
import shutil

import pytest
from toy import finish, start

from cellvision.bundle import compute_sha256
from forked import Script, call

SHORT = [
    "compress=[prune]", "compress.prune.epochs=1", "compress.prune.steps=1", "compress.prune.batches=1",
    "compress.prune.round_to=1", "~callbacks.pictures", "logger=csv", "bundle=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained run that the link "latest" beside it leads to, and a compression "small" that took it from there."""
    folder = tmp_path_factory.mktemp("runs")
    finish(start(folder / "base", "trainer.max_epochs=1", "~callbacks.pictures"))
    finish(Script(*name_compress(folder), "data.draws_per_epoch=4", "data.augment.crop.size=64"))
    return folder


def name_compress(runs, *settings):
    ckpt, run_dir = runs / "latest" / "checkpoints" / "best.ckpt", runs / "small"
    return ["compress.py", f"ckpt={ckpt}", f"hydra.run.dir={run_dir}", *SHORT, *settings]


def test_single_settings_are_laid_over_the_data_of_the_run(runs):
    base, small = (json.loads((runs / name / "run.json").read_text())["settings"]["data"] for name in ("base", "small"))
    assert (base["draws_per_epoch"], base["augment"]["crop"]["size"]) == (8, 32)
    assert (small["draws_per_epoch"], small["augment"]["crop"]["size"]) == (4, 64)
    assert small["datasets"] == base["datasets"]


def test_a_link_that_has_moved_on_changes_no_run(runs):
    base = runs / "base" / "checkpoints" / "best.ckpt"
    settings = json.loads((runs / "small" / "run.json").read_text())["settings"]
    assert (settings["ckpt"], settings["ckpt_sha256"]) == (str(base), compute_sha256(base))
    other = runs / "other" / "checkpoints" / "best.ckpt"
    shutil.copytree(runs / "base", runs / "other", dirs_exist_ok=True)
    shutil.copyfile(base.with_name("last.ckpt"), other)  # a net of the same structure
    (runs / "latest").unlink()
    (runs / "latest").symlink_to("other", target_is_directory=True)
    done = call(*name_compress(runs, "resume=auto"))
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(
        f"error: ckpt={other} with SHA-256 {compute_sha256(other)[:12]}..; need {base} with SHA-256 "
    )
    assert said.endswith(f"which the run began with; try: ckpt={base}, or a new run_dir")
    (runs / "small" / "run.json").rename(runs / "small" / "away.json")  # the checkpoint itself knows it too
    done = call(*name_compress(runs, "resume=auto", "data.draws_per_epoch=4", "data.augment.crop.size=64"))
    (runs / "small" / "away.json").rename(runs / "small" / "run.json")
    assert done.returncode == 2
    assert f"error: ckpt_sha256: '{compute_sha256(base)}' became '{compute_sha256(other)}'" in done.stderr


def test_a_run_of_the_other_script_is_not_gone_on_with(runs):
    small, base = (runs / name / "checkpoints" for name in ("small", "base"))
    found = call(*name_compress(runs, "resume=auto", f"hydra.run.dir={runs}/base"))
    assert found.stderr == (
        f"error: resume={base}/last.ckpt, which is of a run of train.py; need one of compress.py; "
        f"try: ckpt={base}/best.ckpt and a new run_dir, to compress it\n"
    )
    found = call("train.py", f"resume={small}/last.ckpt", f"hydra.run.dir={runs}/new")
    assert found.stderr == (
        f"error: resume={small}/last.ckpt, which is of a run of compress.py; need one of train.py; "
        f"try: python compress.py run_dir={runs}/small resume=auto\n"
    )


def test_a_run_that_is_refused_is_not_the_latest(runs):
    before = (runs / "latest_compressed").readlink()
    target = ["compress.prune.macs=null", "compress.prune.latency_ms=1e6"]
    refused = call(*name_compress(runs, f"hydra.run.dir={runs}/refused", *target))
    assert refused.returncode == 2
    assert "which the net meets already" in refused.stderr
    assert (runs / "refused" / "run.json").is_file()
    assert (runs / "latest_compressed").readlink() == before


def test_a_setting_that_the_recorded_data_do_not_have_is_explained(runs):
    done = call(*name_compress(runs, "data.root=elsewhere", "resume=auto"))
    assert done.returncode == 2
    assert "error: data.root, which the recorded data of " in done.stderr
    assert "need one of data.augment, data." in done.stderr
    assert done.stderr.endswith("; try: data=NAME data.root=...\n")


def test_a_run_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    done = call("compress.py", f"run_dir={tmp_path}/file/new")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: cannot make {tmp_path}/file/new (Not a directory); need a run_dir that can be written to; "
        "try: run_dir=runs/another\n"
    )
