"""Live and dead cells on disk: a folder with label images and tables, or the same images with COCO annotations.

The folder::

    root/images/<field>.tif     TIFF, PNG or JPEG
    root/labels/<field>.png     one-channel label image, 0 = background, each cell its own number
    root/cells.csv              columns image, label, class: "live", "dead" or "uncertain" (takes no part in scores)
    root/fields.csv             optional; columns image, and any of group, split, pixel_size_um

``image`` in the tables is the file name with or without its ending. With root/instances_<split>.json (COCO, categories
live and dead, perhaps uncertain) the tables and labels are not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.bundle import Channel
from cellvision.data.coco import CocoDataset
from cellvision.data.coco.tables import show
from cellvision.data.dataset import CellDataset, compute_fingerprint, to_channels
from cellvision.data.images import ImageInfo, image_stem, list_images, read_image, read_info, read_label_image
from cellvision.data.livedead.tables import CLASS_IDS, Field, load_cells, load_fields
from cellvision.data.pairing import find_cell_numbers, find_label_files
from cellvision.errors import ConfigError, DataError, check_choice, explain, unknown_name
from cellvision.types import IGNORE, Sample

UNLISTED = ("error", "ignore")


class LiveDeadDataset:
    r"""Fields of live and dead cells; a CellDataset with the classes background, live, dead.

    Args:
        root: folder as described above.
        split: which fields: those of instances_<split>.json if that exists, else those whose ``split`` in fields.csv
            it is. None takes all fields of a folder without COCO files.
        channels: "name" or "name:role" each, role nuclear, live or dead; None takes the names in the files.
        unlisted: what becomes of cells that cells.csv does not list: "error", or "ignore" to give them class IGNORE
            (then cells.csv may be missing).
        faulty_cells: of COCO files, see ``CocoDataset``.
        restore_counts: bring back raw float32 counts of 8-bit images from ``scale`` of their COCO entries,
            channel -> [count at 0, count at 255], in the order of the image's channels.

    Raises:
        ConfigError: unknown ``unlisted`` or role, or restore_counts without COCO.
        DataError: files missing, unlike each other, of different sizes, an unknown split, or bad rows in the tables.

    Example:
        >>> import tempfile, tifffile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("images", "labels"):
        ...     (root / name).mkdir()
        ...     tifffile.imwrite(root / name / "A1.tif", np.eye(4, dtype=np.uint16))
        >>> _ = (root / "cells.csv").write_text("image,label,class\nA1,1,dead\n")
        >>> LiveDeadDataset(root=root, channels=["pi:dead"]).sample(0).cell_classes
        array([2])
    """

    classes: tuple[str, ...] = ("background", "live", "dead")

    def __init__(
        self,
        *,
        root: Path | str,
        split: str | None = None,
        channels: Sequence[str] | None = None,
        unlisted: str = "error",
        faulty_cells: str = "error",
        restore_counts: bool = False,
    ) -> None:
        """Read tables and image headers."""
        check_choice("unlisted", unlisted, UNLISTED)
        root = Path(root)
        found = {path.stem.removeprefix("instances_"): path for path in sorted(root.glob("instances_*.json"))}
        self._fields: CellDataset
        if found and (split is None or not (root / "fields.csv").is_file() or split in found):
            if split not in found:
                raise DataError(f"{root}: {unknown_name('split', split, found)}")
            self._fields = _CocoFields(
                found[split], root / "images", channels=channels, faulty_cells=faulty_cells, restore=restore_counts
            )
        else:
            if restore_counts:
                hint = "data.restore_counts=false"
                got = f"restore_counts for {root}, which has no instances_{split or 'SPLIT'}.json"
                raise ConfigError(explain(got=got, need='COCO annotations with "scale"', hint=hint))
            self._fields = _TableFields(root, split, channels, unlisted)
        self.channels: tuple[Channel, ...] = self._fields.channels
        self.names: tuple[str, ...] = self._fields.names
        self.groups: tuple[str, ...] = self._fields.groups
        coco = self._fields.coco if isinstance(self._fields, _CocoFields) else None
        self.skipped: tuple[str, ...] = coco.skipped if coco else ()
        self.category_ids: tuple[int | str, ...] = coco.category_ids if coco else ()

    def __len__(self) -> int:
        return len(self._fields)

    def describe(self, index: int) -> dict[str, Any]:
        """What the COCO file calls an image, see ``CocoDataset``; empty where tables are read."""
        return self._fields.coco.describe(index) if isinstance(self._fields, _CocoFields) else {}

    def sample(self, index: int) -> Sample:
        """The field at ``index``; DataError if its files are damaged or a cell has no class."""
        return self._fields.sample(index)

    def fingerprint(self) -> str:
        """See CellDataset; reads all files."""
        return self._fields.fingerprint()


class _CocoFields:
    """Fields of instances_<split>.json."""

    classes = LiveDeadDataset.classes

    def __init__(
        self, annotations: Path, images: Path, *, channels: Sequence[str] | None, faulty_cells: str, restore: bool
    ) -> None:
        self.coco = CocoDataset(
            annotations=annotations,
            images=images,
            channels=channels,
            categories=self.classes[1:],
            faulty_cells=faulty_cells,
        )
        self.channels, self.names, self.groups = self.coco.channels, self.coco.names, self.coco.groups
        self._restore = restore
        if restore:
            for index in range(len(self)):
                _read_scale(self.coco.entry(index), channels=len(self.channels), path=annotations)
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self.coco)

    def sample(self, index: int) -> Sample:
        sample = self.coco.sample(index)
        if not self._restore:
            return sample
        if sample.image.dtype != np.uint8:
            got = f"{sample.name} is {sample.image.dtype}, so its counts were never scaled"
            raise DataError(explain(got=got, need="uint8 for restore_counts", hint="data.restore_counts=false"))
        scale = _read_scale(self.coco.entry(index), channels=len(self.channels), path=self._annotations)
        low, high = scale[:, 0, None, None], scale[:, 1, None, None]
        return dataclasses.replace(sample, image=low + sample.image * ((high - low) / np.float32(255)))

    def fingerprint(self) -> str:
        settings = {"coco": self.coco.fingerprint(), "restore_counts": self._restore}
        return compute_fingerprint(settings=settings, files=[])


class _TableFields:
    """Fields of images/, labels/, cells.csv and fields.csv."""

    classes = LiveDeadDataset.classes

    def __init__(self, root: Path, split: str | None, channels: Sequence[str] | None, unlisted: str) -> None:
        images = {image_stem(path): path for path in list_images(root / "images")}
        self._tables = [path for path in (root / "cells.csv", root / "fields.csv") if path.is_file()]
        fields = load_fields(root / "fields.csv", known=images, split=split)
        self.names = tuple(name for name in images if name in fields)
        self._fields: dict[str, Field] = fields
        infos = [read_info(images[name]) for name in self.names]
        self._images = [images[name] for name in self.names]
        self._labels = find_label_files(infos, root / "labels")
        self._cells = load_cells(root / "cells.csv", known=images, may_be_missing=unlisted == "ignore")
        self._unlisted = unlisted
        self.channels = to_channels(channels, infos)
        self.groups = tuple(fields[name].group for name in self.names)
        self._infos: list[ImageInfo] = infos

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int) -> Sample:
        name = self.names[index]
        labels = read_label_image(self._labels[index])
        return Sample(
            name=name,
            group=self.groups[index],
            image=read_image(self._images[index])[0],
            label_image=labels,
            cell_classes=self._find_classes(self._labels[index], labels, self._cells.get(name, {})),
            pixel_size_um=self._fields[name].pixel_size_um or self._infos[index].pixel_size_um,
        )

    def fingerprint(self) -> str:
        settings = {"names": self.names, "groups": self.groups, "unlisted": self._unlisted}
        labels = compute_fingerprint(settings={}, files=self._labels)
        return compute_fingerprint(settings=settings | {"labels": labels}, files=[*self._images, *self._tables])

    def _find_classes(self, path: Path, labels: np.ndarray, listed: dict[int, str]) -> np.ndarray:
        present = find_cell_numbers(path, labels)
        unlisted = [int(label) for label in present if int(label) not in listed]
        absent = sorted(set(listed) - set(present.tolist()))
        if absent or (unlisted and self._unlisted == "error"):
            raise DataError(
                explain(
                    got=f"{path}: cells.csv does not list {unlisted[:20]}; it lists {absent[:20]}, which have no pixel",
                    need="one row for each cell in the label image",
                    hint="correct the rows of cells.csv" if absent else "unlisted=ignore",
                )
            )
        classes = np.full(int(present.max(initial=0)), IGNORE, np.int64)
        for label, name in listed.items():
            classes[label - 1] = CLASS_IDS[name]
        return classes


def _read_scale(entry: dict[str, Any], *, channels: int, path: Path) -> np.ndarray:
    """(C, 2) float32 from the "scale" of a COCO image entry."""
    try:
        with np.errstate(over="ignore"):
            scale: np.ndarray = np.array(list(entry["scale"].values()), dtype=np.float32)
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError):
        scale = np.empty(0)
    if scale.shape != (channels, 2) or not np.isfinite(scale).all():
        raise DataError(
            explain(
                got=f"{path}: image {entry['file_name']} has the scale {show(entry.get('scale'))}",
                need=f"[count at 0, count at 255] for each of {channels} channels",
                hint="data.restore_counts=false",
            )
        )
    return scale
