"""Any data set with live and dead cells as the folder that ``LiveDeadDataset`` reads."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile

from cellvision.data.dataset import CellDataset
from cellvision.data.image_writer import write_image
from cellvision.errors import DataError, explain
from cellvision.types import IGNORE, Sample


def write_livedead_folder(
    dataset: CellDataset, folder: Path | str, *, splits: Mapping[str, Sequence[int]] | None = None
) -> Path:
    """Write images, label images and the two tables; equal data sets give equal bytes.

    The folder: ``images/<name>.tif`` (OME-TIFF with channel names and pixel size), ``labels/<name>.tif`` (uint16, or
    int32 beyond 65535 labels), ``cells.csv`` (image, label, class; cells of class IGNORE are "uncertain") and
    ``fields.csv`` (image, group, split, pixel_size_um).

    Args:
        dataset: what to write.
        folder: made if it does not exist.
        splits: split name -> positions in the data set; fields in none have an empty split.

    Returns:
        The folder.

    Raises:
        DataError: the folder already has images, which would mix with the new ones.
    """
    folder = Path(folder)
    if any((folder / "images").glob("*")):
        raise DataError(explain(got=f"{folder} already has images", need="a new folder", hint="choose another name"))
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    split_of = {index: split for split, indices in (splits or {}).items() for index in indices}
    cells: list[tuple[str, int, str]] = []
    fields: list[tuple[str, str, str, str]] = []
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        write_image(folder / "images" / f"{sample.name}.tif", sample, dataset.channels)
        _write_labels(folder / "labels" / f"{sample.name}.tif", sample.label_image)
        cells += _list_cells(sample, dataset.classes)
        size = "" if sample.pixel_size_um is None else f"{sample.pixel_size_um:g}"
        fields.append((sample.name, sample.group, split_of.get(index, ""), size))
    _write_table(folder / "cells.csv", ("image", "label", "class"), cells)
    _write_table(folder / "fields.csv", ("image", "group", "split", "pixel_size_um"), fields)
    return folder


def _write_labels(path: Path, label_image: np.ndarray) -> None:
    narrow = label_image.max(initial=0) < 2**16
    tifffile.imwrite(
        path,
        label_image.astype(np.uint16) if narrow else label_image,
        photometric="minisblack",
        compression="zlib",
        metadata=None,
        software=False,
    )


def _list_cells(sample: Sample, classes: Sequence[str]) -> list[tuple[str, int, str]]:
    present = [int(label) for label in np.unique(sample.label_image) if label]
    kinds = [int(sample.cell_classes[label - 1]) for label in present]
    names = ["uncertain" if kind == IGNORE else classes[kind] for kind in kinds]
    return [(sample.name, label, name) for label, name in zip(present, names, strict=True)]


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
