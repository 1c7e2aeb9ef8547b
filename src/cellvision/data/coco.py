"""Images with COCO annotations: boxes are ignored, segmentations become label images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cellvision.bundle import Channel
from cellvision.data.coco_file import CocoFile, load_coco, raise_faults
from cellvision.data.coco_masks import compute_runs, paint_cells
from cellvision.data.dataset import compute_fingerprint, list_faults, to_channels, to_classes
from cellvision.data.images import ImageInfo, image_stem, read_image, read_info
from cellvision.errors import DataError, explain, unknown_name
from cellvision.types import IGNORE, Sample


class CocoDataset:
    """Fields and cells of one COCO file; a CellDataset.

    Label n of a field is its n-th annotation in the file. A pixel claimed twice stays with the first annotation;
    crowd regions (``iscrowd``) come last and get only what no cell claims. A cell that others cover fully has no pixel.
    Everything but the pixels is checked when the data set is made.

    Args:
        annotations: the JSON file.
        images: folder that its file names start from.
        channels: "name" or "name:role" each; None takes the file's own, see ``to_channels``.
        categories: category names that become classes 1, 2 ... in this order; None takes all that are not ignored, in
            the order of their ids.
        ignore: categories whose cells stay in the label image with class IGNORE, as crowd regions do.
        pattern: only images whose file name matches, e.g. "fluor_*".
        group_key: key of an image entry that names its group; images without it are a group of their own.

    Raises:
        ConfigError: wrong names of channels.
        DataError: faults in the JSON, images missing, of another size than the JSON says or unlike each other, or
            categories unknown or left over; each text lists all of them.

    Example:
        >>> import json, tempfile, tifffile
        >>> folder, square = Path(tempfile.mkdtemp()), [1, 1, 4, 1, 4, 4, 1, 4]
        >>> tifffile.imwrite(folder / "a.tif", np.zeros((5, 9), np.uint16))
        >>> tables = {
        ...     "images": [{"id": 1, "file_name": "a.tif", "width": 9, "height": 5}],
        ...     "categories": [{"id": 1, "name": "nucleus"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [square]}],
        ... }
        >>> _ = (folder / "cells.json").write_text(json.dumps(tables))
        >>> sample = CocoDataset(annotations=folder / "cells.json", images=folder).sample(0)
        >>> int((sample.label_image == 1).sum())
        9
    """

    def __init__(
        self,
        *,
        annotations: Path | str,
        images: Path | str,
        channels: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        pattern: str = "*",
        group_key: str = "group",
    ) -> None:
        """Read the JSON and the header of every image."""
        self._folder, self._pattern = Path(images), pattern
        self._file = load_coco(Path(annotations), pattern=pattern)
        self._class_of = _number_categories(self._file, categories, ignore)
        self.classes: tuple[str, ...] = to_classes(
            name for name, _ in sorted(self._class_of.items(), key=lambda c: c[1]) if self._class_of[name] != IGNORE
        )
        if not self._file.images:
            raise DataError(
                explain(
                    got=f"{annotations} has no image named like {pattern!r}", need="at least one", hint='pattern="*"'
                )
            )
        infos = _check_files(self._file, self._folder)
        self.channels: tuple[Channel, ...] = to_channels(channels, infos)
        self.names: tuple[str, ...] = _name_images(self._file)
        groups = (image.get(group_key) for image in self._file.images)
        self.groups: tuple[str, ...] = tuple(
            name if group is None else str(group) for group, name in zip(groups, self.names, strict=True)
        )

    def __len__(self) -> int:
        return len(self._file.images)

    def entry(self, index: int) -> dict[str, Any]:
        """The JSON entry of an image, for keys of one's own."""
        return self._file.images[index]

    def sample(self, index: int) -> Sample:
        """The field at ``index``; DataError if its pixels cannot be decoded."""
        entry = self._file.images[index]
        cells = self._file.cells[entry["id"]]
        image, info = read_image(self._folder / entry["file_name"])
        height, width = entry["height"], entry["width"]
        order = sorted(range(len(cells)), key=lambda i: bool(cells[i].get("iscrowd")))  # sorted() keeps the order else
        runs = ((i + 1, compute_runs(cells[i]["segmentation"], height=height, width=width)) for i in order)
        return Sample(
            name=self.names[index],
            group=self.groups[index],
            image=image,
            label_image=paint_cells(runs, height=height, width=width),
            cell_classes=np.array([self._find_class(cell) for cell in cells], dtype=np.int64),
            pixel_size_um=entry.get("um_per_pixel", info.pixel_size_um),
        )

    def fingerprint(self) -> str:
        """See CellDataset; reads all files."""
        settings = {"classes": self.classes, "class_of": self._class_of, "groups": self.groups}
        files = [self._folder / entry["file_name"] for entry in self._file.images]
        return compute_fingerprint(settings=settings, files=[self._file.path, *files])

    def _find_class(self, cell: dict[str, Any]) -> int:
        return IGNORE if cell.get("iscrowd") else self._class_of[self._file.categories[cell["category_id"]]]


def _number_categories(file: CocoFile, categories: Sequence[str] | None, ignore: Sequence[str]) -> dict[str, int]:
    """Class of each category name: 1, 2 ..., or IGNORE."""
    known = list(file.categories.values())
    for name in (*(categories or ()), *ignore):
        if name not in known:
            raise DataError(f"{file.path}: {unknown_name('category', name, known)}")
    chosen = [name for name in known if name not in ignore] if categories is None else list(categories)
    used = {file.categories[cell["category_id"]] for cells in file.cells.values() for cell in cells}
    if left_over := sorted(used - {*chosen, *ignore}):
        raise DataError(
            explain(
                got=f"{file.path} has cells of the categories {', '.join(left_over)}",
                need=f"a class for each (categories are {', '.join(chosen)})",
                hint=f"ignore=[{', '.join(left_over)}]",
            )
        )
    return {name: number for number, name in enumerate(chosen, start=1)} | dict.fromkeys(ignore, IGNORE)


def _check_files(file: CocoFile, folder: Path) -> list[ImageInfo]:
    """Headers of all images; DataError lists those missing, damaged or of another size."""
    infos, faults = [], []
    for entry in file.images:
        path = folder / entry["file_name"]
        if not path.is_file():
            faults.append(f"{path} is missing")
            continue
        try:
            info = read_info(path)
        except DataError as error:
            faults.append(str(error))
            continue
        if info.shape[1:] != (entry["height"], entry["width"]):
            found, said = info.shape[1:], (entry["height"], entry["width"])
            faults.append(f"{path} is {found[0]}x{found[1]} px, the JSON says {said[0]}x{said[1]}")
        infos.append(info)
    raise_faults(file.path, faults)
    return infos


def _name_images(file: CocoFile) -> tuple[str, ...]:
    """File stems, with their folders where stems alone are not unique."""
    paths = [PurePosixPath(entry["file_name"].replace("\\", "/")) for entry in file.images]
    stems = [image_stem(path.name) for path in paths]
    if len(set(stems)) < len(stems):
        stems = ["_".join((*path.parent.parts, stem)) for path, stem in zip(paths, stems, strict=True)]
    if twice := [f"{stem} is the name of {count} images" for stem, count in Counter(stems).items() if count > 1]:
        raise DataError(
            explain(got=f"{file.path}: {list_faults(twice)}", need="one file stem per image", hint="rename the files")
        )
    return tuple(stems)
