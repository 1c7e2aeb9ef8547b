"""The one LightningModule: trains any net, scores it by the metrics of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cellvision.bundle import Splitting
from cellvision.data.datamodule import CellDataModule
from cellvision.errors import ConfigError, explain
from cellvision.metrics.instances.coco_ap import PrCurve
from cellvision.models.base import SegNet
from cellvision.models.structure.restore import restore_structure
from cellvision.training.drift import PER_STEP, check_drift
from cellvision.training.field_report import FieldRow
from cellvision.training.net_record import RECORD_KEY, NetRecord
from cellvision.training.optim import Mode, Optim
from cellvision.training.phases import Phase
from cellvision.training.scoring import FieldPrediction, Scores, count_field, predict_field
from cellvision.training.skipped_steps import SkippedSteps
from cellvision.types import Batch

if TYPE_CHECKING:
    from cellvision.data.augment import Mixing

ExtraLoss = Callable[[SegNet, Batch], Tensor]


class SegmentationTask(LightningModule):
    """Trains a net on batches of a CellDataModule.

    Every random number of a step follows from (seed, epoch, batch, rank), so that a killed run, resumed, takes the
    same steps as an unbroken one.

    Args:
        net: what is trained; its kind decides the metrics.
        optim: optimizer and schedule.
        splitting: how cells are separated when scores per cell are computed, and later in the bundle.
        live_threshold: a cell is live where P(live) reaches it.
        mixing: MixUp and CutMix, or None.
        monitor: metric that chooses the best checkpoint, steers early stopping and the plateau schedule.
        monitor_mode: "max" or "min".
        seed: of the run.
        settings: plain data that a resumed run must not change; kept in every checkpoint.
        record: of the checkpoint that ``net`` comes from, with which it goes on; None for a net that begins.
        phases: of the run, each with its own schedule; none for a run of one.

    Attributes:
        helpers: modules that are trained and saved with the net but never exported.

    Raises:
        ConfigError: live_threshold is not between 0 and 1, or images are to be blended for a net that finds cells.
        CellvisionError: when 10 steps in a row have no finite loss or gradient.
    """

    def __init__(
        self,
        *,
        net: SegNet,
        optim: Optim,
        splitting: Splitting,
        live_threshold: float = 0.5,
        mixing: Mixing | None = None,
        monitor: str = "val/pixel/miou",
        monitor_mode: Mode = "max",
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        record: NetRecord | None = None,
        phases: Sequence[Phase] = (),
    ) -> None:
        super().__init__()
        if not 0.0 < live_threshold < 1.0:
            need = "a number between 0 and 1"
            raise ConfigError(explain(got=f"live_threshold={live_threshold}", need=need, hint="live_threshold=0.5"))
        if mixing is not None and mixing.mixup_probability > 0 and net.spec.kind == "instance":
            got = f"mixing.mixup_probability={mixing.mixup_probability} for {net.spec.name}"
            raise ConfigError(explain(got=got, need="cells that can be told apart", hint="mixing.mixup_probability=0"))
        self.net, self.optim, self.splitting, self.mixing = net, optim, splitting, mixing
        self.live_threshold, self.monitor, self.monitor_mode, self.seed = live_threshold, monitor, monitor_mode, seed
        self.scores = nn.ModuleDict(
            {stage: Scores(net.spec, mask_threshold=splitting.foreground_threshold) for stage in ("val", "test")}
        )
        self.settings = dict(settings or {})
        self.record = None if record is None else replace(record, settings=self.settings)
        self.phases, self.helpers = tuple(phases), nn.ModuleDict()
        self.exact_scores: dict[str, float] = {}
        self.confusions: dict[str, np.ndarray] = {}
        self.curves: dict[str, PrCurve] = {}
        self.field_rows: list[FieldRow] = []
        self._extra_losses: dict[str, ExtraLoss] = {}
        self._skipped = SkippedSteps()
        self._validated, self._is_resumed, self.ends_now = False, False, False

    @property
    def lr(self) -> float:
        """Peak learning rate; the learning-rate finder sets it."""
        return self.optim.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optim = self.optim.with_lr(value)

    def add_loss(self, name: str, function: ExtraLoss) -> None:
        """Add ``function(net, batch)`` to the training loss under ``name``: the opening for compression steps."""
        if name in self._extra_losses:
            raise ConfigError(explain(got=f"a second loss {name!r}", need="one of each name", hint="another name"))
        self._extra_losses[name] = function

    def setup(self, stage: str) -> None:
        """Hand the training statistics to the net, once, before any optimizer exists."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CellDataModule):
            data.with_distance = self.net.spec.kind == "viability"
            self.settings[PER_STEP] = data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        if self.record is not None or not isinstance(data, CellDataModule) or data.stats is None:
            return
        self.net.set_statistics(data.stats)
        self.record = NetRecord(
            net=self.net.config,
            channels=data.channels,
            image_dtypes=data.image_dtypes,
            pixel_size_um=data.pixel_size_um,
            splitting=self.splitting,
            live_threshold=self.live_threshold,
            nucleus_margin_px=data.nucleus_margin_px,
            long_cell_px=data.long_cell_px,
            fingerprint=data.fingerprint(),
            settings=self.settings,
        )

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule for the planned number of steps."""
        if PER_STEP in self.settings:
            self.optim = self.optim.scale_lr(self.settings[PER_STEP])
        optimizer = self.optim.build_optimizer(self)
        steps = int(self.trainer.estimated_stepping_batches)
        schedules = self.optim.build_schedules(
            optimizer, total_steps=steps, monitor=self.monitor, mode=self.monitor_mode, phases=self.phases
        )
        return [optimizer], schedules

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule; plateau is stepped in ``on_train_epoch_end``, so that the epoch's checkpoint includes it."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_train_epoch_end(self) -> None:
        """Step the plateau schedule, after an epoch that was validated."""
        metric = self.trainer.callback_metrics.get(self.monitor) if self._validated else None
        self._validated = False
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and metric is not None:
                config.scheduler.step(float(metric))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch; Lightning itself cannot move frozen records."""
        return batch.to(device)

    def on_train_start(self) -> None:
        """Note whether this is a resumed run."""
        self._is_resumed = self.trainer.current_epoch > 0

    def on_train_epoch_start(self) -> None:
        """Begin the first epoch of a resumed run with that epoch's draws.

        Lightning makes the loader's iterator before it restores the epoch, and loader processes fetch ahead at once:
        they would deliver the crops of epoch 0. There is no public call for a new iterator.
        """
        fetcher = self.trainer.fit_loop._data_fetcher
        if self._is_resumed and fetcher is not None:
            iter(fetcher)
        self._is_resumed = False

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Seed dropout and mixing by what step this is, not by what happened before; end the epoch if asked to."""
        if self.ends_now:
            return -1
        torch.manual_seed(self._step_seed(batch_idx))
        return None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The summed losses of a batch, or None to skip a step whose loss is not finite."""
        if self.mixing is not None:
            chance = torch.Generator().manual_seed(self._step_seed(batch_idx))
            batch = self.mixing(batch, chance, classes=len(self.net.spec.classes))
        losses = self.net.losses(batch.images, batch.targets)
        losses |= {name: function(self.net, batch) for name, function in self._extra_losses.items()}
        total = torch.stack(list(losses.values())).sum()
        fine = self._is_finite(total)
        values = "" if fine else ", ".join(f"{name}={value.item():.3g}" for name, value in losses.items())
        if not self._skipped.note_loss(fine, f"loss: {values}; {', '.join(batch.names)}"):
            return None
        size = len(batch.names)
        told: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": size, "sync_dist": True}
        self.log("train/loss", total.detach(), prog_bar=True, **told)
        self.log_dict({f"train/loss_{name}": value.detach() for name, value in losses.items()}, **told)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a step that are not finite: clipping would spread one of them to every weight."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        fine = self._is_finite(norm)
        if not fine:
            optimizer.zero_grad(set_to_none=True)
        self._skipped.note_gradient(fine, f"gradient, epoch {self.current_epoch}")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[FieldPrediction]]:
        """Score a batch of the validation split in single precision, as test does; the fields are in "fields"."""
        return {"fields": self._score(batch, "val")}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[FieldPrediction]]:
        """Score a batch of the test split in single precision, as a bundle computes; the fields are in "fields"."""
        fields = self._score(batch, "test")
        if self.net.spec.kind == "viability":
            self.field_rows += [count_field(field) for field in fields]
        return {"fields": fields}

    def predict_fields(self, batch: Batch) -> list[FieldPrediction]:
        """The fields of a batch in single precision, unscored; not a hook: Lightning cannot pass frozen records on."""
        with torch.autocast(self.device.type, enabled=False):
            return self._predict(batch, self.net.logits(batch.images))

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of an earlier epoch, which Lightning keeps: one without a value now has none."""
        for name in [name for name in self.trainer.callback_metrics if name.startswith("val/")]:
            del self.trainer.callback_metrics[name]

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores."""
        self._validated = True
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the test scores."""
        self._log_scores("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the net's record, so that a checkpoint rebuilds its net without any config."""
        assert self.record is not None, "a checkpoint is only saved by a run that has data"
        plain = self.record.to_plain()
        scores = self.trainer.callback_metrics
        plain["accuracy"] = {name: float(value) for name, value in scores.items() if name.startswith("val/")}
        checkpoint[RECORD_KEY] = plain

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue a run with another net or other data; give the net the structure it had by then."""
        if self.record is None or RECORD_KEY not in checkpoint:
            return
        check_drift(checkpoint[RECORD_KEY], self.record.to_plain())
        recipe = tuple(checkpoint[RECORD_KEY]["recipe"])
        restore_structure(self.net, recipe[len(self.record.recipe) :])
        self.record = replace(self.record, recipe=recipe)

    def _step_seed(self, batch_idx: int) -> int:
        parts = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        return int(np.random.SeedSequence(parts).generate_state(1)[0])

    def _is_finite(self, total: Tensor) -> bool:
        return bool(self.trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(total.detach())), all=True))

    def _score(self, batch: Batch, stage: str) -> list[FieldPrediction]:
        with torch.autocast(self.device.type, enabled=False):
            logits = self.net.logits(batch.images)
            total = torch.stack(list(self.net.losses_from(logits, batch.targets).values())).sum()
            fields = self._predict(batch, logits)
        self.log(f"{stage}/loss", total, on_step=False, on_epoch=True, batch_size=len(batch.names), sync_dist=True)
        for field in fields:
            self._scores(stage).update(field)
        return fields

    def _predict(self, batch: Batch, logits: Mapping[str, Tensor]) -> list[FieldPrediction]:
        outputs = {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in self.net.decode(logits).items()
        }
        return [
            predict_field(
                self.net.spec, batch, i, outputs, splitting=self.splitting, live_threshold=self.live_threshold
            )
            for i in range(len(batch.names))
        ]

    def _log_scores(self, stage: str) -> None:
        scores = self._scores(stage)
        self.exact_scores = scores.compute()  # Lightning keeps single precision
        self.log_dict({f"{stage}/{name}": value for name, value in self.exact_scores.items()}, batch_size=1)
        if stage == "test":  # for the pictures at the end of a run
            self.confusions, self.curves = scores.confusions(), scores.curves(self.splitting.score_threshold)
        scores.reset()

    def _scores(self, stage: str) -> Scores:
        return cast(Scores, self.scores[stage])
