"""A run of train.py small enough to be repeated many times, with everything that carries state switched on."""

import os
import subprocess
import sys
from pathlib import Path

from forked import ROOT, Script

SETTINGS = [
    "data.datasets.all.fields=12", "+data.datasets.all.height=64", "+data.datasets.all.width=64",
    "+data.datasets.all.cells=[2,4]", "data.augment.crop.size=32", "data.batch_size=2", "data.draws_per_epoch=8",
    "data.workers=0", "model.widths=[4,8]", "trainer.max_epochs=5", "bundle=false", "logger=csv",
]  # fmt: skip
STATEFUL = [
    "callbacks=ema", "~callbacks.pictures", "monitor=val/loss", "monitor_mode=min",
    "data.workers=2", "model.dropout=0.2", "optim.schedule=plateau", "optim.patience=0",
    "optim.warmup=0.2", "trainer.accumulate_grad_batches=2", "trainer.deterministic=true",
    "mixing={_target_: cellvision.data.augment.Mixing, mixup_probability: 0.4, cutmix_probability: 0.4}",
]  # fmt: skip


def start(folder: Path, *settings: str) -> Script:
    """``train.py`` with the toy settings and ``settings``, in the background."""
    return Script(*name_run(folder, *settings))


def name_run(folder: Path, *settings: str) -> list[str]:
    """The command line of such a run."""
    return ["train.py", f"hydra.run.dir={folder}", *SETTINGS, *settings]


def finish(script: Script) -> str:
    """What a run printed, after it ended well."""
    with script:
        return check(script.finish())


def finish_python(*command: object) -> str:
    """The same of a new Python, which imports everything by itself and hashes with a seed of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, command)]
    return check(subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290))


def count_epochs(folder: Path) -> int:
    """How many epochs a run has behind it."""
    path = folder / "history.csv"
    return max(0, len(path.read_text().splitlines()) - 1) if path.exists() else 0


def check(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that ended well printed."""
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed
