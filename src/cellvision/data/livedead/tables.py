"""The two tables beside live/dead images: the class of each cell, and what is known of each field."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cellvision.data.coco.tables import show
from cellvision.data.dataset import UNCERTAIN, list_faults
from cellvision.data.images import IMAGE_SUFFIXES, image_stem
from cellvision.errors import DataError, explain, unknown_name
from cellvision.types import IGNORE

CLASS_IDS = {"live": 1, "dead": 2, UNCERTAIN: IGNORE}
MAX_DIGITS = 9
"""Of a label: label images hold no greater ones, and Python refuses to read numbers of any length."""
_LONGEST_SHOWN = 80  # letters of a first line, which in a file of another kind can be the whole file


@dataclass(frozen=True, kw_only=True)
class Field:
    """A row of fields.csv: group of the field, its split or "", its pixel size or None."""

    group: str
    split: str = ""
    pixel_size_um: float | None = None


def load_cells(path: Path, *, known: Collection[str], may_be_missing: bool) -> dict[str, dict[int, str]]:
    """Class name of each label of each image (by stem) from cells.csv; DataError lists all bad rows.

    Args:
        path: the table.
        known: stems of the images that exist.
        may_be_missing: whether no file means an empty table.
    """
    if may_be_missing and not path.is_file():
        return {}
    cells: dict[str, dict[int, str]] = {}

    def take(row: dict[str, str]) -> str | None:
        stem, label, name = _to_stem(row["image"]), row["label"], row["class"]
        if stem not in known:
            return f"unknown image {row['image']!r}"
        if not (label.isascii() and label.isdigit() and len(label) <= MAX_DIGITS and int(label) > 0):
            return f"label {show(label)} is no number from 1 up"
        if name not in CLASS_IDS:
            return f"class {name!r} is none of {', '.join(CLASS_IDS)}"
        if int(label) in cells.setdefault(stem, {}):
            return f"label {label} of {stem} for the second time"
        cells[stem][int(label)] = name
        return None

    _read_rows(path, required=("image", "label", "class"), optional=(), take=take)
    return cells


def load_fields(path: Path, *, known: Collection[str], split: str | None) -> dict[str, Field]:
    """The fields of ``split`` (all where None) by stem; without fields.csv every image is a group of its own.

    Raises:
        DataError: bad rows, images without a row, or no field in the split.
    """
    if not path.is_file() and split is None:
        return {stem: Field(group=stem) for stem in known}
    fields: dict[str, Field] = {}

    def take(row: dict[str, str]) -> str | None:
        stem, size = _to_stem(row["image"]), row.get("pixel_size_um", "")
        if stem not in known:
            return f"unknown image {row['image']!r}"
        if stem in fields:
            return f"image {stem} for the second time"
        if size and not _is_positive(size):
            return f"pixel_size_um {size!r} is no positive number"
        group = row.get("group") or stem
        fields[stem] = Field(group=group, split=row.get("split", ""), pixel_size_um=float(size) if size else None)
        return None

    _read_rows(path, required=("image",), optional=("group", "split", "pixel_size_um"), take=take)
    if missing := sorted(set(known) - set(fields)):
        faults = list_faults([f"image {stem} has no row" for stem in missing])
        raise DataError(explain(got=f"{path}: {faults}", need="one row per image", hint="add the rows"))
    splits = {field.split for field in fields.values()}
    if split is not None and split not in splits:
        raise DataError(f"{path}: {unknown_name('split', split, splits - {''})}")
    return {stem: field for stem, field in fields.items() if split in (None, field.split)}


def _read_rows(
    path: Path, *, required: Collection[str], optional: Collection[str], take: Callable[[dict[str, str]], str | None]
) -> None:
    """Hand each row to ``take``, which returns what is wrong with it or None; then raise for all that is wrong."""
    faults = []
    for number, row in _iterate(path, required, optional):
        if None in row or None in row.values():
            fault: str | None = "other number of columns than the first line"
        else:
            fault = take({name: value.strip() for name, value in row.items()})
        if fault:
            faults.append(f"line {number}: {fault}")
    if faults:
        raise DataError(
            explain(got=f"{path}: {list_faults(faults)}", need="a table without faults", hint="correct these lines")
        )


def _iterate(path: Path, required: Collection[str], optional: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise DataError(
            explain(got=f"{path} is missing", need=f"a table with {', '.join(required)}", hint="see LiveDeadDataset")
        )
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark in front of the first column name.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if not set(required) <= set(columns) <= {*required, *optional}:
                need = ", ".join(required) + (f" (and {', '.join(optional)})" if optional else "")
                shown = ", ".join(columns) or "(none)"
                shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
                got = f"{path} has the columns {shown}"
                raise DataError(explain(got=got, need=need, hint="rename the columns; separate them by commas"))
            reader.fieldnames = columns
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(explain(got=f"{path}: {error}", need="a CSV table in UTF-8", hint="export it again")) from error


def _to_stem(name: str) -> str:
    return image_stem(name) if name.lower().endswith(IMAGE_SUFFIXES) else name


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
