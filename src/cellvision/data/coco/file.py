"""A COCO annotation file, read strictly: all its faults at once, or images and cells that fit together."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from cellvision.data.coco.masks import find_fault
from cellvision.data.coco.packed_cells import PackedCells, pack_cell
from cellvision.data.dataset import list_faults
from cellvision.errors import DataError, check_choice, explain

MAX_JSON_BYTES = 2**31
REPEATED_IMAGES = ("error", "first", "keep")
FAULTY_CELLS = ("error", "skip")

_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation")


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """What a COCO file holds, without what nobody asked for.

    Attributes:
        path: the file.
        images: entries in the file's order; "um_per_pixel", where there is one, is a positive number.
        cells: annotations of each of the images, in the file's order.
        categories: name of each category id, ascending.
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
    return tuple(_name_categories(_load_tables(path)["categories"], []).values())


def load_file_names(path: Path) -> frozenset[str]:
    """The file names of a COCO file's images; DataError if the file is none."""
    faults: list[str] = []
    images = _check_images(_load_tables(path)["images"], faults, may_repeat=True)
    raise_faults(path, faults)
    return frozenset(image["file_name"] for image in images)


def load_coco(
    path: Path,
    *,
    pattern: str = "*",
    excluding: Collection[str] = (),
    repeated_images: str = "error",
    faulty_cells: str = "error",
) -> CocoFile:
    """A COCO file whose ids and segmentations have been checked.

    Args:
        path: JSON; "annotations" may be a list, or an object by id as in LIVECell.
        pattern: only images whose file name matches (``fnmatch``), and their cells.
        excluding: file names of images to leave out.
        repeated_images: "error", "first" or "keep", see ``CocoDataset``.
        faulty_cells: "error" or "skip", see ``CocoDataset``.

    Raises:
        ConfigError: ``repeated_images`` or ``faulty_cells`` is none of its choices.
        DataError: no such file, no JSON, or faults inside, which are all listed (up to 20).
    """
    check_choice("repeated_images", repeated_images, REPEATED_IMAGES)
    check_choice("faulty_cells", faulty_cells, FAULTY_CELLS)
    tables = _load_tables(path)
    faults: list[str] = []
    categories = _name_categories(tables["categories"], faults)
    images = _check_images(tables["images"], faults, may_repeat=repeated_images != "error")
    kept = [i for i in images if fnmatch(i["file_name"], pattern) and i["file_name"] not in excluding]
    if repeated_images == "first":
        first: dict[str, dict[str, Any]] = {}
        kept = [image for image in kept if first.setdefault(image["file_name"], image) is image]
    annotations = _keep_complete(tables["annotations"], "annotation", _ANNOTATION_KEYS, faults)
    _find_twice("annotation id", (a["id"] for a in annotations), faults)
    cells: dict[Any, list[str]] = {image["id"]: [] for image in kept}
    unknown, bad = _deal_cells(annotations, categories, {image["id"]: image for image in images}, cells)
    raise_faults(path, faults + unknown + (bad if faulty_cells == "error" else []))
    return CocoFile(
        path=path,
        images=tuple(kept),
        cells=PackedCells(cells[image["id"]] for image in kept),
        categories=categories,
        used_categories=frozenset(categories[a["category_id"]] for a in annotations if a["image_id"] in cells),
        skipped=tuple(bad),
    )


def _deal_cells(
    annotations: list[dict[str, Any]],
    categories: dict[Any, str],
    images: dict[Any, dict[str, Any]],
    cells: dict[Any, list[str]],
) -> tuple[list[str], list[str]]:
    """Put the annotations of the images in ``cells`` there; returns those of unknown ids, and bad segmentations."""
    unknown, bad = [], []
    for annotation in annotations:
        name, text = f"annotation {annotation['id']!r}", annotation["segmentation"]
        image = images.get(annotation["image_id"])
        if annotation["category_id"] not in categories:
            unknown.append(f"{name} has the unknown category {annotation['category_id']!r}")
        elif image is None:
            unknown.append(f"{name} has the unknown image {annotation['image_id']!r}")
        elif image["id"] in cells:
            if fault := find_fault(json.loads(text), height=image["height"], width=image["width"]):
                bad.append(f"{name} of {image['file_name']}: {fault}")
            else:
                is_crowd = bool(annotation.get("iscrowd"))
                cells[image["id"]].append(pack_cell(annotation["category_id"], is_crowd=is_crowd, segmentation=text))
    return unknown, bad


def raise_faults(path: Path, faults: list[str]) -> None:
    """Raise one DataError for all ``faults`` found in the file, if there are any."""
    if faults:
        raise DataError(
            explain(
                got=f"{path}: {list_faults(faults)}",
                need="a COCO file without faults",
                hint="correct or remove these entries, or see repeated_images and faulty_cells of CocoDataset",
            )
        )


def _load_tables(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise DataError(explain(got=f"{path} is no file", need="COCO annotations", hint="check the path"))
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(explain(got=f"{path} is over 2 GiB", need="less", hint="split it by image"))
    try:
        tables = json.loads(path.read_bytes(), object_hook=_shrink)
    except (ValueError, RecursionError) as error:
        raise DataError(
            explain(got=f"{path} is not JSON ({error})"[:400], need="COCO annotations", hint="export it again")
        ) from error
    if not isinstance(tables, dict):
        raise DataError(
            explain(got=f"{path} is a JSON {type(tables).__name__}", need="an object", hint="export as COCO")
        )
    # LIVECell writes its annotations as an object by id.
    tables = {name: list(t.values()) if isinstance(t, dict) else t for name, t in tables.items()}
    need = ("images", "annotations", "categories")
    if missing := [name for name in need if not isinstance(tables.get(name), list)]:
        raise DataError(
            explain(got=f"{path} lacks the lists {', '.join(missing)}", need=", ".join(need), hint="export as COCO")
        )
    return {name: tables[name] for name in need}


def _shrink(entry: dict[str, Any]) -> dict[str, Any]:
    """An annotation as soon as it is read, its segmentation as text: half the memory at the worst moment."""
    if "segmentation" not in entry:
        return entry
    kept = {key: entry[key] for key in (*_ANNOTATION_KEYS, "iscrowd") if key in entry}
    return kept | {"segmentation": json.dumps(entry["segmentation"], separators=(",", ":"))}


def _keep_complete(entries: list[Any], kind: str, keys: Iterable[str], faults: list[str]) -> list[dict[str, Any]]:
    """The entries that are objects with all ``keys`` and plain ids; the rest becomes faults."""
    complete = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            faults.append(f"{kind} no. {position + 1} is no object")
        elif missing := [key for key in keys if key not in entry]:
            faults.append(f"{kind} {entry.get('id', f'no. {position + 1}')!r} lacks {', '.join(missing)}")
        elif bad := [k for k in keys if k.endswith("id") and not _is_id(entry[k])]:
            faults.append(f"{kind} no. {position + 1}: {bad[0]} is {entry[bad[0]]!r}, neither number nor text")
        else:
            complete.append(entry)
    return complete


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _check_images(entries: list[Any], faults: list[str], *, may_repeat: bool) -> list[dict[str, Any]]:
    checks: Mapping[str, Callable[[Any], bool]] = {
        "file_name": lambda name: isinstance(name, str) and _stays_inside(name),
        "width": lambda size: type(size) is int and size > 0,
        "height": lambda size: type(size) is int and size > 0,
        "um_per_pixel": lambda size: type(size) in (int, float) and 0 < size < math.inf,
    }
    images = []
    for image in _keep_complete(entries, "image", _IMAGE_KEYS, faults):
        bad = [key for key, holds in checks.items() if key in image and not holds(image[key])]
        faults += [f"image {image['id']!r} has the {key} {image[key]!r}" for key in bad]
        if not bad:
            images.append(image)
    _find_twice("image id", (i["id"] for i in images), faults)
    if not may_repeat:
        _find_twice("file_name", (i["file_name"] for i in images), faults)
    return images


def _stays_inside(name: str) -> bool:
    """Whether a file name leads nowhere but into the images folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


def _name_categories(entries: list[Any], faults: list[str]) -> dict[Any, str]:
    complete = _keep_complete(entries, "category", ("id", "name"), faults)
    _find_twice("category id", (c["id"] for c in complete), faults)
    _find_twice("category name", (str(c["name"]) for c in complete), faults)
    ordered = sorted(complete, key=lambda c: (isinstance(c["id"], str), c["id"]))
    return {category["id"]: str(category["name"]) for category in ordered}


def _find_twice(what: str, values: Iterable[Any], faults: list[str]) -> None:
    faults += [f"{what} {value!r} is given {count} times" for value, count in Counter(values).items() if count > 1]
