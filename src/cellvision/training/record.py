"""What a run was: settings, versions, code state and data, in one file beside its results."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from cellvision.data.datamodule import CellDataModule
from cellvision.errors import explain
from cellvision.git_state import describe_git
from cellvision.models.base import SegNet
from cellvision.training.task import SegmentationTask
from cellvision.training.tracking.tracker import begin_tracking
from cellvision.types import IGNORE

COUNTED_FIELDS = 40
PACKAGES = (
    "cellvision",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "hydra-core",
    "numpy",
    "onnx",
    "onnxruntime",
)


class RunRecord(Callback):
    """Writes ``run.json`` when training begins, after a resumed run was found to fit, and tells the trackers of it.

    The link to the newest run follows with the first batch, which a run that is refused before never comes to.
    """

    def __init__(
        self, folder: Path, *, settings: dict[str, Any], data: CellDataModule, link: Path | None = None
    ) -> None:
        self.folder, self.settings, self.data, self.link = folder, settings, data, link

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and say what is trained on what."""
        assert isinstance(pl_module, SegmentationTask)
        if not trainer.is_global_zero:
            return
        record = write_run_record(self.folder, settings=self.settings, data=self.data, net=pl_module.net)
        print(f"run       {self.folder}")
        begin_tracking(trainer, record)
        for line in describe_run(self.data, pl_module.net, monitor=pl_module.monitor):
            print(line, flush=True)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Point the link here, once."""
        self._mark(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Point the link here, where a resumed run had no batch left."""
        self._mark(trainer)

    def _mark(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.link is not None:
            mark_latest(self.folder, self.link)
            self.link = None


def describe_run(data: CellDataModule, net: SegNet, *, monitor: str) -> list[str]:
    """Lines on the data, the net and how it begins, and what may go wrong with both."""
    fields = ", ".join(f"{len(view)} {split}" for split, view in data.views.items())
    size = sum(parameter.numel() for parameter in net.parameters())
    lines = [f"data      {fields} fields; channels {', '.join(channel.name for channel in data.channels)}"]
    for split, faults in find_skipped(data).items():
        lines.append(f"skipped   {len(faults)} annotations of {split}: {'; '.join(faults[:3])}")
    lines.append(f"net       {net.spec.name}, {size:,} parameters; best by {monitor}")
    lines += [f"net       {line}" for line in net.report]
    warnings = (describe_absence(data), describe_counts(data), describe_crowding(net, data))
    return lines + [f"warning   {text}" for text in warnings if text]


def describe_absence(data: CellDataModule) -> str | None:
    """A sentence where no training field has an annotated cell, else None."""
    assert data.stats is not None
    if any(data.stats.class_pixels[1:]):
        return None
    got = f"none of {len(data.views['train'])} training fields has an annotated cell"
    return explain(got=got, need="cells to learn from", hint="look at the annotations, or at data.pattern")


def describe_counts(data: CellDataModule) -> str | None:
    """A sentence where training images show nothing, or less than there was to see, else None."""
    if not data.faults:
        return None
    number = sum(len(names) for names in data.faults.values())
    kinds = "; ".join(f"{len(names)} {fault}, first {names[0]}" for fault, names in data.faults.items())
    got = f"{number} of {len(data.views['train'])} training fields have a channel of doubtful counts ({kinds})"
    return explain(got=got, need="counts that vary below the maximum", hint="look at them, and leave bad ones out")


def find_skipped(data: CellDataModule) -> dict[str, tuple[str, ...]]:
    """What was wrong with the annotations that the data set of a split left out; splits without any are absent."""
    found = {split: tuple(getattr(view.dataset, "skipped", ())) for split, view in data.views.items()}
    return {split: faults for split, faults in found.items() if faults}


def describe_crowding(net: SegNet, data: CellDataModule) -> str | None:
    """A sentence where training fields hold more cells than a net that finds cells gives per image, else None.

    Looks at up to 40 training fields, spread evenly: all that data sets have in memory or decode within seconds.
    """
    limit = getattr(getattr(getattr(net, "settings", None), "decoding", None), "post_nms", None)
    if limit is None:
        return None
    view = data.views["train"]
    fields = np.unique(np.linspace(0, len(view) - 1, COUNTED_FIELDS).round().astype(np.int64)).tolist()
    most = max(int((view.sample(i).cell_classes != IGNORE).sum()) for i in fields)
    if most <= limit:
        return None
    enough = 10 ** (len(str(most)) - 1)
    enough = -(-most * 3 // (2 * enough)) * enough
    got = f"training fields hold up to {most} cells, and the net gives at most {limit} per image"
    return explain(got=got, need="room for all of them, with some to spare", hint=f"model.decoding.post_nms={enough}")


def read_settings(folder: Path) -> dict[str, Any]:
    """The resolved settings in the ``run.json`` of a run; {} where there is none, or only a part of it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
        return settings if isinstance(settings, dict) else {}
    return {}


def write_run_record(folder: Path, *, settings: Any, data: CellDataModule, net: SegNet) -> Path:
    """Write ``run.json``: resolved settings, package versions, git state, data fingerprint, size of the net."""
    record = {
        "settings": settings,
        "versions": collect_versions(),
        "git": describe_git(),
        "data": {
            "fingerprint": data.fingerprint(),
            "fields": {split: len(view) for split, view in data.views.items()},
            "classes": data.classes,
            "channels": [channel.name for channel in data.channels],
            "skipped": {split: faults[:20] for split, faults in find_skipped(data).items()},
        },
        "net": {"config": net.config, "parameters": sum(p.numel() for p in net.parameters())},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    path.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def mark_latest(folder: Path, link: Path) -> None:
    """Point a link to a run folder, or to what that lies in beside the link, where there are links."""
    with suppress(OSError):
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(folder.relative_to(link.parent).parts[0], target_is_directory=True)


def collect_versions() -> dict[str, str]:
    """Installed versions of the packages that shape a result, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
