"""A COCO annotation file, read strictly: all its faults at once, or images and cells that fit together."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from cellvision.data.coco_masks import find_fault
from cellvision.data.dataset import list_faults
from cellvision.errors import DataError, explain

MAX_JSON_BYTES = 2**31

_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation")


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """What a COCO file holds, without what nobody asked for.

    Attributes:
        path: the file.
        images: entries in the file's order; "um_per_pixel", where there is one, is a positive number.
        cells: annotation entries of each image id, in the file's order.
        categories: name of each category id, ascending.
    """

    path: Path
    images: tuple[dict[str, Any], ...]
    cells: dict[Any, list[dict[str, Any]]]
    categories: dict[Any, str]


def load_categories(path: Path) -> tuple[str, ...]:
    """Category names of a COCO file in the order of their ids; DataError if the file is none."""
    return tuple(_name_categories(_load_tables(path)["categories"], []).values())


def load_coco(path: Path, *, pattern: str = "*") -> CocoFile:
    """A COCO file whose ids and segmentations have been checked.

    Args:
        path: JSON; "annotations" may be a list, or an object by id as in LIVECell.
        pattern: only images whose file name matches (``fnmatch``), and their cells.

    Raises:
        DataError: no such file, no JSON, or faults inside, which are all listed (up to 20).
    """
    tables = _load_tables(path)
    faults: list[str] = []
    categories = _name_categories(tables["categories"], faults)
    images = _check_images(tables["images"], faults)
    sizes = {image["id"]: image for image in images}
    annotations = _keep_complete(tables["annotations"], "annotation", _ANNOTATION_KEYS, faults)
    _find_twice("annotation id", (a["id"] for a in annotations), faults)
    cells: dict[Any, list[dict[str, Any]]] = {
        i: [] for i, image in sizes.items() if fnmatch(image["file_name"], pattern)
    }
    for annotation in annotations:
        name = f"annotation {annotation['id']!r}"
        if annotation["category_id"] not in categories:
            faults.append(f"{name} has the unknown category {annotation['category_id']!r}")
        if annotation["image_id"] not in sizes:
            faults.append(f"{name} has the unknown image {annotation['image_id']!r}")
        elif annotation["image_id"] in cells:
            image = sizes[annotation["image_id"]]
            if fault := find_fault(annotation["segmentation"], height=image["height"], width=image["width"]):
                faults.append(f"{name} of {image['file_name']}: {fault}")
            cells[image["id"]].append(annotation)
    raise_faults(path, faults)
    return CocoFile(path=path, images=tuple(i for i in images if i["id"] in cells), cells=cells, categories=categories)


def raise_faults(path: Path, faults: list[str]) -> None:
    """Raise one DataError for all ``faults`` found in the file, if there are any."""
    if faults:
        raise DataError(
            explain(
                got=f"{path}: {list_faults(faults)}",
                need="a COCO file without faults",
                hint="correct or remove these entries",
            )
        )


def _load_tables(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise DataError(explain(got=f"{path} is no file", need="COCO annotations", hint="check the path"))
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(explain(got=f"{path} is over 2 GiB", need="less", hint="split it by image"))
    try:
        tables = json.loads(path.read_bytes())
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


def _check_images(entries: list[Any], faults: list[str]) -> list[dict[str, Any]]:
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
