"""Images with COCO annotations: boxes are ignored, segmentations become label images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.bundle import Channel
from cellvision.data.coco.file import CocoFile, load_coco, load_file_names
from cellvision.data.coco.images import check_images, name_images
from cellvision.data.coco.masks import OVERLAPS, Overlap, compute_runs, count_overlap, order_cells, paint_cells
from cellvision.data.coco.packed_cells import CellRow
from cellvision.data.coco.tables import to_path
from cellvision.data.dataset import UNCERTAIN, compute_fingerprint, to_channels, to_classes
from cellvision.data.groups import find_groups
from cellvision.data.images import read_image
from cellvision.data.images.reading import advise_pattern
from cellvision.errors import ConfigError, DataError, check_choice, explain, unknown_name
from cellvision.types import IGNORE, Sample


class CocoDataset:
    """Fields and cells of one COCO file; a CellDataset.

    Label n of a field is its n-th annotation in the file. A pixel claimed twice goes to one cell, see ``overlap``;
    crowd regions (``iscrowd``) come last and get only what no cell claims. A cell that others cover fully has no pixel.
    Everything but the pixels is checked when the data set is made.

    Args:
        annotations: the JSON file.
        images: folder that its file names start from.
        search_subfolders: find files that are not there by their name in all folders below, as LIVECell needs it.
        channels: "name" or "name:role" each; None takes the file's own, see ``to_channels``.
        categories: category names that become classes 1, 2 ... in this order; None takes all that are not ignored, in
            the order of their ids. A category "background" is no class, and must not have cells.
        ignore: categories whose cells stay in the label image with class IGNORE, as crowd regions do; "uncertain" is
            always one of them.
        pattern: only images whose file name matches, e.g. "fluor_*".
        group_key: key of an image entry that names its group; images without it are a group of their own.
        group_pattern: regular expression searched in the file name; what its first group (...) matches is the field's
            group. None leaves it to ``group_key``.
        overlap: who gets a pixel claimed twice: "first" in the file, or the "smallest", which would else be hidden.
        repeated_images: what becomes of a file that is listed under several ids, with annotations for each: "error";
            "first" leaves out all but the first; "keep" makes each a field of one group.
        excluding: other COCO files whose images (by file name) are left out here, where a training list shares
            images with a validation list.
        faulty_cells: what becomes of annotations without a usable segmentation: "error", or "skip" to leave them out;
            ``skipped`` says what was wrong with each.

    Attributes:
        skipped: faults of the annotations that were left out, one text each.
        category_ids: category id of each class 1..K-1 in the file.

    Raises:
        ConfigError: wrong names of channels, or categories both chosen and ignored.
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
        search_subfolders: bool = False,
        channels: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        pattern: str = "*",
        group_key: str = "group",
        group_pattern: str | None = None,
        overlap: str = "first",
        repeated_images: str = "error",
        excluding: Sequence[Path | str] = (),
        faulty_cells: str = "error",
    ) -> None:
        """Read the JSON and the header of every image."""
        check_choice("overlap", overlap, OVERLAPS)
        self._file = load_coco(
            Path(annotations),
            pattern=pattern,
            excluding=frozenset[str]().union(*(load_file_names(Path(other)) for other in excluding)),
            repeated_images=repeated_images,
            faulty_cells=faulty_cells,
        )
        self._overlap, self.skipped = overlap, self._file.skipped
        chosen, ignored = _choose_categories(self._file, categories, ignore)
        self.classes: tuple[str, ...] = to_classes(chosen)
        self._class_of = {name: at for at, name in enumerate(chosen, start=1)} | dict.fromkeys(ignored, IGNORE)
        id_of = {name: id_ for id_, name in self._file.categories.items()}
        self.category_ids: tuple[int | str, ...] = tuple(id_of[name] for name in chosen)
        if not self._file.images:
            got = f"{annotations} has no image named like {pattern!r}" + (" that is not excluded" if excluding else "")
            raise DataError(explain(got=got, need="at least one", hint=advise_pattern("data.pattern", pattern)))
        infos = check_images(self._file, Path(images), search_subfolders=search_subfolders)
        self._paths = [info.path for info in infos]
        self.channels: tuple[Channel, ...] = to_channels(channels, infos)
        self.names: tuple[str, ...] = name_images(self._file.images, path=self._file.path)
        self.groups: tuple[str, ...] = self._find_groups(group_key, group_pattern)

    def __len__(self) -> int:
        return len(self._file.images)

    def entry(self, index: int) -> dict[str, Any]:
        """The JSON entry of an image, for keys of one's own."""
        return self._file.images[index]

    def describe(self, index: int) -> dict[str, Any]:
        """What the file calls an image: its "id" and its "file_name"."""
        return {key: self._file.images[index][key] for key in ("id", "file_name")}

    def sample(self, index: int) -> Sample:
        """The field at ``index``; DataError if its pixels cannot be decoded."""
        entry, rows = self._file.images[index], self._file.cells[index]
        image, info = read_image(self._paths[index])
        return Sample(
            name=self.names[index],
            group=self.groups[index],
            image=image,
            label_image=self._paint(entry, rows)[0],
            cell_classes=np.array([self._find_class(row) for row in rows], dtype=np.int64),
            pixel_size_um=entry.get("um_per_pixel", info.pixel_size_um),
        )

    def count_overlap(self, index: int) -> Overlap:
        """What the cells of the field at ``index`` lose to each other; no pixel of the image is decoded for it."""
        rows = self._file.cells[index]
        labels, runs = self._paint(self._file.images[index], rows)
        return count_overlap(labels, runs, [row.is_crowd for row in rows])

    def fingerprint(self) -> str:
        """See CellDataset; reads all files."""
        settings = {
            "classes": self.classes,
            "class_of": self._class_of,
            "groups": self.groups,
            "names": self.names,
            "overlap": self._overlap,
            "skipped": len(self.skipped),
        }
        return compute_fingerprint(settings=settings, files=[self._file.path, *self._paths])

    def _paint(self, entry: dict[str, Any], rows: Sequence[CellRow]) -> tuple[np.ndarray, list[np.ndarray]]:
        """(H, W) int32 label image, and the run lengths of each cell."""
        height, width = entry["height"], entry["width"]
        runs = [compute_runs(row.segmentation, height=height, width=width) for row in rows]
        order = order_cells(runs, [row.is_crowd for row in rows], overlap=self._overlap)
        return paint_cells(((i + 1, runs[i]) for i in order), height=height, width=width), runs

    def _find_class(self, row: CellRow) -> int:
        return IGNORE if row.is_crowd else self._class_of[self._file.categories[row.category]]

    def _find_groups(self, key: str, pattern: str | None) -> tuple[str, ...]:
        files = [str(to_path(entry["file_name"])) for entry in self._file.images]
        if pattern is not None:
            return find_groups(files, pattern, what="file name")
        # All fields of one file are a group, also where the file is listed twice.
        first = dict(zip(reversed(files), reversed(self.names), strict=True))
        keys = (entry.get(key) for entry in self._file.images)
        return tuple(first[file] if group is None else str(group) for group, file in zip(keys, files, strict=True))


def _choose_categories(
    file: CocoFile, categories: Sequence[str] | None, ignore: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Categories that become classes, in their order, and those that are ignored."""
    known = list(file.categories.values())
    for name in (*(categories or ()), *ignore):
        if name not in known:
            raise DataError(f"{file.path}: {unknown_name('category', name, known)}")
    if both := [name for name in categories or () if name in ignore]:
        got, rest = f"categories and ignore both name {', '.join(both)}", [name for name in ignore if name not in both]
        raise ConfigError(explain(got=got, need="each category in one of them", hint=f"data.ignore=[{','.join(rest)}]"))
    ignored = [name for name in known if name in ignore or name == UNCERTAIN]
    chosen = [name for name in known if name not in ignored] if categories is None else list(categories)
    if left_over := sorted(file.used_categories - {*chosen, *ignored}):
        raise DataError(
            explain(
                got=f"{file.path} has cells of the categories {', '.join(left_over)}",
                need=f"a class for each (categories are {', '.join(chosen)})",
                hint=f"data.ignore=[{','.join([*ignore, *left_over])}]",
            )
        )
    return chosen, ignored
