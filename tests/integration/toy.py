"""A run of train.py small enough to be repeated many times, with everything that carries state switched on."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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


def start(folder: Path, *settings: str) -> subprocess.Popen:
    """``python train.py`` with the toy settings and ``settings``, one thread, in the background."""
    command = [sys.executable, "train.py", f"hydra.run.dir={folder}", *SETTINGS, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    """What a run printed, after it ended well."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return printed
