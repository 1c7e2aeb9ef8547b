"""What a finished run hands over: a bundle, what it predicts, and the report of a compression."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cellvision.composition import resolve
from cellvision.errors import ConfigError, explain
from cellvision.small_net import try_scratch

if TYPE_CHECKING:
    from cellvision.compression.callback import Compression
    from cellvision.data.datamodule import CellDataModule
    from cellvision.training.task import SegmentationTask

PARITY_FIELDS = 4

MADE = ("report", "scratch", "held_out", "predicted", "results.json")
"""What a run makes in its folder, besides the bundle; earlier ones of the same run are replaced."""


def check_delivery(cfg: DictConfig, folder: Path, *, compression: Compression | None) -> None:
    """Raise ConfigError, before anything is trained, where the bundle or the report could not be made in the end.

    Args:
        cfg: as for `deliver`.
        folder: of the run.
        compression: of the run, or None.
    """
    from cellvision.checks import check_count, check_switch
    from cellvision.export.checks import check_folder
    from cellvision.training.record import read_settings

    check_switch("bundle", cfg.bundle)
    if not cfg.bundle:
        return
    check_count("predict", cfg.predict, low=0, example=4)
    strangers = [name for name in MADE if (folder / name).exists()]
    if strangers and not read_settings(folder):
        got = f"run_dir={folder} with {strangers[0]}, and without the run.json of a run that made it"
        need = "a new folder or that of a run, as what is in it is replaced"
        raise ConfigError(explain(got=got, need=need, hint="run_dir=ANOTHER_FOLDER"))
    check_folder((folder / "bundle").resolve(), overwrite=True, another="run_dir=ANOTHER_FOLDER")
    if compression is not None:
        _check_report(cfg, compression)


def _check_report(cfg: DictConfig, compression: Compression) -> None:
    from cellvision.checks import check_count, check_switch
    from cellvision.export.compressed.rows import check_static
    from cellvision.export.gate.decision import check_tolerance

    check_tolerance(cfg.report.tolerance_points, name="report.tolerance_points")
    check_switch("report.scratch", cfg.report.scratch)
    check_count("report.samples", cfg.report.samples, example=20)
    check_count("report.calibration_fields", cfg.report.calibration_fields, example=16)
    check_static(cfg.report.ptq, [step.name for step in compression.steps] + ["scratch"] * bool(cfg.report.scratch))
    if cfg.report.scratch and compression.start is None and cfg.trainer.max_epochs == 0:
        got, need = "report.scratch=true with trainer.max_epochs=0", "a net that the compression begins with"
        raise ConfigError(explain(got=got, need=need, hint="report.scratch=false"))
    if cfg.report.scratch and (cfg.trainer.devices != 1 or cfg.trainer.get("num_nodes", 1) != 1):
        got = f"report.scratch=true with trainer.devices={cfg.trainer.devices}"
        raise ConfigError(explain(got=got, need="one process, which trains that net", hint="report.scratch=false"))


def check_fields(cfg: DictConfig, data: CellDataModule, *, compression: Compression | None) -> None:
    """Raise ExportError, before anything is trained, where a report would have no true cell to measure accuracy by.

    Args:
        cfg: as for `deliver`.
        data: after ``setup``.
        compression: of the run, or None.
    """
    from cellvision.export.compressed.report import check_samples

    if cfg.bundle and compression is not None:
        check_samples(data.collect_held_out(cfg.report.samples))


def deliver(
    cfg: DictConfig,
    data: CellDataModule,
    task: SegmentationTask,
    folder: Path,
    *,
    best: Path | None,
    compression: Compression | None,
) -> None:
    """Make the bundle of a run, predict held-out fields with it, and report on a compression.

    Args:
        cfg: with "predict", and with "report" where there is a compression.
        data: that it was trained on.
        task: after its fit.
        folder: of the run.
        best: checkpoint of its best net; None where none was kept.
        compression: of the run, or None.

    Raises:
        CellvisionError: there is no bundle, or the compressed net lost too much; the files are there all the same.
    """
    from cellvision.export.writer import export_checkpoint

    bundle = folder / "bundle"
    if best is None and compression is not None:
        got = f"no best net in {folder / 'checkpoints'}: no epoch had a score of {task.monitor}, or its file is gone"
        need = "an epoch with a score, and its checkpoint"
        raise ConfigError(explain(got=got, need=need, hint="another monitor, or a net that finds some cells"))
    if best is None:
        print("bundle    none: no validated checkpoint")
        return
    if not task.net.spec.exportable:
        print(f"bundle    none: a {task.net.spec.name} net cannot be exported")
        return
    if compression is not None and (compression.start or cfg.trainer.max_epochs >= 1):
        _report(cfg, data, task, folder, compression=compression)
        return
    if compression is not None:
        print("report    none: trainer.max_epochs=0, so there is no net from before the first step to compare with")
    manifest = export_checkpoint(best, bundle, samples=data.collect_held_out(PARITY_FIELDS), overwrite=True)
    print(f"bundle    {bundle}  (largest difference from PyTorch {manifest.parity['max_difference']:.1e})")
    if cfg.predict >= 1:
        predict_held_out(data, bundle, folder, count=cfg.predict)


def _report(
    cfg: DictConfig, data: CellDataModule, task: SegmentationTask, folder: Path, *, compression: Compression
) -> None:
    from cellvision.export.compressed.report import report_compression
    from cellvision.export.compressed.rows import list_rows
    from cellvision.export.folder import make_folder
    from cellvision.export.progress import PhaseLines
    from cellvision.export.quantize.calibration import collect_training_fields
    from cellvision.training.checkpoint import check_start

    base = compression.start or folder / "checkpoints" / "base.ckpt"
    scratch, missed = try_scratch(cfg, data, task, folder, compression=compression)
    check_start(resolve(cfg), base)  # hours may have passed
    static = tuple(name for name in cfg.report.ptq if name != "scratch" or missed is None)
    phases = [step.name for step in compression.steps]
    rows = list_rows(folder, base=base, phases=phases, scratch=scratch, static=static)
    if lost := sorted(set(phases) - {row.name for row in rows}):
        away = f"{' and '.join(lost)}: their nets are in the folder that the run was resumed from"
        print(f"report    without {away}, and not in {folder / 'checkpoints'}")
    with PhaseLines() as tell:
        tell("reading fields")
        report = report_compression(
            rows,
            folder / "report",
            samples=data.collect_held_out(cfg.report.samples),
            fields=collect_training_fields(data, cfg.report.calibration_fields) if cfg.report.ptq else (),
            tolerance_points=cfg.report.tolerance_points,
            tell=tell,
        )
    last = [row.name for row in rows if row.role == "step"][-1]
    with make_folder(folder / "bundle", overwrite=True) as made:
        shutil.copytree(folder / "report" / last, made, dirs_exist_ok=True)
    print(f"bundle    {folder / 'bundle'}  ({last})")
    print(f"report    {folder / 'report'}: compression.html, compression.png, pareto.png, compression.json")
    if cfg.predict >= 1:
        predict_held_out(data, folder / "bundle", folder, count=cfg.predict)
    report.raise_if_lost()
    if missed is not None:
        raise missed


def predict_held_out(data: CellDataModule, bundle: Path, folder: Path, *, count: int) -> None:
    """Predict some held-out fields with a bundle, as anybody would, and say how it is done again.

    Raises:
        CellvisionError: a field that cannot be predicted.
    """
    from cellvision.commands.predict import collect_images, predict_images
    from cellvision.data.image_writer import write_image
    from cellvision.runtime.predictor import Predictor

    images, out = folder / "held_out", folder / "predicted"
    for earlier in (images, out):  # of the same run, before it was resumed
        shutil.rmtree(earlier, ignore_errors=True)
    images.mkdir()
    for sample in data.collect_held_out(count):
        write_image(images / f"{sample.name}.tif", sample, data.channels)
    failed = predict_images(Predictor(bundle), collect_images([images], out_dir=out), out)
    if failed:
        raise next(iter(failed.values()))
    print(f"again     cellvision predict --bundle {bundle} {images} --out DIR")
    print(f"pictures  {out}/*_overlay.png")
