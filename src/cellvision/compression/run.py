"""What a step of compression can do with the run that it is part of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from cellvision.compression.distill.adapters import Adapter
from cellvision.compression.prune.cut import Cut
from cellvision.compression.prune.statistics import refresh_batch_norm
from cellvision.data.datamodule import CellDataModule
from cellvision.errors import CellvisionError, ConfigError, explain
from cellvision.models.base import SegNet
from cellvision.training.averaging import Ema
from cellvision.training.callbacks import BestCheckpoint
from cellvision.training.checkpoint import NET_PREFIX, load_plain_checkpoint, replace_in_record
from cellvision.training.gathering import share_buffers
from cellvision.training.scoring import choose_monitor
from cellvision.training.task import SegmentationTask
from cellvision.training.validating import SCORED, count_cells, score_net
from cellvision.types import Batch

LARGEST_FIELD_PX = 512
"""An edge of what is counted of a field, as in reports."""

Measure = Callable[[SegNet, Tensor, int | None], float]
"""Latency in ms of a net on an image (1, C, H, W) with so many cells, None for nets that draw no masks of each."""

T = TypeVar("T")


class Run:
    """A training run, as steps of compression see it.

    Args:
        trainer: before or while it fits.
        task: what it fits.
        folder: of the run, for what steps draw and tell.
        teacher: checkpoint of the net before the first step; made in the course of the run where that is trained in it.
        measure_ms: on this machine, of the net as it will be used.
    """

    def __init__(
        self,
        trainer: Trainer,
        task: SegmentationTask,
        *,
        folder: Path,
        teacher: Path,
        measure_ms: Measure | None = None,
    ) -> None:
        self.trainer, self.task, self.folder, self.teacher = trainer, task, folder, teacher
        self._measure_ms = measure_ms
        self._scores: dict[str, float] = {}
        self._earlier = 0 if task.record is None else len(task.record.recipe)

    @property
    def net(self) -> SegNet:
        """Being compressed."""
        return self.task.net

    @property
    def data(self) -> CellDataModule:
        """What it is trained on."""
        data: Any = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, CellDataModule)
        return data

    @property
    def is_lead(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.trainer.is_global_zero

    def broadcast(self, value: T) -> T:
        """The value of the lead process, in every process."""
        return self.trainer.strategy.broadcast(value)

    def ask_lead(self, ask: Callable[[], T]) -> T:
        """What the lead process finds, in every process; so are its errors, as the others would wait for it else."""
        found: T | None = None
        error: CellvisionError | None = None
        if self.is_lead:
            try:
                found = ask()
            except CellvisionError as raised:
                error = raised
        found, error = self.broadcast((found, error))
        if error is not None:
            raise error
        assert found is not None
        return found

    def say(self, line: str) -> None:
        """Print a line, once."""
        if self.is_lead:
            print(line, flush=True)

    def batches(self, count: int) -> list[Batch]:
        """The first training batches of the epoch that begins, on the net's device; other ones in each process."""
        found = self.data.collect_batches(count, epoch=self.trainer.current_epoch)
        return [batch.to(self.task.device) for batch in found]

    def sample_image(self) -> Tensor:
        """(1, C, H, W) raw counts: a training crop of the first epoch, the same in every process."""
        (batch,) = self.data.collect_batches(1, epoch=0)
        return self.broadcast(batch.images[:1]).to(self.task.device)

    def field_image(self) -> Tensor:
        """(1, C, H, W) raw counts: a corner of the first held-out field, whose costs stand for those of all."""
        (sample,) = self.data.collect_held_out(1)
        return torch.from_numpy(sample.image[:, :LARGEST_FIELD_PX, :LARGEST_FIELD_PX])[None].to(self.task.device)

    def check_monitor(self, setting: str) -> None:
        """Raise ConfigError where the monitored score is none that is measured between two epochs.

        Args:
            setting: what needs it so.
        """
        if not self.task.monitor.startswith(SCORED):
            got = f"monitor={self.task.monitor} with {setting}, which scores the net between two epochs"
            need = f"a score of cells or pixels ({', '.join(f'{name}..' for name in SCORED)})"
            raise ConfigError(explain(got=got, need=need, hint="monitor=null"))

    def check_score(self) -> None:
        """Raise ConfigError where the net that a run begins with has no score of the name that was chosen."""
        monitor = self.task.monitor
        if monitor == choose_monitor(self.net.spec) or monitor.startswith("val/loss"):
            return
        scores = score_net(self.task, self.data.val_dataloader(workers=0))
        if monitor not in scores:
            got = f"monitor={monitor}, of which the net to be compressed has no score"
            raise ConfigError(explain(got=got, need=f"one of {', '.join(sorted(scores))}", hint="monitor=null"))

    def score(self, net: SegNet | None = None) -> float:
        """The monitored score on the validation fields, of the net as it is or of another one in its place.

        It has the digits of a single-precision number, as those of epochs, which Lightning keeps so.

        Raises:
            ConfigError: it is no score of the net itself.
        """
        own = self.task.net
        try:
            self.task.net = own if net is None else net
            found = score_net(self.task, self.data.val_dataloader(workers=0))
        finally:
            self.task.net = own
        scores = {name: float(np.float32(value)) for name, value in found.items()}
        if self.task.monitor not in scores:
            got = f"monitor={self.task.monitor}, which is not measured between two epochs"
            raise ConfigError(explain(got=got, need=f"one of {', '.join(sorted(scores))}", hint="monitor=null"))
        if net is None:
            self._scores = scores
        return scores[self.task.monitor]

    def count_cells(self, image: Tensor) -> int | None:
        """How many cells the net as it is finds in an image (1, C, H, W); None for one that draws no masks of each."""
        return count_cells(self.task, image)

    def measure_ms(self, net: SegNet, image: Tensor, cells: int | None) -> float:
        """Latency in ms of a net on this machine, as it will be used.

        Args:
            net: that may find no cells yet, or too many.
            image: (1, C, H, W) raw counts.
            cells: that it is to draw masks of; see `count_cells`.

        Raises:
            ConfigError: this run cannot measure.
        """
        if self._measure_ms is None:
            got, need = "a latency to be met", "a run that can measure"
            raise ConfigError(explain(got=got, need=need, hint="compress.py, or Compression(measure_ms=...)"))
        return self._measure_ms(net, image, cells)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Let the checkpoints tell what a step of this run has done so far: plain data, with its name as "step"."""
        known = self.task.record
        assert known is not None
        earlier, own = known.recipe[: self._earlier], known.recipe[self._earlier :]
        kept = tuple(each for each in own if each["step"] != record["step"])
        self.task.record = replace(known, recipe=(*earlier, *kept, dict(record)))

    def changed(
        self, *, cut: Cut | None = None, replaced: Mapping[nn.Parameter, tuple[str, nn.Parameter]] | None = None
    ) -> None:
        """Let everything that holds on to the net's parameters follow, after its structure was changed.

        Optimizers go on with what they remember of what stays, averages are cut alike, processes exchange the gradients
        of the new parameters, and no score from before is the best any more.

        Args:
            cut: what was taken from the net; None where nothing was.
            replaced: of ``Cut.apply``.
        """
        for optimizer in self.trainer.optimizers:
            if cut is not None:
                cut.carry_optimizer(optimizer, replaced or {})
            self.task.optim.refit(optimizer, self.task)
        for helper in self.task.helpers.values():
            if cut is not None and isinstance(helper, Adapter):
                helper.follow(cut.kept)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Ema):
                callback.refit(self.task, None if cut is None else _take_named(cut))
            elif isinstance(callback, BestCheckpoint):
                callback.forget(self.trainer)
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):  # else gradients of new parameters would not be exchanged, silently
            strategy.model = self.task
            strategy.configure_ddp()

    def share_buffers(self) -> None:
        """Give every process the lead's buffers: statistics that each took from its own batches."""
        share_buffers(self.net)

    def refresh_statistics(self, batches: Sequence[Batch]) -> None:
        """Take the statistics of batch normalisations anew, of the net and of averages, each by its own weights."""
        for net in (self.net, *self._find_averages()):
            refresh_batch_norm(net, [batch.images for batch in batches])
            share_buffers(net)

    def _find_averages(self) -> list[SegNet]:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        found = [callback.task for callback in callbacks if isinstance(callback, Ema)]
        return [task.net for task in found if isinstance(task, SegmentationTask)]

    def return_to_best(self, phase: str) -> None:
        """Go on from the best net of a phase that has ended, in every process; where none was kept, from the last.

        Optimizers keep their moments; averages of the weights begin anew.
        """
        path = self.folder / "checkpoints" / f"{phase}.ckpt"
        weights = self.ask_lead(lambda: _read_weights(path) if path.is_file() else {})
        if not weights:
            self.say(f"{phase:9} no best net was kept: going on from the last")
            return
        self.net.load_state_dict(weights)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Ema):
                callback.restart(self.task)

    def keep(self, score: float) -> None:
        """Keep the net as it is as the best of this phase, until an epoch has a better score."""
        known = self._scores.get(self.task.monitor) == score
        for best in self._list_best():
            best.save(self.trainer, score)
            if self.is_lead:  # what was saved as its scores is of the epoch before
                replace_in_record(best.path, accuracy=self._scores if known else {self.task.monitor: score})

    def is_best(self, score: float) -> bool:
        """Whether the net that was kept with this score is still the best of its phase."""
        return any(best.score == score for best in self._list_best())

    def stop(self, why: str, *, score: float) -> None:
        """End training with the net as it is, which is kept as the best of this phase."""
        self.say(why)
        self.keep(score)
        self.task.ends_now = self.trainer.should_stop = True

    def _list_best(self) -> list[BestCheckpoint]:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, BestCheckpoint)]


def _take_named(cut: Cut) -> Callable[[str, Tensor], Tensor]:
    """What stays of a tensor of the task, by its name there."""
    return lambda name, value: cut.take(name.removeprefix("net."), value)


def _read_weights(path: Path) -> dict[str, Tensor]:
    state = load_plain_checkpoint(path)["state_dict"]
    return {key.removeprefix(NET_PREFIX): each for key, each in state.items() if key.startswith(NET_PREFIX)}
