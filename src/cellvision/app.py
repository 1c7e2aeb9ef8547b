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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra.errors
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cellvision.errors import CellvisionError, ConfigError, explain, unknown_name
from cellvision.settings import check_arguments, check_targets, collect_fixed

# Torch's worker threads spin while they wait for each other, which on a machine whose cores also run the data loaders
# made a training step two to three times as slow; set before torch is imported, or not at all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from cellvision.data.datamodule import CellDataModule
    from cellvision.models.base import SegNet
    from cellvision.training.task import SegmentationTask

ALLOWED_TARGETS = ("cellvision.", "lightning.pytorch.")
"""A ``_target_`` outside these prefixes is refused: settings beside a checkpoint must not run other code."""


def run(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a job; an error that a user can mend is one sentence on stderr and exit status 2."""
    try:
        return job(cfg)
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
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg.data)
    data.setup()
    task = _build_task(cfg, data)
    trainer = _build_trainer(cfg, folder, record=RunRecord(folder, settings=_resolve(cfg), data=data))
    if cfg.find_lr and resume is None:
        find_lr(_build_trainer(cfg, folder, record=None), task, data)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    fit_score = task.net.spec.kind == "instance" and cfg.splitting.score_threshold is None
    best = finish_run(trainer, task, data, folder=folder, fit_score=fit_score)
    if cfg.bundle and best.checkpoint is not None and trainer.is_global_zero:
        if task.net.spec.exportable:
            _bundle_and_predict(cfg, data, best.checkpoint, folder)
        else:
            print(f"bundle    none: a {task.net.spec.name} net cannot be exported")
    return best.score


def export(cfg: DictConfig) -> None:
    """Make a bundle of a checkpoint and compare it with the net on real samples."""
    check_settings(cfg)
    from cellvision.export.graph_options import GraphOptions
    from cellvision.export.writer import export_checkpoint

    checkpoint = Path(cfg.ckpt)
    data = build_data(_find_data_settings(cfg, checkpoint))
    manifest = export_checkpoint(
        checkpoint,
        Path(cfg.bundle),
        samples=data.collect_held_out(cfg.samples),
        options=GraphOptions(
            input_dtype=cfg.input_dtype, form=cfg.form, max_cells=cfg.max_cells, min_score=cfg.min_score
        ),
        tolerance=cfg.tolerance,
        overwrite=cfg.overwrite,
    )
    print(f"bundle {cfg.bundle}: largest difference from PyTorch {manifest.parity['max_difference']:.1e}")


def check_settings(cfg: DictConfig) -> None:
    """Raise ConfigError listing every mandatory setting without a value."""
    if missing := sorted(key for key, value in _walk(cfg, "") if value == "???"):
        got = f"no value for {', '.join(missing)}"
        raise ConfigError(explain(got=got, need="all of them", hint=" ".join(f"{key}=..." for key in missing)))


def build(cfg: Any, key: str, **arguments: Any) -> Any:
    """The object that settings describe; its own errors come out as they were raised.

    Raises:
        ConfigError: a target that is not allowed or does not exist, or arguments that it does not take.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg
    check_targets(plain, key)
    check_arguments(plain, key)
    try:
        return instantiate(plain, _convert_="all", **arguments)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, CellvisionError):
            raise cause from None
        first = str(cause or error).splitlines()[0]
        need = "settings that its class takes"
        raise ConfigError(explain(got=f"{key}: {first}", need=need, hint=f"see conf/{key.split('.')[0]}")) from error


def build_data(node: DictConfig) -> CellDataModule:
    """The data module that a data group describes.

    Settings that the module does not take, such as ``data.root``, are those that others refer to as ``${data.root}``.

    Raises:
        ConfigError: a setting that nothing uses, or one that its class does not take.
    """
    from cellvision.data.datamodule import CellDataModule

    known = [name for name in inspect.signature(CellDataModule.__init__).parameters if name != "self"]
    text = OmegaConf.to_yaml(node, resolve=False)
    variables = [key for key in map(str, node) if key not in known and key != "_target_"]
    for key in variables:
        if f"${{data.{key}}}" not in text:
            raise ConfigError(unknown_name("setting", f"data.{key}", [f"data.{name}" for name in known]))
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return build({key: value for key, value in plain.items() if key not in variables}, "data")


def _quieten() -> None:
    """Leave out Lightning's tips and hints; what a user must know is said by this library."""
    warnings.filterwarnings("ignore", module="lightning.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _walk(node: Any, path: str) -> list[tuple[str, Any]]:
    """(dotted key, value as written) of every leaf; interpolations are not resolved."""
    if isinstance(node, DictConfig) and isinstance(node._value(), dict):
        keys = [str(key) for key in node]
        return [leaf for key in keys for leaf in _walk(node._get_node(key), f"{path}.{key}".lstrip("."))]
    if isinstance(node, ListConfig) and isinstance(node._value(), list):
        return [leaf for at in range(len(node)) for leaf in _walk(node._get_node(at), f"{path}[{at}]")]
    return [(path, node._value())]


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
    min_area_px = cfg.splitting.min_area_px
    if min_area_px is None:
        min_area_px = max(1, data.small_cell_px // 2)
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
        settings=collect_fixed(_resolve(cfg)),
    )


def _build_trainer(cfg: DictConfig, folder: Path, *, record: Callback | None) -> Trainer:
    """Lightning's trainer; without ``record`` a bare one that keeps and shows nothing, for the learning-rate finder."""
    from lightning.pytorch.callbacks import Checkpoint

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
        callbacks=callbacks + ([record] if record else []),
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
    return OmegaConf.create(settings)
