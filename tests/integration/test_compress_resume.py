"""Compression killed with SIGKILL in each of its phases and resumed, against a run that was never broken."""

import signal
import time
from pathlib import Path

import pytest
import torch
from toy import count_epochs, finish, finish_python, start

from cellvision.training.checkpoint import load_net, load_plain_checkpoint
from forked import Script, call

PHASES = {
    "compress": "[prune,distill,qat]",
    "compress.prune.steps": "2",
    "compress.prune.every": "2",
    "compress.prune.epochs": "4",
    "compress.prune.round_to": "1",
    "compress.distill.epochs": "2",
    "compress.qat.epochs": "3",
    "compress.qat.when": "always",
    "compress.qat.freeze_epochs": "1",
    "compress.qat.learned": "true",
}
ALL_EPOCHS = 9
STATEFUL = ["callbacks=compress_ema", "~callbacks.pictures", "logger=csv", "trainer.deterministic=true", "bundle=false"]


def name_compress(checkpoint: Path, folder: Path, *settings: str) -> list[str]:
    """The command line of compress.py with the steps of PHASES."""
    phases = [f"{key}={value}" for key, value in PHASES.items()]
    return ["compress.py", f"ckpt={checkpoint}", f"hydra.run.dir={folder}", *STATEFUL, *phases, *settings]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    finish(start(folder, "trainer.max_epochs=2", "~callbacks.pictures"))
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def unbroken(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish_python(*name_compress(trained, folder))
    return folder


def kill_after(checkpoint: Path, folder: Path, epochs: int) -> None:
    """Resume the run, and SIGKILL it as soon as so many epochs are behind it."""
    with Script(*name_compress(checkpoint, folder, "resume=auto")) as script:
        while script.is_alive and count_epochs(folder) < epochs:
            time.sleep(0.005)
        script.send_signal(signal.SIGKILL)
        done = script.finish()
    assert epochs <= count_epochs(folder) < ALL_EPOCHS, done
    assert done.returncode == -signal.SIGKILL, done


def test_a_run_killed_in_every_phase_ends_like_an_unbroken_one(trained, unbroken, tmp_path):
    for epochs in (1, 3, 5, 8):  # between two cuts, behind them, distilling, and with ranges not frozen yet
        kill_after(trained, tmp_path, epochs)
    finish(Script(*name_compress(trained, tmp_path, "resume=auto")))
    for name in ("prune.ckpt", "distill.ckpt", "quantize.ckpt", "best.ckpt", "last.ckpt"):
        first, second = (load_plain_checkpoint(run / "checkpoints" / name) for run in (unbroken, tmp_path))
        for part in ("state_dict", "current_model_state"):
            assert first[part].keys() == second[part].keys()
            for key, value in first[part].items():
                assert torch.equal(value, second[part][key]), f"{name}: {part} {key}"
        assert first["cellvision"]["recipe"] == second["cellvision"]["recipe"]
        assert first["lr_schedulers"] == second["lr_schedulers"]
    assert (unbroken / "history.csv").read_text() == (tmp_path / "history.csv").read_text()


def test_every_phase_leaves_a_net_of_its_own(trained, unbroken):
    sizes = {}
    for name, steps in {"prune": 1, "distill": 2, "quantize": 3, "best": 3}.items():
        net, record = load_net(unbroken / "checkpoints" / f"{name}.ckpt")
        assert [each["step"] for each in record.recipe] == ["prune", "distill", "quantize"][:steps]
        sizes[name] = sum(parameter.numel() for parameter in net.parameters())
    whole = sum(parameter.numel() for parameter in load_net(trained)[0].parameters())
    assert sizes["prune"] < 0.8 * whole
    assert sizes["distill"] == sizes["prune"] <= sizes["quantize"] == sizes["best"]


def test_other_settings_are_refused_on_resume(trained, unbroken):
    done = call(*name_compress(trained, unbroken, "resume=auto", "compress.prune.macs=0.7"))
    assert done.returncode == 2
    assert "compress.prune.macs: 0.5 became 0.7" in done.stderr


def test_a_run_that_needed_no_training_is_not_trained_when_it_goes_on(trained, tmp_path):
    """Killed behind its last epoch, with epochs of its phase left over, while its bundles are made."""
    command = ["compress.py", f"ckpt={trained}", f"hydra.run.dir={tmp_path}", *STATEFUL, "compress=[qat]"]
    command += ["compress.qat.epochs=3", "compress.qat.tolerance_points=100", "resume=auto"]
    with Script(*command, "bundle=true") as script:
        while script.is_alive and not (tmp_path / "results.json").is_file():
            time.sleep(0.005)
        script.send_signal(signal.SIGKILL)
        done = script.finish()
    assert "no training needed" in done.stdout, done
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    names = ("quantize.ckpt", "best.ckpt", "last.ckpt")
    before = {name: load_plain_checkpoint(tmp_path / "checkpoints" / name) for name in names}
    finish(Script(*command))
    for name, first in before.items():
        second = load_plain_checkpoint(tmp_path / "checkpoints" / name)
        assert first["global_step"] == second["global_step"] == 0
        for part in ("state_dict", "current_model_state"):
            assert first[part].keys() == second[part].keys()
            for key, value in first[part].items():
                assert torch.equal(value, second[part][key]), f"{name}: {part} {key}"
        assert first["cellvision"]["recipe"] == second["cellvision"]["recipe"]
