"""Compression killed with SIGKILL in each of its phases and resumed, against a run that was never broken."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import ROOT, SETTINGS, finish, start

from cellvision.training.checkpoint import load_net, load_plain_checkpoint

DATA = [setting for setting in SETTINGS if setting.startswith(("data.", "+data."))]
PHASES = {
    "compress": "[prune,distill,qat]",
    "compress.prune.steps": "2",
    "compress.prune.every": "2",
    "compress.prune.epochs": "4",
    "compress.prune.round_to": "1",
    "compress.distill.epochs": "1",
    "compress.qat.epochs": "3",
    "compress.qat.when": "always",
    "compress.qat.freeze_epochs": "1",
    "compress.qat.learned": "true",
}
STATEFUL = ["callbacks=compress_ema", "~callbacks.pictures", "logger=csv", "trainer.deterministic=true", "bundle=false"]


def start_compress(checkpoint: Path, folder: Path, *settings: str) -> subprocess.Popen:
    """``python compress.py`` with the steps of PHASES, one thread, in the background."""
    phases = [f"{key}={value}" for key, value in PHASES.items()]
    given = [f"ckpt={checkpoint}", f"hydra.run.dir={folder}", *STATEFUL, *phases, *settings]
    return subprocess.Popen(
        [sys.executable, "compress.py", *given],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    finish(start(folder, "trainer.max_epochs=2", "~callbacks.pictures"))
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def unbroken(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start_compress(trained, folder))
    return folder


def count_epochs(folder: Path) -> int:
    path = folder / "history.csv"
    return max(0, len(path.read_text().splitlines()) - 1) if path.exists() else 0


def kill_after(checkpoint: Path, folder: Path, epochs: int) -> None:
    """Resume the run, and SIGKILL it as soon as so many epochs are behind it."""
    with start_compress(checkpoint, folder, "resume=auto") as process:
        while process.poll() is None and count_epochs(folder) < epochs:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        printed, _ = process.communicate(timeout=60)
    assert count_epochs(folder) >= epochs, printed


def test_a_run_killed_in_every_phase_ends_like_an_unbroken_one(trained, unbroken, tmp_path):
    for epochs in (1, 3, 5, 7):  # between two cuts, behind them, distilling, and with ranges not frozen yet
        kill_after(trained, tmp_path, epochs)
    finish(start_compress(trained, tmp_path, "resume=auto"))
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
    with start_compress(trained, unbroken, "resume=auto", "compress.prune.macs=0.7") as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "compress.prune.macs: 0.5 became 0.7" in printed
