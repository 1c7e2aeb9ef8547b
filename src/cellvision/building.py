"""The parts of a training run, built from settings: data, task, trainer, and the steps of compression."""

from __future__ import annotations

import inspect
import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from cellvision.composition import build, resolve
from cellvision.errors import ConfigError, check_choice, explain
from cellvision.settings import collect_fixed

# Torch's worker threads spin while they wait for each other, which on a machine whose cores also run the data loaders
# made a training step two to three times as slow; set before torch is imported, or not at all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32")
"""That nets are trained in; the last is another name of the first. Weights are always in single precision."""

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from cellvision.compression.callback import Compression
    from cellvision.data.datamodule import CellDataModule
    from cellvision.models.base import SegNet
    from cellvision.training.net_record import NetRecord
    from cellvision.training.task import SegmentationTask


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """The trained net that a run begins with.

    Attributes:
        checkpoint: where it comes from.
        net, record: see ``load_net``.
    """

    checkpoint: Path
    net: SegNet
    record: NetRecord


def load_start(checkpoint: Path, data: CellDataModule) -> Start:
    """Take the net of a checkpoint up again, on data of the channels and classes that it was trained on.

    Raises:
        DataError: the checkpoint cannot be used.
        ConfigError: other channels or classes.
    """
    from cellvision.training.checkpoint import load_net

    net, record = load_net(checkpoint)
    for what, known, given in (
        ("channels", [channel.name for channel in record.channels], [channel.name for channel in data.channels]),
        ("classes", list(net.spec.classes), list(data.classes)),
    ):
        if known != given:
            got = f"data of the {what} {', '.join(given)}"
            need = f"{', '.join(known)}, which the net of {checkpoint} was trained on"
            raise ConfigError(explain(got=got, need=need, hint=f"data.{what}=[{','.join(known)}], or data=null"))
    return Start(checkpoint=checkpoint, net=net.train(), record=record)


def build_compression(cfg: DictConfig, folder: Path, *, start: Start | None) -> Compression | None:
    """What leads the net through the steps of ``cfg.compress``; None where there are none.

    Raises:
        ConfigError: steps that cannot be, or a trainer whose epochs are not the phases'.
    """
    from cellvision.compression.callback import Compression
    from cellvision.export.latency_probe import measure_graph_ms

    nodes = {name: node for name, node in (cfg.get("compress") or {}).items() if node is not None}
    if not nodes:
        return None
    if cfg.trainer.get("max_steps") not in (None, -1):
        got, need = f"trainer.max_steps={cfg.trainer.max_steps} with steps of compression", "a run counted in epochs"
        raise ConfigError(explain(got=got, need=need, hint="trainer.max_steps=-1 compress.prune.epochs=4"))
    if start is None and cfg.trainer.max_epochs == 0 and "distill" in nodes and nodes["distill"].teacher is None:
        got, need = (
            "trainer.max_epochs=0 with compress.distill.teacher=null",
            "a net that has learned to be the teacher",
        )
        raise ConfigError(explain(got=got, need=need, hint="compress.distill.teacher=RUN/checkpoints/best.ckpt"))
    return Compression(
        [build(node, f"compress.{name}") for name, node in nodes.items()],
        folder=folder,
        base_epochs=0 if start else cfg.trainer.max_epochs,
        start=None if start is None else start.checkpoint,
        measure_ms=measure_graph_ms,
    )


def build_task(
    cfg: DictConfig, data: CellDataModule, *, start: Start | None = None, compression: Compression | None = None
) -> SegmentationTask:
    """The task with a fresh net of ``cfg.model``, or with the net of a checkpoint and all that was found out for it."""
    from cellvision.training.scoring import choose_monitor
    from cellvision.training.task import SegmentationTask

    facts = _build_fresh(cfg, data) if start is None else _take_over(start)
    cfg.monitor = cfg.monitor or choose_monitor(facts["net"].spec)
    return SegmentationTask(
        optim=build(cfg.optim, "optim"),
        mixing=build(cfg.mixing, "mixing") if cfg.mixing is not None else None,
        monitor=cfg.monitor,
        monitor_mode=cfg.monitor_mode,
        seed=cfg.seed,
        settings=collect_fixed(resolve(cfg)),
        phases=() if compression is None else compression.phases,
        **facts,
    )


def _build_fresh(cfg: DictConfig, data: CellDataModule) -> dict[str, Any]:
    from cellvision.training.scoring import choose_splitting

    given = {"in_channels": len(data.channels), "classes": data.classes}
    net: SegNet = build(cfg.model, "model", **given, kind=cfg.model.get("kind") or data.kind)
    method = cfg.splitting.method or choose_splitting(net.spec)
    min_area_px = 1 if cfg.splitting.min_area_px is None else cfg.splitting.min_area_px
    score = 0.5 if cfg.splitting.score_threshold is None else cfg.splitting.score_threshold
    splitting = build(cfg.splitting, "splitting", method=method, min_area_px=min_area_px, score_threshold=score)
    return {"net": net, "splitting": splitting, "live_threshold": cfg.live_threshold}


def _take_over(start: Start) -> dict[str, Any]:
    record = start.record
    return {
        "net": start.net,
        "splitting": record.splitting,
        "live_threshold": record.live_threshold,
        "record": record,
    }


def build_trainer(
    cfg: DictConfig, folder: Path, *, record: Callback | None, compression: Compression | None = None
) -> Trainer:
    """Lightning's trainer; without ``record`` a bare one that keeps and shows nothing, for the learning-rate finder."""
    from lightning.pytorch.callbacks import Checkpoint

    from cellvision.training.callbacks import LastValidation, SameNet
    from cellvision.training.checkpoint import AtomicCheckpointIO
    from cellvision.training.distributed import Together, check_processes

    if (precision := cfg.trainer.get("precision")) is not None:
        check_choice("trainer.precision", str(precision), PRECISIONS)
    groups = (
        {"callbacks": cfg.callbacks or {}, "logger": cfg.logger or {}} if record else {"callbacks": {}, "logger": {}}
    )
    callbacks, loggers = (
        [build(node, f"{group}.{name}") for name, node in nodes.items() if node is not None]
        for group, nodes in groups.items()
    )
    given: dict[str, Any] = {"max_epochs": 1000, "enable_progress_bar": False} if record is None else {}
    if compression is not None and record is not None:
        given["max_epochs"] = compression.epochs
        callbacks.insert(0, compression)
    trainer: Trainer = build(
        cfg.trainer,
        "trainer",
        callbacks=callbacks + ([Together(folder=folder), SameNet(), LastValidation(), record] if record else []),
        logger=loggers,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **given,
    )
    check_processes(trainer)
    return trainer


def quieten() -> None:
    """Leave out Lightning's tips and hints; what a user must know is said by this library."""
    warnings.filterwarnings("ignore", module="lightning.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def is_lead() -> bool:
    """Whether this is the process that speaks for all of a run, also before there is a trainer to ask."""
    from lightning.pytorch.utilities import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def say_once(line: str) -> None:
    """Print a line, in the lead process only."""
    if is_lead():
        print(line, flush=True)


def find_data_settings(cfg: DictConfig, checkpoint: Path) -> Any:
    """The data group of the command line, or else the settings of the run that wrote the checkpoint.

    Raises:
        ConfigError: no checkpoint, or no settings of its run beside it.
    """
    from cellvision.training.checkpoint import is_archive

    if not checkpoint.is_file():
        got = f"{'a folder as' if checkpoint.is_dir() else 'no file'} ckpt={checkpoint}"
        raise ConfigError(explain(got=got, need="a checkpoint", hint="runs/latest/checkpoints/best.ckpt"))
    if cfg.get("data") is not None:
        return cfg.data
    if not is_archive(checkpoint):
        got, need = f"ckpt={checkpoint}, which is truncated or no checkpoint", "one of train.py"
        raise ConfigError(explain(got=got, need=need, hint="runs/latest/checkpoints/best.ckpt"))
    record = checkpoint.parent.parent / "run.json"
    if not record.is_file():
        need = "the data that the net is for"
        raise ConfigError(explain(got=f"no {record} to learn the data from", need=need, hint="data=NAME data.root=..."))
    try:
        settings = dict(json.loads(record.read_text(encoding="utf-8"))["settings"]["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            explain(got=f"{record} cannot be read", need="that of train.py", hint="data=NAME data.root=...")
        ) from error
    if "${" in json.dumps(settings):
        raise ConfigError(
            explain(got=f"{record} with interpolations", need="plain values", hint="data=NAME data.root=...")
        )
    from cellvision.data.datamodule import CellDataModule

    # Settings that only others referred to, such as data.root, are resolved there and mean nothing any more.
    known = {"_target_", *inspect.signature(CellDataModule.__init__).parameters}
    return OmegaConf.create({key: value for key, value in settings.items() if key in known})
