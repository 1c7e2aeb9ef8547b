"""A COCO annotation file, read strictly: all its faults at once, or images and cells that fit together."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cellvision.data.coco.masks import find_fault
from cellvision.data.coco.packed_cells import PackedCells, pack_cell
from cellvision.data.coco.tables import (
    check_annotations,
    check_images,
    find_repeated,
    load_tables,
    name_categories,
    raise_faults,
    show,
    to_path,
)
from cellvision.errors import check_choice

REPEATED_IMAGES = ("error", "first", "keep")
FAULTY_CELLS = ("error", "skip")


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """What a COCO file holds, without what nobody asked for.

    Attributes:
        path: the file.
        images: entries in the file's order; "um_per_pixel", where there is one, is a positive number.
        cells: annotations of each of the images, in the file's order.
        categories: name of each category id, ascending; a category "background", which has no cell, is left out.
        used_categories: names of those that the annotations have.
        skipped: what was wrong with each annotation that was left out.
    """

    path: Path
    images: tuple[dict[str, Any], ...]
    cells: PackedCells
    categories: dict[Any, str]
    used_categories: frozenset[str]
    skipped: tuple[str, ...] = ()


def load_categories(path: Path) -> tuple[str, ...]:
    """Category names of a COCO file in the order of their ids; DataError if the file is none."""
    return tuple(name_categories(load_tables(path), []).values())


def load_file_names(path: Path) -> frozenset[str]:
    """The file names of a COCO file's images, with / between folders; DataError if the file is none."""
    faults: list[str] = []
    images = check_images(load_tables(path)["images"], faults)
    raise_faults(path, faults)
    return frozenset(str(to_path(image["file_name"])) for image in images)


def load_coco(
    path: Path,
    *,
    pattern: str = "*",
    excluding: Collection[str] = (),
    repeated_images: str = "error",
    faulty_cells: str = "error",
    measures: Sequence[str] = (),
) -> CocoFile:
    """A COCO file whose ids and segmentations have been checked.

    Args:
        path: JSON; "annotations" may be a list, or an object by id as in LIVECell.
        pattern: only images whose file name matches (``fnmatch``), and their cells.
        excluding: file names of images to leave out, with / between folders.
        repeated_images: "error", "first" or "keep", see ``CocoDataset``.
        faulty_cells: "error" or "skip", see ``CocoDataset``.
        measures: further keys of the annotations to keep unchecked in ``CellRow.measures``, e.g. "area".

    Raises:
        ConfigError: ``repeated_images`` or ``faulty_cells`` is none of its choices.
        DataError: no such file, no JSON, or faults inside, all counted, and the first 10 listed.
    """
    check_choice("repeated_images", repeated_images, REPEATED_IMAGES)
    check_choice("faulty_cells", faulty_cells, FAULTY_CELLS)
    tables = load_tables(path, measures=measures)
    faults: list[str] = []
    categories = name_categories(tables, faults)
    images = check_images(tables["images"], faults)
    ids_are_known = not faults  # else the cells of a faulty image or category would be counted as well
    repeated = find_repeated(images) if repeated_images == "error" else []
    annotations = check_annotations(tables["annotations"], faults)
    kept = _choose_images(images, pattern, excluding, first_only=repeated_images == "first")
    cells: dict[Any, list[str]] = {image["id"]: [] for image in kept}
    unknown, bad = _deal_cells(annotations, categories, {image["id"]: image for image in images}, cells, measures)
    counted = bad if faulty_cells == "error" else []
    if not ids_are_known:
        unknown = []
    raise_faults(path, faults + repeated + unknown + counted, hint=_advise(repeated, counted))
    return CocoFile(
        path=path,
        images=tuple(kept),
        cells=PackedCells(cells[image["id"]] for image in kept),
        categories=categories,
        used_categories=frozenset(categories[a["category_id"]] for a in annotations if a["image_id"] in cells),
        skipped=tuple(bad),
    )


def _choose_images(
    images: Sequence[dict[str, Any]], pattern: str, excluding: Collection[str], *, first_only: bool
) -> list[dict[str, Any]]:
    kept, seen = [], set()
    for image in images:
        name = str(to_path(image["file_name"]))
        if fnmatch(name, pattern) and name not in excluding and not (first_only and name in seen):
            kept.append(image)
            seen.add(name)
    return kept


def _advise(repeated: Collection[str], bad: Collection[str]) -> str:
    """What to do about the faults; both ways of reading such a file are named, for either can find them."""
    ways = ["correct or remove these entries"]
    if repeated:
        ways.append("data.repeated_images=keep with data=coco")
    if bad:
        ways.append("leave these cells out (data.faulty_cells=skip in training, --skip-faulty in evaluate)")
    return ", or ".join(ways)


def _deal_cells(
    annotations: list[dict[str, Any]],
    categories: dict[Any, str],
    images: dict[Any, dict[str, Any]],
    cells: dict[Any, list[str]],
    measures: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Put the annotations of the images in ``cells`` there; returns those of unknown ids, and unusable ones."""
    unknown, bad = [], []
    for annotation in annotations:
        name, image = f"annotation {show(annotation['id'])}", images.get(annotation["image_id"])
        if annotation["category_id"] not in categories:
            unknown.append(f"{name} has the unknown category {show(annotation['category_id'])}")
        elif image is None:
            unknown.append(f"{name} has the unknown image {show(annotation['image_id'])}")
        elif image["id"] in cells:
            if fault := _find_cell_fault(annotation, image):
                bad.append(f"{name} of {image['file_name']}: {fault}")
            else:
                cells[image["id"]].append(_pack(annotation, measures))
    return unknown, bad


def _find_cell_fault(annotation: dict[str, Any], image: dict[str, Any]) -> str | None:
    # Text is no answer: "0" would count as a crowd.
    if (is_crowd := annotation.get("iscrowd")) is not None and is_crowd not in (0, 1):
        return f"iscrowd is {show(is_crowd)}, neither 0 nor 1"
    return find_fault(json.loads(annotation["segmentation"]), height=image["height"], width=image["width"])


def _pack(annotation: dict[str, Any], measures: Sequence[str]) -> str:
    return pack_cell(
        annotation["category_id"],
        is_crowd=bool(annotation.get("iscrowd")),
        segmentation=annotation["segmentation"],
        measures={key: annotation[key] for key in measures if key in annotation},
    )
