"""An exponential moving average of the weights that follows a net whose structure changes while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor


class Ema(EMAWeightAveraging):
    """Lightning's average, which is validated, saved and exported in place of the last weights."""

    @property
    def task(self) -> LightningModule | None:
        """The averaged copy of what is trained; None before that begins."""
        task = None if self._average_model is None else self._average_model.module
        assert task is None or isinstance(task, LightningModule)
        return task

    def refit(self, task: LightningModule, take: Callable[[str, Tensor], Tensor] | None = None) -> None:
        """Go on with the structure that the task's net has by now.

        Args:
            task: with the net as it is now.
            take: what stays of a tensor of the average, by its name in the task. What then has the shape it needs is
                kept; everything else begins anew from the weights of now.
        """
        before = self._average_model
        if before is None:
            return
        self.setup(task.trainer, task, "fit")
        after = self._average_model
        assert after is not None
        values = after.module.state_dict()
        for name, value in before.module.state_dict().items():
            kept = value if take is None else take(name, value)
            if name in values and values[name].shape == kept.shape:
                values[name].copy_(kept)
        after.n_averaged.copy_(before.n_averaged)

    def restart(self, task: LightningModule) -> None:
        """Begin anew with the weights that the task has by now."""
        if self._average_model is not None:
            self.setup(task.trainer, task, "fit")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the average of a run; its net may have been changed since the run began."""
        if self._average_model is not None:
            self.setup(trainer, pl_module, "fit")
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
