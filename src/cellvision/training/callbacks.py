"""What watches a training run: progress for people, and the checkpoint it continues from."""

from __future__ import annotations

import os
import shutil
import sys
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ProgressBar, RichProgressBar

from cellvision.errors import check_choice
from cellvision.training.checkpoint import BEST, LAST, PREVIOUS, remove_drafts
from cellvision.training.gathering import share_buffers


def build_progress() -> Callback:
    """A rich progress bar on a terminal, one line per epoch where the output is a file or a pipe."""
    return EpochBar(leave=True) if sys.stdout.isatty() else EpochLines()


class EpochBar(RichProgressBar):
    """Lightning's bar, which for a run that ends after a number of steps would count "Epoch 3/-2"."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = super()._get_train_description(current_epoch)
        return text if _is_limit(self.trainer.max_epochs) else text.replace("/-2", "").ljust(len(text))


class EpochLines(ProgressBar):
    """Progress as one plain line per epoch: number, time left, losses and scores."""

    def __init__(self) -> None:
        super().__init__()
        self._started, self._first_epoch, self._first_step = 0.0, 0, 0
        self._enabled, self._validated = True, False

    def enable(self) -> None:
        """Print from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing until enabled again."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._started = time.monotonic()
        self._first_epoch, self._first_step = trainer.current_epoch, trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch has scores of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        is_validated, self._validated = self._validated, False
        if not (self._enabled and trainer.is_global_zero) or getattr(pl_module, "ends_now", False):
            return  # an epoch that ends before its first batch has nothing to tell
        seconds = time.monotonic() - self._started
        shown = ("train/loss", *(("val/loss", getattr(pl_module, "monitor", "")) if is_validated else ()))
        scores = trainer.callback_metrics
        values = [f"{name} {float(scores[name]):.4f}" for name in shown if name in scores]
        print("  ".join([*self._count(trainer), *values, self._tell_time(trainer, seconds)]), flush=True)

    def _count(self, trainer: Trainer) -> list[str]:
        """What is done and what is planned: "epoch 3/20", or "epoch 3" and "step 600/9000" where steps end the run."""
        planned = f"/{trainer.max_epochs}" if _is_limit(trainer.max_epochs) else ""
        steps = [f"step {trainer.global_step}/{trainer.max_steps}"] if _is_limit(trainer.max_steps) else []
        return [f"epoch {trainer.current_epoch + 1}{planned}", *steps]

    def _tell_time(self, trainer: Trainer, seconds: float) -> str:
        """Time per epoch, and time left until the first of the limits."""
        epochs, steps = trainer.current_epoch + 1, trainer.global_step
        counts = ((epochs, self._first_epoch, trainer.max_epochs), (steps, self._first_step, trainer.max_steps))
        left = [
            seconds * max(0, limit - done) / (done - first)
            for done, first, limit in counts
            if limit is not None and _is_limit(limit) and done > first
        ]
        pace = f"{seconds / (epochs - self._first_epoch):.1f} s/epoch"
        return f"{pace}, {min(left):.0f} s left" if left else pace


def _is_limit(planned: int | None) -> bool:
    """Whether a run ends after so many epochs or steps; Lightning says None or -1 where it does not."""
    return planned is not None and planned >= 0


class LastValidation(Callback):
    """The end of a run is always validated, and that of each of its phases.

    Also where ``check_val_every_n_epoch`` passes it over or the steps end in the midst of an epoch: else the last
    epochs, or all of a short run, could not become the best, and a run would end with the score of an earlier net.
    Likewise a phase could end without any net of its own, or with one that was cut again since.
    """

    def __init__(self) -> None:
        self._every: int | None = None
        self._goes_on = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have the net validated after the last batch; Lightning does so where a run is asked to stop."""
        done = trainer.current_epoch + 1 if trainer.is_last_batch else None
        is_over = done == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if is_over or done in accumulate(phase.epochs for phase in getattr(pl_module, "phases", ())):
            self._every, self._goes_on = trainer.check_val_every_n_epoch, not is_over
            if self._every is not None:
                trainer.check_val_every_n_epoch = 1
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the next phase."""
        if self._goes_on:
            trainer.check_val_every_n_epoch, trainer.should_stop, self._goes_on = self._every, False, False


class SameNet(Callback):
    """Every process validates the same net, statistics of batch normalisations included; behind all that change it."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take those of the first process, whose net it is that is saved."""
        share_buffers(pl_module)


class BestCheckpoint(Checkpoint):
    """The net with the best validation score so far, in ``best.ckpt``.

    A run of several phases has one for each, named after it, and in the end that of the last one also as ``best.ckpt``.
    Only the score is remembered, never a path, so that a run folder can be moved between two parts of a run.

    Args:
        folder: checkpoint folder of the run.
        monitor: name of the score; an epoch without it (no cell anywhere, say) is passed over.
        mode: "max" or "min".
    """

    def __init__(self, *, folder: str | Path, monitor: str, mode: str = "max") -> None:
        check_choice("monitor_mode", mode, ("max", "min"))
        self.folder = Path(folder)
        self.monitor, self.mode = monitor, mode
        self.score: float | None = None
        self.phase: str | None = None
        self._validated = False

    @property
    def path(self) -> Path:
        """Where the best net of this phase is."""
        return self.folder / (BEST if self.phase is None else f"{self.phase}.ckpt")

    def begin_phase(self, name: str) -> None:
        """Look for the best net of this phase from now on; nothing happens where it has begun already."""
        if name != self.phase:
            self.phase, self.score = name, None

    def forget(self, trainer: Trainer) -> None:
        """Look for the best net of this phase anew: the one so far is not of the net's structure any more."""
        self.score = None
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Keep the best net of the last phase as that of the run, too."""
        best = self.folder / BEST
        if self.phase is not None and self.score is not None:
            draft = best.with_name(f".{BEST}.{os.getpid()}.tmp")
            shutil.copyfile(self.path, draft)
            draft.replace(best)
            self.phase = None

    def state_dict(self) -> dict[str, Any]:
        """The best score, and of which phase."""
        return {"score": self.score, "phase": self.phase}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score up again; see ``on_fit_start``."""
        self.score, self.phase = state_dict["score"], state_dict.get("phase")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a score whose net is not here: a run resumed in another folder begins to look for its best net."""
        if self.score is not None and not trainer.strategy.broadcast(self.path.is_file()):
            self.score = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has scores of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the epoch was validated and is the best."""
        validated, self._validated = self._validated, False
        if not validated:
            return
        scores = trainer.callback_metrics
        if self.monitor not in scores:
            if trainer.is_global_zero and self.score is None:
                known = ", ".join(sorted(name for name in scores if name.startswith("val/")))
                print(f"warning: no score {self.monitor!r} this epoch; there are: {known}", file=sys.stderr)
            return
        found = float(scores[self.monitor])
        if self.score is None or (found > self.score if self.mode == "max" else found < self.score):
            self.save(trainer, found)

    def save(self, trainer: Trainer, score: float) -> None:
        """Keep the net as it is as the best."""
        self.score = score
        trainer.save_checkpoint(self.path)


class EarlyStop(EarlyStopping):
    """Lightning's early stopping, which also stays stopped: a run that had stopped does not train on when resumed."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop again at once."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class LastCheckpoint(Checkpoint):
    """The state after each epoch in ``last.ckpt``, the one before it in ``previous.ckpt``.

    Written after everything else of the epoch has happened, so that a resumed run continues exactly where it stopped;
    two generations, so that a damaged newest file costs one epoch and not the run.

    Args:
        folder: checkpoint folder of the run.
    """

    def __init__(self, *, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear away what a killed run left half written."""
        if trainer.is_global_zero:
            remove_drafts(self.folder)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save; the former newest file becomes the previous one first."""
        last = self.folder / LAST
        if trainer.is_global_zero and last.exists():
            last.replace(self.folder / PREVIOUS)
        trainer.save_checkpoint(last)
