"""A folder of images and a folder of masks: label images, class maps, or plain foreground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from skimage.measure import label as label_components

from cellvision.bundle import Channel
from cellvision.data.dataset import compute_fingerprint, to_channels, to_classes
from cellvision.data.groups import find_groups
from cellvision.data.images import image_stem, list_images, read_image, read_info, read_label_image
from cellvision.data.pairing import find_cell_numbers, find_label_files
from cellvision.errors import ConfigError, DataError, check_choice, explain
from cellvision.types import IGNORE, Sample

LABELS_ARE = ("cells", "classes", "foreground")


class FolderDataset:
    """Images with a mask file of the same stem each; a CellDataset.

    Args:
        root: folder with ``images`` and ``labels`` in it; or give those two folders.
        images, labels: folders of the images and of the masks.
        labels_are: "cells": each cell its own number, all of one class; "classes": pixel values are class ids, 255 is
            ignored, and touching pixels (also by a corner) of one class are one cell; "foreground": what is not 0 is
            class 1, and touching pixels are one cell.
        classes: class names, with or without "background" in front.
        pattern: only images whose file name matches (``fnmatch``).
        group_pattern: regular expression searched in the file stem; what its first group (...) matches is the field's
            group. None makes each file a group of its own.
        channels: "name" or "name:role" each; None takes the names in the files.

    Raises:
        ConfigError: unknown ``labels_are`` or role, an unusable pattern, or more classes than ``labels_are`` can tell.
        DataError: lists images without mask, masks of another size, images unlike each other or outside the pattern.

    Example:
        >>> import tempfile, tifffile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("images", "labels"):
        ...     (root / name).mkdir()
        ...     tifffile.imwrite(root / name / "A1_s1.tif", np.eye(4, dtype=np.uint8))
        >>> FolderDataset(root=root, labels_are="foreground", group_pattern="(.*)_s").sample(0).cell_classes
        array([1])
    """

    def __init__(
        self,
        *,
        root: Path | str | None = None,
        images: Path | str | None = None,
        labels: Path | str | None = None,
        labels_are: str = "cells",
        classes: Sequence[str] = ("cell",),
        pattern: str = "*",
        group_pattern: str | None = None,
        channels: Sequence[str] | None = None,
    ) -> None:
        """Find the files and read their headers."""
        check_choice("labels_are", labels_are, LABELS_ARE)
        self.classes: tuple[str, ...] = to_classes(classes)
        if labels_are != "classes" and len(self.classes) > 2:
            raise ConfigError(
                explain(
                    got=f"labels_are={labels_are} with the classes {', '.join(self.classes)}",
                    need="one class besides background",
                    hint="labels_are=classes, or LiveDeadDataset for classes in a table",
                )
            )
        folders = _find_folders(root, images, labels)
        self._labels_are = labels_are
        self._images = list_images(folders[0], pattern)
        infos = [read_info(path) for path in self._images]
        self._labels = find_label_files(infos, folders[1])
        self.channels: tuple[Channel, ...] = to_channels(channels, infos)
        self.names: tuple[str, ...] = tuple(image_stem(path) for path in self._images)
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise DataError(
                explain(got=f"{folders[0]}: several images named {twice}", need="one per stem", hint="rename or remove")
            )
        self.groups: tuple[str, ...] = find_groups(self.names, group_pattern)

    def __len__(self) -> int:
        return len(self._images)

    def sample(self, index: int) -> Sample:
        """The field at ``index``; DataError if its files are damaged or the mask holds unknown classes."""
        image, info = read_image(self._images[index])
        label_image, cell_classes = self._to_cells(self._labels[index])
        return Sample(
            name=self.names[index],
            group=self.groups[index],
            image=image,
            label_image=label_image,
            cell_classes=cell_classes,
            pixel_size_um=info.pixel_size_um,
        )

    def fingerprint(self) -> str:
        """See CellDataset; reads all files."""
        labels = compute_fingerprint(settings={"labels_are": self._labels_are}, files=self._labels)
        settings = {"classes": self.classes, "groups": self.groups, "labels": labels}
        return compute_fingerprint(settings=settings, files=self._images)

    def _to_cells(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) int32 label image and (N,) int64 cell classes of one mask file."""
        stored = read_label_image(path)
        if self._labels_are == "cells":
            present = find_cell_numbers(path, stored)
            classes = np.full(int(present.max(initial=0)), IGNORE, np.int64)
            classes[present - 1] = 1
            return stored, classes
        class_map = np.minimum(stored, 1) if self._labels_are == "foreground" else stored
        self._check_classes(path, class_map)
        cells, count = label_components(class_map, background=0, connectivity=2, return_num=True)
        classes = np.zeros(count + 1, np.int64)
        classes[cells.ravel()] = class_map.ravel()  # all pixels of a component have one class
        return cells.astype(np.int32), classes[1:]

    def _check_classes(self, path: Path, class_map: np.ndarray) -> None:
        values = set(np.unique(class_map).tolist())
        if unknown := sorted(values - {*range(len(self.classes)), IGNORE}):
            raise DataError(
                explain(
                    got=f"{path} holds the values {unknown[:20]}",
                    need=f"0 to {len(self.classes) - 1} ({', '.join(self.classes)}), or {IGNORE} for ignored pixels",
                    hint="labels_are=cells if each cell has its own number",
                )
            )
        if values in ({0, IGNORE}, {IGNORE}):
            raise DataError(
                explain(
                    got=f"{path} holds {IGNORE} and no class, so everything in it would be ignored",
                    need="class ids",
                    hint=f"labels_are=foreground if {IGNORE} is the cells",
                )
            )


def _find_folders(root: Path | str | None, images: Path | str | None, labels: Path | str | None) -> tuple[Path, Path]:
    if root is not None and images is None and labels is None:
        return Path(root) / "images", Path(root) / "labels"
    if root is None and images is not None and labels is not None:
        return Path(images), Path(labels)
    raise ConfigError(
        explain(
            got=f"root={root}, images={images}, labels={labels}", need="root, or images and labels", hint="root=DIR"
        )
    )
