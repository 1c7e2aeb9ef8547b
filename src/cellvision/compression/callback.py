"""The one callback that leads a net through the steps of its compression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cellvision.compression.prune.masks import apply_masks, find_masks
from cellvision.compression.recipe import check_order, plan_phases
from cellvision.compression.run import Measure, Run
from cellvision.compression.step import Step
from cellvision.errors import CellvisionError, ConfigError, explain
from cellvision.training.callbacks import BestCheckpoint, EarlyStop
from cellvision.training.phases import BASE, find_phase
from cellvision.training.task import SegmentationTask


class Compression(Callback):
    """Takes a net through training and the steps, each in a phase of its own.

    In each phase the best net is looked for anew and kept under the phase's name. The task has to have the same
    ``phases``, and the trainer as many epochs. It goes before an average of the weights among the trainer's callbacks,
    which else would see weights that masks hold at zero after they have moved.

    Args:
        steps: in order.
        folder: of the run.
        base_epochs: of training before the first step; 0 where the net comes from a checkpoint.
        start: that checkpoint; None where the net is trained in this run.
        measure_ms: see `Run`.

    Raises:
        ConfigError: steps in an order that cannot work.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        folder: Path,
        base_epochs: int = 0,
        start: Path | None = None,
        measure_ms: Measure | None = None,
    ) -> None:
        check_order(steps)
        self.steps, self.folder, self.start, self.measure_ms = tuple(steps), folder, start, measure_ms
        self.phases = plan_phases(steps, base_epochs=base_epochs)
        self._run: Run | None = None
        self._active: Step | None = None
        self._masks: dict[str, Tensor] = {}

    @property
    def epochs(self) -> int:
        """Of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def run(self) -> Run:
        """Of the fit that is going on."""
        assert self._run is not None
        return self._run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the steps look at the net and the data, before anything is restored or trained."""
        if stage != "fit":
            return
        assert isinstance(pl_module, SegmentationTask)
        check_order(self.steps, () if pl_module.record is None else pl_module.record.recipe)
        if any(isinstance(callback, EarlyStop) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            got, need = "callbacks.early_stopping in a run with compression", "a run that reaches its last step"
            raise ConfigError(explain(got=got, need=need, hint="~callbacks.early_stopping"))
        if not any(isinstance(callback, BestCheckpoint) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            got, need = (
                "callbacks without a BestCheckpoint in a run with compression",
                "one, as each step goes on from it",
            )
            raise ConfigError(explain(got=got, need=need, hint="callbacks=compress"))
        teacher = self.start or self.folder / "checkpoints" / f"{BASE}.ckpt"
        self._run = Run(trainer, pl_module, folder=self.folder, teacher=teacher, measure_ms=self.measure_ms)
        for step in self.steps:
            step.attach(self._run)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there is a score to choose the best net by; a fresh net may have none yet."""
        if self.start is not None and trainer.current_epoch == 0:
            self.run.check_score()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase with the same net in every process, and let its step do what is due."""
        assert isinstance(pl_module, SegmentationTask)
        assert pl_module.record is not None
        phase, epoch = find_phase(self.phases, trainer.current_epoch)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BestCheckpoint):
                callback.begin_phase(phase.name)
        at = self.phases.index(phase)
        if at > 0 and epoch == 0:
            self.run.return_to_best(self.phases[at - 1].name)
        self._active = next((step for step in self.steps if step.name == phase.name), None)
        self.run.share_buffers()
        if self._active is not None:
            self._begin(self._active, epoch, done=[each.name for each in self.phases[:at]])
        self._masks = find_masks(pl_module.net, pl_module.record.recipe)

    def _begin(self, step: Step, epoch: int, *, done: Sequence[str]) -> None:
        """Let a step do what is due; where it cannot, say what there is to go on from."""
        try:
            step.begin_epoch(self.run, epoch)
        except CellvisionError:
            path = self.folder / "checkpoints" / f"{done[-1]}.ckpt" if done else self.folder
            if path.is_file():
                self.run.say(f"{step.name:9} cannot be done so; what was made before it is kept: ckpt={path}")
            raise

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Let the step of this phase change the gradients."""
        if self._active is not None:
            self._active.before_update(self.run)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hold weights at zero that have a mask, whichever step or run laid it."""
        apply_masks(self.run.net, self._masks)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of everything."""
        for step in self.steps:
            step.end_run(self.run)

    def state_dict(self) -> dict[str, Any]:
        """What the steps need to go on."""
        return {step.name: step.state for step in self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the steps go on.

        Raises:
            ConfigError: the checkpoint is of a run of other steps.
        """
        if missing := [step.name for step in self.steps if not isinstance(state_dict.get(step.name), dict)]:
            got = f"a checkpoint of a run without the step {missing[0]}"
            need = f"one of a run of {', '.join(step.name for step in self.steps)}"
            raise ConfigError(explain(got=got, need=need, hint="the steps that the run began with, or a new run"))
        for step in self.steps:
            step.load_state(state_dict[step.name])
