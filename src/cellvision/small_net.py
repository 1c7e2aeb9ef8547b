"""The small net from scratch that a compression is compared with, trained for as long as all of that took."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from cellvision.building import Start, build_task, build_trainer
from cellvision.composition import resolve

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from cellvision.compression.callback import Compression
    from cellvision.data.datamodule import CellDataModule
    from cellvision.export.compressed.narrowing import NoSuchWidthError
    from cellvision.training.task import SegmentationTask


def try_scratch(
    cfg: DictConfig, data: CellDataModule, task: SegmentationTask, folder: Path, *, compression: Compression
) -> tuple[Path | None, NoSuchWidthError | None]:
    """The small net if it is asked for, or the error that keeps it away, to be raised once all else is there."""
    from cellvision.export.compressed.narrowing import NoSuchWidthError

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
    from cellvision.export.compressed.narrowing import start_fresh
    from cellvision.training.checkpoint import choose_resume, load_plain_checkpoint
    from cellvision.training.finish import finish_run
    from cellvision.training.net_record import RECORD_KEY
    from cellvision.training.record import RunRecord

    own = folder / "scratch"
    best, known = own / "checkpoints" / "best.ckpt", task.record
    assert known is not None
    if (own / "results.json").is_file() and best.is_file():
        return best
    resume = choose_resume("auto", own / "checkpoints") if (own / "checkpoints").exists() else None
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
    from cellvision.export.compressed.narrowing import shrink_to_latency
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
    from cellvision.training.record import read_settings

    found: list[Path] = []
    while start is not None and start not in found:
        if not start.is_file():
            print(f"scratch   {start} is no file any more: its epochs are not counted")
            break
        found.append(start)
        earlier = read_settings(start.parent.parent).get("ckpt")
        start = Path(earlier) if isinstance(earlier, str) else None
    return found


def choose_optim(cfg: DictConfig, start: Path | None) -> tuple[Any, str]:
    """What trains a fresh net: settings of the optimizer of the run that a checkpoint is of, and where from.

    Those of the compression's own run where that began with a fresh net, or where the other one's are not known.
    """
    from cellvision.training.record import read_settings

    run = None if start is None else start.parent.parent
    settings = None if run is None else read_settings(run).get("optim")
    if run is not None and settings and "${" not in json.dumps(settings):
        return OmegaConf.create(settings), str(run / "run.json")
    return cfg.optim, "this run"


def count_epochs(checkpoint: Path, trainer: Trainer) -> int:
    """How many epochs of this run have as many steps as a checkpoint's own run had until then."""
    from cellvision.training.checkpoint import load_plain_checkpoint

    steps = math.ceil(int(trainer.num_training_batches) / trainer.accumulate_grad_batches)
    return math.ceil(int(load_plain_checkpoint(checkpoint)["global_step"]) / steps)
