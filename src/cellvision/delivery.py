"""What a finished run hands over: a bundle, what it predicts, and the report of a compression."""

from __future__ import annotations

import copy
import json
import math
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from cellvision.building import Start, build_task, build_trainer
from cellvision.composition import resolve
from cellvision.errors import ConfigError, explain

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from cellvision.compression.callback import Compression
    from cellvision.data.datamodule import CellDataModule
    from cellvision.export.compressed.scratch import NoSuchWidthError
    from cellvision.training.task import SegmentationTask

PARITY_FIELDS = 4


def check_delivery(cfg: DictConfig, folder: Path, *, compression: Compression | None) -> None:
    """Raise ConfigError, before anything is trained, where the bundle or the report could not be made in the end.

    Args:
        cfg: as for `deliver`.
        folder: of the run.
        compression: of the run, or None.
    """
    from cellvision.export.checks import check_folder

    check_folder((folder / "bundle").resolve(), overwrite=True, another="run_dir=ANOTHER_FOLDER")
    if compression is not None:
        _check_report(cfg, compression)


def _check_report(cfg: DictConfig, compression: Compression) -> None:
    from cellvision.checks import check_count
    from cellvision.export.compressed.rows import check_static
    from cellvision.export.gate.decision import check_tolerance

    check_tolerance(cfg.report.tolerance_points, name="report.tolerance_points")
    check_count("report.samples", cfg.report.samples, example=20)
    check_count("report.calibration_fields", cfg.report.calibration_fields, example=16)
    check_static(cfg.report.ptq, [step.name for step in compression.steps] + ["scratch"] * bool(cfg.report.scratch))
    if cfg.report.scratch and compression.start is None and cfg.trainer.max_epochs == 0:
        got, need = "report.scratch=true with trainer.max_epochs=0", "a net that the compression begins with"
        raise ConfigError(explain(got=got, need=need, hint="report.scratch=false"))
    if cfg.report.scratch and (cfg.trainer.devices != 1 or cfg.trainer.get("num_nodes", 1) != 1):
        got = f"report.scratch=true with trainer.devices={cfg.trainer.devices}"
        raise ConfigError(explain(got=got, need="one process, which trains that net", hint="report.scratch=false"))


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
    scratch, missed = _try_scratch(cfg, data, task, folder, compression=compression)
    check_start(resolve(cfg), base)  # hours may have passed
    static = tuple(name for name in cfg.report.ptq if name != "scratch" or missed is None)
    rows = list_rows(folder, base=base, scratch=scratch, static=static)
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


def _try_scratch(
    cfg: DictConfig, data: CellDataModule, task: SegmentationTask, folder: Path, *, compression: Compression
) -> tuple[Path | None, NoSuchWidthError | None]:
    """The small net if it is asked for, or the error that keeps it away, to be raised once all else is there."""
    from cellvision.export.compressed.scratch import NoSuchWidthError

    if not cfg.report.scratch:
        return None, None
    try:
        return train_scratch(cfg, data, task, folder, compression=compression), None
    except NoSuchWidthError as error:
        print(f"scratch   none: {error}")
        return None, error


def train_scratch(
    cfg: DictConfig, data: CellDataModule, task: SegmentationTask, folder: Path, *, compression: Compression
) -> Path:
    """Train a small fresh net that is as fast as the compressed one before rounding, for as long as that was trained.

    That is the honest baseline: whether compression was worth more than a smaller net. It learns as the uncompressed
    net did, whose learning rate is seldom that of a compression.

    Args:
        cfg: of the run.
        data: of the run.
        task: after its fit.
        folder: of the run; the net's own is ``scratch`` in it.
        compression: of the run.

    Returns:
        The best checkpoint, with its threshold fitted as that of the compressed net; an earlier one of the same run is
        taken as it is.

    Raises:
        NoSuchWidthError: no width makes it as fast.
    """
    from cellvision.export.compressed.scratch import start_fresh
    from cellvision.training.checkpoint import RECORD_KEY, choose_resume, load_plain_checkpoint
    from cellvision.training.finish import finish_run
    from cellvision.training.record import RunRecord

    own = folder / "scratch"
    best, known = own / "checkpoints" / "best.ckpt", task.record
    assert known is not None
    if (own / "results.json").is_file():
        return best
    resume = choose_resume("auto", own / "checkpoints")
    before = None if resume is None else load_plain_checkpoint(Path(resume))[RECORD_KEY]
    pruned = _find_widths(data, task) if before is None else before["recipe"][0]
    alone = copy.deepcopy(cfg)
    OmegaConf.update(alone, "compress", None, force_add=True)
    alone.run_dir = str(own)
    starts = list_starts(compression.start)
    alone.trainer.max_epochs = compression.epochs + sum(count_epochs(start, task.trainer) for start in starts)
    alone.optim, whose = choose_optim(cfg, starts[-1] if starts else None)
    share = f"{1 - pruned['ratio']:.0%} of the channels"
    print(f"scratch   a fresh net with {share}; {alone.trainer.max_epochs} epochs, optim of {whose}")
    net = start_fresh(known.net, pruned, seed=cfg.seed)
    assert data.stats is not None
    net.set_statistics(data.stats)
    start = Start(checkpoint=own, net=net.train(), record=replace(known, recipe=(pruned,), accuracy={}))
    fresh = build_task(alone, data, start=start)
    record = RunRecord(own, settings=resolve(alone), data=data, link=None)
    trainer = build_trainer(alone, own, record=record)
    trainer.fit(fresh, datamodule=data, ckpt_path=resume)
    finish_run(trainer, fresh, data, folder=own, fit_score=net.spec.kind == "instance")
    return best


def _find_widths(data: CellDataModule, task: SegmentationTask) -> dict[str, Any]:
    """Those of a narrower net that is as fast as the compressed one, on what a report times, with the cells there."""
    import torch

    from cellvision.export.compressed.measure import choose_case
    from cellvision.export.compressed.scratch import shrink_to_latency
    from cellvision.export.parity.comparison import cut
    from cellvision.export.progress import PhaseLines
    from cellvision.training.validating import count_cells

    assert task.record is not None
    with PhaseLines() as tell:
        tell("looking for a small net that is as fast")
        samples = data.collect_held_out(1)
        image = torch.from_numpy(cut(samples[0].image, *choose_case(samples)[0]))[None]
        cells = count_cells(task, image)
        return shrink_to_latency(task.record.net, task.record.recipe, image, cells=cells, tell=tell).record


def list_starts(start: Path | None) -> list[Path]:
    """The checkpoint that a compression begins with, the one that its own run began with, and so on to a fresh net's.

    As far as their runs' records tell, and files are where they were; where one is not, that is said.
    """
    found: list[Path] = []
    while start is not None and start not in found:
        if not start.is_file():
            print(f"scratch   {start} is no file any more: its epochs are not counted")
            break
        found.append(start)
        earlier = _read_settings(start).get("ckpt")
        start = Path(earlier) if isinstance(earlier, str) else None
    return found


def choose_optim(cfg: DictConfig, start: Path | None) -> tuple[Any, str]:
    """What trains a fresh net: settings of the optimizer of the run that a checkpoint is of, and where from.

    Those of the compression's own run where that began with a fresh net, or where the other one's are not known.
    """
    if start is not None and (settings := _read_settings(start).get("optim")) and "${" not in json.dumps(settings):
        return OmegaConf.create(settings), str(_find_record(start))
    return cfg.optim, "this run"


def _find_record(checkpoint: Path) -> Path:
    return checkpoint.parent.parent / "run.json"


def _read_settings(checkpoint: Path) -> dict[str, Any]:
    """Of the run that a checkpoint is of; {} where they are not known."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        settings = json.loads(_find_record(checkpoint).read_text(encoding="utf-8"))["settings"]
        return settings if isinstance(settings, dict) else {}
    return {}


def count_epochs(checkpoint: Path, trainer: Trainer) -> int:
    """How many epochs of this run have as many steps as a checkpoint's own run had until then."""
    from cellvision.training.checkpoint import load_plain_checkpoint

    steps = math.ceil(int(trainer.num_training_batches) / trainer.accumulate_grad_batches)
    return math.ceil(int(load_plain_checkpoint(checkpoint)["global_step"]) / steps)


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
