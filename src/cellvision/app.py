"""The one place that knows Hydra: settings in, built parts out, then one call into the library."""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cellvision.composition import build, build_data, check_groups, check_settings, resolve
from cellvision.errors import CellvisionError, ConfigError, explain
from cellvision.settings import collect_fixed
from cellvision.training.stopping import Stopped, stopping

# Torch's worker threads spin while they wait for each other, which on a machine whose cores also run the data loaders
# made a training step two to three times as slow; set before torch is imported, or not at all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from cellvision.data.datamodule import CellDataModule
    from cellvision.export.tensorrt.options import TensorrtOptions
    from cellvision.models.base import SegNet
    from cellvision.training.task import SegmentationTask


def run(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a job; an error that a user can mend is one sentence on stderr and exit status 2.

    So is Ctrl-C, with exit status 130, and SIGTERM, with 143.
    """
    try:
        with stopping():
            return job(cfg)
    except Stopped as stop:
        folder = cfg.get("run_dir")
        print(stop.advise(None if folder is None else Path(folder)), file=sys.stderr)
        sys.exit(stop.exit_status)
    except (CellvisionError, OSError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # An error of a loader process carries that process's traceback; its last line is the error itself.
        print(f"error: {str(error).strip().splitlines()[-1].removeprefix(_prefix(error))}", file=sys.stderr)
        sys.exit(2)


def _prefix(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__name__}: "


def train(cfg: DictConfig) -> float | None:
    """Train, score the held-out fields, export a bundle and draw its predictions.

    Returns:
        The best value of ``cfg.monitor``, which sweepers compare; None where no checkpoint was kept.
    """
    check_settings(cfg)
    folder = _find_run_folder(cfg)
    from lightning.pytorch import seed_everything

    from cellvision.training.checkpoint import choose_resume
    from cellvision.training.find_lr import find_lr
    from cellvision.training.finish import finish_run
    from cellvision.training.record import RunRecord

    _quieten()
    if cfg.seed < 0:
        raise ConfigError(explain(got=f"seed={cfg.seed}", need="a whole number from 0 up", hint="seed=0"))
    resume = choose_resume(cfg.resume, folder / "checkpoints")
    # All settings are checked before a long time goes into reading: names before any file is opened, values before
    # pixels are.
    check_groups(resolve(cfg), ("model", "optim", "trainer", "splitting", "mixing", "callbacks", "logger"))
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg.data)
    task = _build_task(cfg, data)
    trainer = _build_trainer(cfg, folder, record=RunRecord(folder, settings=resolve(cfg), data=data))
    data.setup()
    if cfg.splitting.min_area_px is None:
        task.splitting = replace(task.splitting, min_area_px=max(1, data.small_cell_px // 2))
    if cfg.find_lr and resume is None:
        find_lr(_build_trainer(cfg, folder, record=None), task, data)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    fit_score = task.net.spec.kind == "instance" and cfg.splitting.score_threshold is None
    best = finish_run(trainer, task, data, folder=folder, fit_score=fit_score)
    if cfg.bundle and trainer.is_global_zero:
        if best.checkpoint is None:
            print("bundle    none: no validated checkpoint")
        elif not task.net.spec.exportable:
            print(f"bundle    none: a {task.net.spec.name} net cannot be exported")
        else:
            _bundle_and_predict(cfg, data, best.checkpoint, folder)
    return best.score


def export(cfg: DictConfig) -> None:
    """Make a bundle of a checkpoint, compare it with the net on real samples, and refuse a form that is worse."""
    check_settings(cfg)
    from cellvision.export.checks import check_count, check_switch
    from cellvision.export.graph_options import GraphOptions
    from cellvision.export.progress import PhaseLines
    from cellvision.export.writer import export_checkpoint

    check_count("samples", cfg.samples, least=1)
    check_count("calibration.fields", cfg.calibration.fields, least=1)
    check_switch("overwrite", cfg.overwrite)
    checkpoint = Path(cfg.ckpt)
    engines = None if cfg.get("trt") is None else build(cfg.trt, "trt")
    data = build_data(_find_data_settings(cfg, checkpoint))
    options = GraphOptions(input_dtype=cfg.input_dtype, form=cfg.form, max_cells=cfg.max_cells, min_score=cfg.min_score)
    given: dict[str, Any] = {"options": options, "tolerance": cfg.tolerance, "overwrite": cfg.overwrite}
    if cfg.precision != "fp32" or engines is not None:
        _export_form(cfg, data, engines, checkpoint, given)
        return
    with PhaseLines() as tell:
        tell("reading fields")
        samples = data.collect_held_out(cfg.samples)
        manifest = export_checkpoint(checkpoint, Path(cfg.bundle), samples=samples, tell=tell, **given)
    print(f"bundle {cfg.bundle}: largest difference from PyTorch {manifest.parity['max_difference']:.1e}")


def _export_form(
    cfg: DictConfig, data: CellDataModule, engines: TensorrtOptions | None, checkpoint: Path, given: dict[str, Any]
) -> None:
    from cellvision.bundle import load_manifest
    from cellvision.export.gate.judged import Request, export_judged
    from cellvision.export.gate.table import print_verdict
    from cellvision.export.progress import PhaseLines
    from cellvision.export.quantize.calibration import collect_training_images
    from cellvision.metrics.accuracy import choose_headlines

    if engines is not None and cfg.precision not in ("fp32", engines.precision):
        got = f"precision={cfg.precision} with +trt={engines.precision}"
        raise ConfigError(explain(got=got, need="one precision", hint=f"+trt={cfg.precision} alone"))
    request = Request(
        precision=cfg.precision if engines is None else engines.precision,
        engines=engines,
        calibration=cfg.calibration.method if engines is None else engines.calibration or cfg.calibration.method,
        rounds=cfg.calibration.rounds,
        tolerance_points=cfg.tolerance_points,
        allow_worse=cfg.allow_worse,
    )
    with PhaseLines() as tell:
        tell("reading fields")
        request = replace(request, images=collect_training_images(data, cfg.calibration.fields))
        samples = data.collect_held_out(cfg.samples)
        verdict = export_judged(checkpoint, Path(cfg.bundle), request, samples=samples, tell=tell, **given)
    manifest = load_manifest(Path(cfg.bundle))
    print_verdict(verdict, choose_headlines(manifest.kind, manifest.classes))
    print(f"bundle {cfg.bundle}: {verdict.kept}")
    verdict.raise_if_refused()


def _quieten() -> None:
    """Leave out Lightning's tips and hints; what a user must know is said by this library."""
    warnings.filterwarnings("ignore", module="lightning.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _find_run_folder(cfg: DictConfig) -> Path:
    """Each job of a sweep has its own folder, which only Hydra knows."""
    if HydraConfig.initialized():
        cfg.run_dir = HydraConfig.get().runtime.output_dir
    return Path(cfg.run_dir)


def _build_task(cfg: DictConfig, data: CellDataModule) -> SegmentationTask:
    from cellvision.training.scoring import choose_monitor, choose_splitting
    from cellvision.training.task import SegmentationTask

    given = {"in_channels": len(data.channels), "classes": data.classes}
    net: SegNet = build(cfg.model, "model", **given, kind=cfg.model.get("kind") or data.kind)
    method = cfg.splitting.method or choose_splitting(net.spec)
    min_area_px = 1 if cfg.splitting.min_area_px is None else cfg.splitting.min_area_px
    score = 0.5 if cfg.splitting.score_threshold is None else cfg.splitting.score_threshold
    cfg.monitor = cfg.monitor or choose_monitor(net.spec)
    return SegmentationTask(
        net=net,
        optim=build(cfg.optim, "optim"),
        splitting=build(cfg.splitting, "splitting", method=method, min_area_px=min_area_px, score_threshold=score),
        mixing=build(cfg.mixing, "mixing") if cfg.mixing is not None else None,
        live_threshold=cfg.live_threshold,
        monitor=cfg.monitor,
        monitor_mode=cfg.monitor_mode,
        seed=cfg.seed,
        settings=collect_fixed(resolve(cfg)),
    )


def _build_trainer(cfg: DictConfig, folder: Path, *, record: Callback | None) -> Trainer:
    """Lightning's trainer; without ``record`` a bare one that keeps and shows nothing, for the learning-rate finder."""
    from lightning.pytorch.callbacks import Checkpoint

    from cellvision.training.callbacks import LastValidation
    from cellvision.training.checkpoint import AtomicCheckpointIO

    groups = (
        {"callbacks": cfg.callbacks or {}, "logger": cfg.logger or {}} if record else {"callbacks": {}, "logger": {}}
    )
    callbacks, loggers = (
        [build(node, f"{group}.{name}") for name, node in nodes.items() if node is not None]
        for group, nodes in groups.items()
    )
    given = {"max_epochs": 1000, "enable_progress_bar": False} if record is None else {}
    return build(
        cfg.trainer,
        "trainer",
        callbacks=callbacks + ([LastValidation(), record] if record else []),
        logger=loggers,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **given,
    )


def _bundle_and_predict(cfg: DictConfig, data: CellDataModule, checkpoint: Path, folder: Path) -> None:
    from cellvision.commands.predict import collect_images, predict_images
    from cellvision.data.image_writer import write_image
    from cellvision.export.writer import export_checkpoint
    from cellvision.runtime.predictor import Predictor

    manifest = export_checkpoint(checkpoint, folder / "bundle", samples=data.collect_held_out(4), overwrite=True)
    print(f"bundle    {folder / 'bundle'}  (largest difference from PyTorch {manifest.parity['max_difference']:.1e})")
    if cfg.predict < 1:
        return
    images, out = folder / "held_out", folder / "predicted"
    for earlier in (images, out):  # of the same run, before it was resumed
        shutil.rmtree(earlier, ignore_errors=True)
    images.mkdir()
    for sample in data.collect_held_out(cfg.predict):
        write_image(images / f"{sample.name}.tif", sample, data.channels)
    failed = predict_images(Predictor(folder / "bundle"), collect_images([images], out_dir=out), out)
    if failed:
        raise next(iter(failed.values()))
    print(f"again     cellvision predict --bundle {folder / 'bundle'} {images} --out DIR")
    print(f"pictures  {out}/*_overlay.png")


def _find_data_settings(cfg: DictConfig, checkpoint: Path) -> Any:
    """The data group of the command line, or else the settings of the run that wrote the checkpoint."""
    if not checkpoint.is_file():
        raise ConfigError(
            explain(got=f"no file ckpt={checkpoint}", need="a checkpoint", hint="runs/latest/checkpoints/best.ckpt")
        )
    if cfg.get("data") is not None:
        return cfg.data
    record = checkpoint.parent.parent / "run.json"
    if not record.is_file():
        raise ConfigError(
            explain(
                got=f"no {record} to learn the data from", need="samples to compare on", hint="data=NAME data.root=..."
            )
        )
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))["settings"]["data"]
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
