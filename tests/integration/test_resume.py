"""Runs killed with SIGKILL at chosen and at random moments, resumed, against one that was never broken."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from toy import STATEFUL, count_epochs, finish, finish_python, name_run, start

from cellvision.training.checkpoint import load_plain_checkpoint
from forked import call


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish_python(*name_run(folder, *STATEFUL))
    return folder


def run_until(folder: Path, reached) -> bool:
    """Resume the run and SIGKILL it as soon as ``reached(seconds since start)``; False if it ended before."""
    with start(folder, *STATEFUL, "resume=auto") as script:
        began = time.monotonic()
        while script.is_alive:
            if reached(time.monotonic() - began):
                script.send_signal(signal.SIGKILL)
                return True
            time.sleep(0.0005)
    return False


def in_checkpoint_write(folder: Path):
    """Or after two epochs, where a busy machine lets those milliseconds pass unseen."""
    written = folder / "checkpoints"
    return lambda _: (
        (any(written.glob(".last.ckpt.*.tmp")) and (written / "previous.ckpt").exists()) or count_epochs(folder) >= 2
    )


def after_epochs(folder: Path, epochs: int):
    return lambda _: count_epochs(folder) >= epochs


def at_random(seed: int):
    moment = random.Random(seed).uniform(0.5, 6.0)
    return lambda seconds: seconds > moment


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (load_plain_checkpoint(run / "checkpoints" / name) for run in (one, other))
        for part in ("state_dict", "current_model_state"):
            assert first[part].keys() == second[part].keys()
            for key, value in first[part].items():
                assert torch.equal(value, second[part][key]), f"{name}: {part} {key}"
        assert first["lr_schedulers"] == second["lr_schedulers"]
        assert first["global_step"] == second["global_step"]
    assert (one / "history.csv").read_text() == (other / "history.csv").read_text()


def test_killed_runs_end_like_an_unbroken_one(unbroken, tmp_path):
    moments = [in_checkpoint_write(tmp_path), after_epochs(tmp_path, 3), at_random(0), at_random(1)]
    kills = sum(run_until(tmp_path, moment) for moment in moments)
    assert kills >= 2
    printed = finish(start(tmp_path, *STATEFUL, "resume=auto"))
    assert "resume: " in printed
    assert not list(tmp_path.glob("checkpoints/.*.tmp"))
    assert_equal_runs(unbroken, tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_told_to_end_says_how_to_go_on(tmp_path, number, status):
    with start(tmp_path, *STATEFUL, "trainer.max_epochs=1000") as script:
        while script.is_alive and not (tmp_path / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.05)
        script.send_signal(number)
        done = script.finish()
    assert done.returncode == status, done
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("stopped by ")]
    assert told.startswith(f"stopped by {number.name}; to go on after the last saved epoch: ")
    assert told.endswith(f"run_dir={tmp_path} resume=auto")
    assert "Traceback" not in done.stdout + done.stderr


def test_two_deterministic_runs_have_equal_weights(unbroken, tmp_path):
    finish(start(tmp_path, *STATEFUL))
    assert_equal_runs(unbroken, tmp_path)


def test_another_seed_gives_other_weights(unbroken, tmp_path):
    finish(start(tmp_path, *STATEFUL, "seed=1", "trainer.max_epochs=1"))
    first, second = (load_plain_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (unbroken, tmp_path))
    assert any(not torch.equal(value, second[key]) for key, value in first.items())


def test_resuming_with_other_settings_is_refused(unbroken):
    before = (unbroken / "run.json").read_text()
    done = call(*name_run(unbroken, *STATEFUL, "resume=auto", "model.widths=[4,16]", "optim.lr=0.5"))
    assert done.returncode == 2
    assert "model.widths: [4, 8] became [4, 16]" in done.stderr
    assert "optim.lr: 0.002 became 0.5" in done.stderr
    assert (unbroken / "run.json").read_text() == before


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    settings = ("logger=csv", "~callbacks.pictures", "callbacks.early_stopping.patience=1", "optim.lr=1e-9")
    finish(start(tmp_path, *settings))
    rows = (tmp_path / "history.csv").read_text()
    assert len(rows.splitlines()) < 6
    finish(start(tmp_path, *settings, "resume=auto"))
    assert (tmp_path / "history.csv").read_text() == rows
