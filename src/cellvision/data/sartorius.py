"""The neuronal cells of Kaggle's Sartorius competition (2021) as downloaded: a table of run lengths beside PNG images.

    root/train.csv          a row per cell: id, annotation, width, height, cell_type, and more
    root/train/<id>.png

``annotation`` lists "first_pixel length first_pixel length ...", pixels counted from 1 along the rows; COCO counts from
0 along the columns. Cells overlap, and some masks are known to be broken (holes, stray lines); they are taken as given.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cellvision.bundle import Channel
from cellvision.data.coco.masks import OVERLAPS, order_cells, paint_cells
from cellvision.data.coco.tables import show
from cellvision.data.dataset import (
    BACKGROUND,
    UNCERTAIN,
    compute_fingerprint,
    list_faults,
    to_channels,
    to_classes,
)
from cellvision.data.groups import find_groups
from cellvision.data.images import ImageInfo, read_image, read_info
from cellvision.errors import DataError, check_choice, explain
from cellvision.types import Sample

FAULTY_CELLS = ("error", "skip")
COLUMNS = ("id", "annotation", "width", "height", "cell_type")
MAX_NAME_BYTES = 250
MAX_DIGITS = 9
"""Of a number in the table: no image has a billion pixels, and numbers of any length would not fit into int64."""


class SartoriusDataset:
    r"""Fields and cells of ``root``; a CellDataset.

    Label n of a field is its n-th row in the table (that is taken). A pixel claimed twice goes to one cell, see
    ``overlap``. Images without a row are no part of the data set.

    Args:
        root: the folder described above.
        classes: cell types that become classes 1, 2 ... in this order; None takes all, in the order of the alphabet.
        group_column: column of the table that names a field's group: fields of one sample may show the same cells at
            other times. None makes each image a group of its own.
        group_pattern: regular expression searched in that column's text; what its first group (...) matches is the
            field's group, such as the well.
        overlap: who gets a pixel claimed twice: "first" in the table, or the "smallest", which would else be hidden.
        faulty_cells: what becomes of annotations that cannot be read: "error", or "skip" to leave these cells out;
            ``skipped`` says what was wrong with each.

    Attributes:
        skipped: faults of the annotations that were left out, one text each.

    Raises:
        ConfigError: an unknown choice, or a group_pattern that is none.
        DataError: faults in the table, cell types left over, images missing, of another size than the table says or
            unlike each other; each text lists all of them.

    Example:
        >>> import tempfile, tifffile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "train").mkdir()
        >>> tifffile.imwrite(root / "train" / "a.png", np.zeros((2, 5), np.uint8))
        >>> _ = (root / "train.csv").write_text("id,annotation,width,height,cell_type\na,2 2 7 1,5,2,cort\n")
        >>> SartoriusDataset(root=root, group_column=None).sample(0).label_image.tolist()
        [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]]
    """

    def __init__(
        self,
        *,
        root: Path | str,
        classes: Sequence[str] | None = None,
        group_column: str | None = "sample_id",
        group_pattern: str | None = None,
        overlap: str = "first",
        faulty_cells: str = "error",
    ) -> None:
        """Read the table and the header of every image."""
        check_choice("overlap", overlap, OVERLAPS)
        check_choice("faulty_cells", faulty_cells, FAULTY_CELLS)
        self._table = Path(root) / "train.csv"
        rows = _Rows(self._table, group_column=group_column, keep_faulty=faulty_cells == "error")
        self._fields, self.skipped = list(rows.fields.values()), tuple(rows.skipped)
        self._overlap = overlap
        self.classes: tuple[str, ...] = _choose_classes(self._table, self._fields, classes)
        infos = _check_images(self._table, rows.fields, Path(root) / "train")
        self._paths = [info.path for info in infos]
        self.channels: tuple[Channel, ...] = to_channels(None, infos)
        self.names: tuple[str, ...] = tuple(rows.fields)
        self.groups: tuple[str, ...] = find_groups(
            [one.group for one in self._fields], group_pattern, what=group_column or "id"
        )

    def __len__(self) -> int:
        return len(self._fields)

    def sample(self, index: int) -> Sample:
        """The field at ``index``; DataError if its pixels cannot be decoded."""
        image, info = read_image(self._paths[index])
        found = self._fields[index]
        height, width = found.shape
        runs = [read_runs(text, pixels=height * width) for text in found.annotations]
        order = order_cells(runs, [False] * len(runs), overlap=self._overlap)
        # Runs along the rows are runs along the columns of the transposed field.
        columns = paint_cells(((i + 1, runs[i]) for i in order), height=width, width=height)
        return Sample(
            name=self.names[index],
            group=self.groups[index],
            image=image,
            label_image=np.ascontiguousarray(columns.T),
            cell_classes=np.array([self.classes.index(kind) for kind in found.cell_types], dtype=np.int64),
            pixel_size_um=info.pixel_size_um,
        )

    def fingerprint(self) -> str:
        """See CellDataset; reads all files."""
        settings = {
            "classes": self.classes,
            "groups": self.groups,
            "overlap": self._overlap,
            "skipped": len(self.skipped),
        }
        return compute_fingerprint(settings=settings, files=[self._table, *self._paths])


def read_runs(text: str, *, pixels: int) -> np.ndarray:
    """Run lengths, int64, row by row, background first, of an annotation; ValueError says what is wrong with it.

    Args:
        text: "first_pixel length ...", pixels counted from 1.
        pixels: of the image, height x width.

    Example:
        >>> read_runs("2 2 7 1", pixels=10)
        array([1, 2, 3, 1])
    """
    words = text.split()
    if not words:
        raise ValueError("annotation is empty")
    if not all(_is_whole(word) for word in words):
        raise ValueError("annotation with something else than whole numbers from 1 up")
    if len(words) % 2:
        raise ValueError(f"annotation of {len(words)} numbers, which is odd")
    begins, lengths = np.array([int(word) for word in words], dtype=np.int64).reshape(-1, 2).T
    ends = begins - 1 + lengths
    if (begins[1:] <= ends[:-1]).any():
        raise ValueError("runs overlap or are not in order")
    if ends[-1] > pixels:
        raise ValueError(f"run up to pixel {ends[-1]} of {pixels}")
    return np.diff(np.stack([begins - 1, ends], axis=1).ravel(), prepend=0)


@dataclass(kw_only=True)
class _Field:
    """What the table says of an image: its size (H, W) px, its group, and annotation and type of each cell."""

    shape: tuple[int, int]
    group: str
    annotations: list[str] = field(default_factory=list)
    cell_types: list[str] = field(default_factory=list)


class _Rows:
    """The table's rows, dealt to their images (``fields``, by id, in the table's order); ``skipped`` as told there."""

    def __init__(self, path: Path, *, group_column: str | None, keep_faulty: bool) -> None:
        """Read all; DataError lists what is wrong."""
        self.fields: dict[str, _Field] = {}
        self.skipped: list[str] = []
        faults: list[str] = []
        for line, row in _iterate(path, (*COLUMNS, *([group_column] if group_column else []))):
            fault = self._find_fault(row)
            if fault is None:
                fault = self._take(row, group=row[group_column] if group_column else row["id"])
            if fault is not None:
                faults.append(f"line {line}: {fault}")
            elif (unread := _find_unreadable(row)) is not None:
                (faults if keep_faulty else self.skipped).append(f"line {line}: {unread}")
            else:
                self.fields[row["id"]].annotations.append(row["annotation"])
                self.fields[row["id"]].cell_types.append(row["cell_type"])
        if faults or not self.fields:
            got = f"{path}: {list_faults(faults)}" if faults else f"{path} has no row"
            need, hint = "a table without faults", "correct these lines, or data.faulty_cells=skip for bad annotations"
            raise DataError(explain(got=got, need=need, hint=hint))

    @staticmethod
    def _find_fault(row: dict[str, str]) -> str | None:
        if None in row or None in row.values():
            return "other number of columns than the first line"
        name = row["id"]
        if not name or Path(name).name != name or "\\" in name or len(name.encode()) > MAX_NAME_BYTES:
            return f"id {show(name)} is no name of a file"
        for key in ("width", "height"):
            if not _is_whole(row[key]):
                return f"{key} {show(row[key])} is no number from 1 up"
        if row["cell_type"] in (BACKGROUND, UNCERTAIN):
            return f"cell_type {row['cell_type']!r} is no class"
        return None if row["cell_type"] else "no cell_type"

    def _take(self, row: dict[str, str], *, group: str) -> str | None:
        """Note the row's image; what contradicts an earlier row, or None."""
        if not group:
            return f"{row['id']} has no group"
        shape = (int(row["height"]), int(row["width"]))
        found = self.fields.setdefault(row["id"], _Field(shape=shape, group=group))
        if found.shape != shape:
            return f"{row['id']} is {shape} px, and {found.shape} px in an earlier line"
        return (
            None if found.group == group else f"{row['id']} is of {group!r}, and of {found.group!r} in an earlier line"
        )


def _iterate(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of the table; other columns than the needed ones may be there."""
    if not path.is_file():
        need = f"a table with {', '.join(needed)}"
        raise DataError(explain(got=f"{path} is missing", need=need, hint="data.root=FOLDER_OF_TRAIN.CSV"))
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or ())
            if missing := [name for name in needed if name not in columns]:
                got = f"{path} has the columns {', '.join(columns) or '(none)'}"
                raise DataError(explain(got=got, need=f"also {', '.join(missing)}", hint="the competition's train.csv"))
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(explain(got=f"{path}: {error}", need="a CSV table in UTF-8", hint="copy it again")) from error


def _find_unreadable(row: dict[str, str]) -> str | None:
    try:
        read_runs(row["annotation"], pixels=int(row["height"]) * int(row["width"]))
    except ValueError as error:
        return f"{error}, in {row['id']}"
    return None


def _is_whole(text: str) -> bool:
    """Whether this is a whole number from 1 up, and of a size that occurs."""
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS and int(text) > 0


def _choose_classes(path: Path, fields: Sequence[_Field], wanted: Sequence[str] | None) -> tuple[str, ...]:
    found = sorted({kind for one in fields for kind in one.cell_types})
    chosen = found if wanted is None else list(wanted)
    if left_over := [kind for kind in found if kind not in chosen]:
        need = f"a class for each (classes are {', '.join(chosen)})"
        got = f"{path} has cells of the types {', '.join(left_over)}"
        raise DataError(explain(got=got, need=need, hint=f"classes=[{','.join(found)}]"))
    return to_classes(chosen)


def _check_images(table: Path, fields: Mapping[str, _Field], folder: Path) -> list[ImageInfo]:
    """Headers of the images; DataError lists those missing, damaged, or of another size than the table says."""
    infos, faults = [], []
    for name, one in fields.items():
        path = folder / f"{name}.png"
        if not path.is_file():
            faults.append(f"{path} is missing")
            continue
        try:
            info = read_info(path)
        except DataError as error:
            faults.append(str(error).partition("; need ")[0])  # the list of faults has advice of its own
            continue
        if info.shape[1:] != one.shape:
            faults.append(f"{path} is {info.shape[1:]} px, the table says {one.shape}")
        infos.append(info)
    if faults:
        need, hint = "the images of the table", "check data.root, and unpack the competition's archive again"
        raise DataError(explain(got=f"{table}: {list_faults(faults)}", need=need, hint=hint))
    return infos
