"""The truth that a bundle is scored against: label images with or without a class table, or COCO annotations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellvision.bundle import Manifest
from cellvision.data.coco import CocoDataset
from cellvision.data.coco.file import load_categories
from cellvision.data.dataset import BACKGROUND, UNCERTAIN, CellDataset, to_channels
from cellvision.data.folder import FolderDataset
from cellvision.data.images import ImageInfo
from cellvision.data.livedead.tables import load_cells
from cellvision.errors import ConfigError, DataError, explain
from cellvision.metrics.cells import has_viability
from cellvision.types import IGNORE, Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Fields with true cells.

    Attributes:
        dataset: the files.
        classes: that are scored, background first: the bundle's, or ("background", "cell") where the truth tells cells
            but not their classes.
        table: class name by label by field, or None.
    """

    dataset: CellDataset
    classes: tuple[str, ...]
    table: dict[str, dict[int, str]] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def iterate_samples(self) -> Iterator[Sample]:
        """The fields one by one, their classes numbered as in ``classes``.

        Raises:
            DataError: a file is damaged, or the table lacks a cell.
        """
        for index in range(len(self.dataset)):
            sample = self.dataset.sample(index)
            if self.table is not None:
                yield replace(sample, cell_classes=self._look_up(sample, self.table.get(sample.name, {})))
            elif self.dataset.classes == self.classes:
                yield sample
            else:
                yield replace(sample, cell_classes=np.where(sample.cell_classes == IGNORE, IGNORE, 1))

    def _look_up(self, sample: Sample, listed: dict[int, str]) -> np.ndarray:
        present = np.unique(sample.label_image)
        present = present[present > 0]
        if unlisted := [int(label) for label in present if int(label) not in listed]:
            raise DataError(
                explain(
                    got=f"--classes lists no class for {sample.name}, labels {', '.join(map(str, unlisted[:20]))}",
                    need="one row per cell",
                    hint=f"add the rows, with the class {UNCERTAIN} where it is not known",
                )
            )
        classes = np.full(len(sample.cell_classes), IGNORE, np.int64)
        for label in present:
            if (name := listed[int(label)]) != UNCERTAIN:
                classes[label - 1] = self.classes.index(name)
        return classes


def open_truth(
    manifest: Manifest,
    *,
    images: Path,
    labels: Path | None = None,
    coco: Path | None = None,
    table: Path | None = None,
    channels: tuple[str, ...] | None = None,
    skip_faulty: bool = False,
) -> Truth:
    """The truth beside ``images``, fit to be compared with what a bundle finds.

    Args:
        manifest: of the bundle.
        images: folder of images.
        labels: folder of label images of the same stems; or
        coco: COCO file. Its categories must be the bundle's classes, or one category that means any cell.
        table: CSV with image, label and class ("live", "dead", "uncertain") for the label images.
        channels: "name" or "name:role" of the images' channels; None takes the names in the files.
        skip_faulty: leave out annotations of the COCO file without a usable segmentation, and say how many; else they
            are an error.

    Raises:
        ConfigError: a class table without label images, or for a bundle that does not tell live from dead.
        DataError: files missing or unlike each other, or categories that are not the bundle's classes.
    """
    if table is not None and (labels is None or not has_viability(manifest.classes)):
        raise ConfigError(
            explain(
                got=f"--classes {table}",
                need="--labels and a viability bundle beside it",
                hint="leave --classes out: COCO files hold their own classes, other bundles are scored on cells alone",
            )
        )
    if coco is not None:
        return _open_coco(manifest, images, coco, channels=channels, skip_faulty=skip_faulty)
    dataset = FolderDataset(images=images, labels=labels, labels_are="cells", channels=channels)
    if table is None:
        return Truth(dataset=dataset, classes=_any_cell(manifest))
    listed = load_cells(table, known=dataset.names, may_be_missing=False)
    return Truth(dataset=dataset, classes=manifest.classes, table=listed)


def find_channel_names(dataset: CellDataset) -> tuple[str, ...] | None:
    """Names of a data set's channels, or None where they are only what unnamed channels are called."""
    unnamed = ImageInfo(path=Path(), shape=(len(dataset.channels), 1, 1), dtype="uint8")
    return None if dataset.channels == to_channels(None, [unnamed]) else tuple(c.name for c in dataset.channels)


def _open_coco(
    manifest: Manifest, images: Path, coco: Path, *, channels: tuple[str, ...] | None, skip_faulty: bool
) -> Truth:
    cells = [name for name in load_categories(coco) if name != UNCERTAIN]
    if has_classes := set(manifest.classes[1:]) <= set(cells):
        cells = list(manifest.classes[1:])
    elif len(cells) > 1:
        raise DataError(
            explain(
                got=f"{coco} has the categories {', '.join(cells)}",
                need=f"{', '.join(manifest.classes[1:])}, or a single category",
                hint="rename the categories",
            )
        )
    dataset = CocoDataset(
        annotations=coco,
        images=images,
        channels=channels,
        categories=cells,
        repeated_images="keep",
        faulty_cells="skip" if skip_faulty else "error",
    )
    if dataset.skipped:
        print(f"{coco}: {len(dataset.skipped)} annotations left out, first {dataset.skipped[0]}", file=sys.stderr)
    return Truth(dataset=dataset, classes=manifest.classes if has_classes else _any_cell(manifest))


def _any_cell(manifest: Manifest) -> tuple[str, ...]:
    return manifest.classes if len(manifest.classes) == 2 else (BACKGROUND, "cell")
