"""The scores of every epoch as a table and as curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cellvision.training.callbacks import BestCheckpoint
from cellvision.training.phases import Phase

CURVES = (
    "pixel/miou",
    "pixel/foreground_dice",
    "pixel/accuracy",
    "cell/f1",
    "cell/live_dead_f1",
    "cell/live_dead_auroc",
    "mask/ap",
    "mask/ap50",
    "box/ap",
    "instance/ap_dsb_50",
)


class History(Callback):
    """Writes ``history.csv`` and ``curves.png`` after each epoch; a resumed run continues both from its checkpoint.

    Args:
        folder: where the two files go.
    """

    def __init__(self, *, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []
        self._validated = False

    def state_dict(self) -> dict[str, Any]:
        """All rows so far, plain numbers."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has validation scores; Lightning keeps showing those of an earlier one."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch and rewrite both files, unless it ended before its first batch."""
        if getattr(pl_module, "ends_now", False):
            return
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        stages = ("train/", "val/") if self._validated else ("train/",)
        self._validated = False
        scores = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith(stages)}
        self.rows.append({"epoch": trainer.current_epoch + 1, "lr": rates[0], **scores})
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_history(self.rows, self.folder / "history.csv")
            best = self._find_best(trainer, pl_module)
            begins = list_begins(getattr(pl_module, "phases", ()))
            draw_curves(self.rows, self.folder / "curves.png", best=best, begins=begins)

    def _find_best(self, trainer: Trainer, pl_module: LightningModule) -> int | None:
        """The epoch of the net that is kept behind this one; None where that is not of the end of an epoch.

        Each phase of a compression looks for its best net anew, and each cut of a net lets the one before be forgotten.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        keeper = next((each for each in callbacks if isinstance(each, BestCheckpoint)), None)
        if keeper is None:
            name, mode = getattr(pl_module, "monitor", ""), getattr(pl_module, "monitor_mode", "max")
            return find_best_epoch(self.rows, name, mode=mode)
        *earlier, now = self.rows
        if keeper.score is None:  # it looks at this epoch after this callback does
            return find_best_epoch([now], keeper.monitor, mode=keeper.mode)
        kept = [row for row in earlier if row.get(keeper.monitor) == keeper.score]
        # The first of two equal ones is the best, so that this epoch has to be better.
        found = find_best_epoch([{"epoch": 0, keeper.monitor: keeper.score}, now], keeper.monitor, mode=keeper.mode)
        return found or (int(kept[-1]["epoch"]) if kept else None)


def list_begins(phases: Sequence[Phase]) -> dict[int, str]:
    """The first epoch of each phase, from 1, with the phase's name.

    Example:
        >>> list_begins([Phase(name="prune", epochs=4), Phase(name="distill", epochs=2)])
        {1: 'prune', 5: 'distill'}
    """
    ends = accumulate((phase.epochs for phase in phases), initial=1)
    return {begin: phase.name for begin, phase in zip(ends, phases, strict=False)}


def write_history(rows: list[dict[str, float]], path: Path) -> None:
    """A CSV with a column for every score that any epoch has; the old file is replaced in one step."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    draft = path.with_suffix(".csv.tmp")
    with draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)


def find_best_epoch(rows: list[dict[str, float]], name: str, *, mode: str) -> int | None:
    """The first epoch with the best score of that name, or None where no epoch has it.

    Example:
        >>> rows = [{"epoch": 1}, {"epoch": 2, "val/loss": 2.0}, {"epoch": 3, "val/loss": 3.0}]
        >>> find_best_epoch(rows, "val/loss", mode="min")
        2
    """
    sign = 1 if mode == "max" else -1
    known = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    return int(max(known, key=lambda row: sign * row[name])["epoch"]) if known else None


def draw_curves(
    rows: list[dict[str, float]], path: Path, *, best: int | None = None, begins: Mapping[int, str] | None = None
) -> None:
    """Losses, scores and learning rate over the epochs as one picture; losses that span a decade on a log axis.

    Args:
        rows: one per epoch: "epoch" from 1, "lr" and the scores by name.
        path: picture to write.
        best: epoch of the best net, marked by a line; None for no line.
        begins: of `list_begins`; where one phase follows another, they are parted and named.
    """
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in ("epoch", "lr")]
    losses = [n for n in names if n in ("train/loss", "val/loss")]
    scores = [f"val/{name}" for name in CURVES if f"val/{name}" in names]
    figure = Figure(figsize=(15, 6), layout="constrained")
    for axes, title, shown in zip(
        figure.subplots(1, 3), ("loss", "validation scores", "learning rate"), (losses, scores, ["lr"]), strict=True
    ):
        for name in shown:
            points = [(row["epoch"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
            if points:
                # A single epoch has no line to see.
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 40 else None)
        if shown is losses and _spans_a_decade(axes):
            axes.set_yscale("log")
        if best is not None and axes.lines:
            axes.axvline(best, color="0.6", linestyle="--", linewidth=1, zorder=0, label=f"best net, epoch {best}")
        for epoch, name in (begins or {}).items():
            if len(begins or {}) > 1 and epoch <= rows[-1]["epoch"]:
                axes.axvline(epoch - 0.5, color="0.8", linewidth=1, zorder=0)
                axes.annotate(f" {name}", (epoch - 0.5, 0.98), xycoords=("data", "axes fraction"), va="top", fontsize=8)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(rows) == 1:
            axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


def _spans_a_decade(axes: Axes) -> bool:
    """Whether all values are above 0, and the largest is ten times the smallest."""
    values = np.concatenate([np.zeros(0), *(np.asarray(line.get_ydata()) for line in axes.lines)])
    return len(values) > 0 and 0 < 10 * values.min() <= values.max()
