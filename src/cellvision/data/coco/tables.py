"""The three tables of a COCO file as they are read, and what must hold of each entry by itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cellvision.data.dataset import BACKGROUND, list_faults
from cellvision.errors import DataError, explain, is_finite_number

MAX_JSON_BYTES = 2**31
MAX_SIDE_PX, MAX_PIXELS = 2**18, 2**31
"""Of an image: run lengths are counted in 32 bits, and an outline takes memory by its length in pixels."""

_TABLES = ("images", "annotations", "categories")
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation")


def load_tables(path: Path, *, measures: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The lists "images", "annotations" and "categories" of a COCO file; segmentations are JSON text.

    Args:
        path: the file; "annotations" may be a list, or an object by id as in LIVECell.
        measures: keys of an annotation to keep besides those that every annotation has, e.g. "area".

    Raises:
        DataError: no such file, no JSON, or none with these tables.
    """
    if not path.is_file():
        raise DataError(explain(got=f"{path} is no file", need="COCO annotations", hint="check the path"))
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(explain(got=f"{path} is over 2 GiB", need="less", hint="split it by image"))
    kept = (*_ANNOTATION_KEYS, "iscrowd", *measures)

    def shrink(entry: dict[str, Any]) -> dict[str, Any]:
        """An annotation as soon as it is read, its segmentation as text: half the memory at the worst moment."""
        if "segmentation" not in entry:
            return entry
        text = json.dumps(entry["segmentation"], separators=(",", ":"))
        return {key: entry[key] for key in kept if key in entry} | {"segmentation": text}

    try:
        tables = json.loads(path.read_bytes(), object_hook=shrink)
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
    if missing := [name for name in _TABLES if not isinstance(tables.get(name), list)]:
        got = f"{path} lacks the lists {', '.join(missing)}"
        raise DataError(explain(got=got, need=", ".join(_TABLES), hint="export as COCO"))
    return {name: tables[name] for name in _TABLES}


def to_path(file_name: str) -> PurePosixPath:
    r"""A file name of a COCO file as a path in the images folder, on whatever system it was written.

    Example:
        >>> str(to_path(".\\well\\a.tif"))
        'well/a.tif'
    """
    return PurePosixPath(file_name.replace("\\", "/"))


def check_images(entries: list[Any], faults: list[str]) -> list[dict[str, Any]]:
    """The image entries that are whole; what is wrong with the others is added to ``faults``."""
    checks: Mapping[str, Callable[[Any], bool]] = {
        "file_name": lambda name: isinstance(name, str) and _stays_inside(name),
        "width": lambda size: type(size) is int and 0 < size <= MAX_SIDE_PX,
        "height": lambda size: type(size) is int and 0 < size <= MAX_SIDE_PX,
        "um_per_pixel": lambda size: is_finite_number(size) and size > 0,
    }
    images = []
    for image in _keep_complete(entries, "image", _IMAGE_KEYS, faults):
        bad = [key for key, holds in checks.items() if key in image and not holds(image[key])]
        faults += [f"image {show(image['id'])} has the {key} {show(image[key])}" for key in bad]
        if not bad and image["width"] * image["height"] > MAX_PIXELS:
            bad = ["width"]
            faults.append(f"image {show(image['id'])} has {image['width']} x {image['height']} px")
        if not bad:
            images.append(image)
    _find_twice("image id", (i["id"] for i in images), faults)
    return images


def check_annotations(entries: list[Any], faults: list[str]) -> list[dict[str, Any]]:
    """The annotations that have all keys; what is wrong with the others is added to ``faults``."""
    annotations = _keep_complete(entries, "annotation", _ANNOTATION_KEYS, faults)
    _find_twice("annotation id", (a["id"] for a in annotations), faults)
    return annotations


def name_categories(tables: Mapping[str, list[Any]], faults: list[str]) -> dict[Any, str]:
    """Name of each category id, ascending; a category "background" without cells is none, with cells it is a fault."""
    complete = _keep_complete(tables["categories"], "category", ("id", "name"), faults)
    faults += [f"category {show(c['id'])} has the name {show(c['name'])}" for c in complete if not _is_name(c["name"])]
    _find_twice("category id", (c["id"] for c in complete), faults)
    _find_twice("category name", (str(c["name"]) for c in complete), faults)
    ordered = sorted(complete, key=lambda c: (isinstance(c["id"], str), c["id"]))
    names = {category["id"]: str(category["name"]) for category in ordered}
    for id_ in [id_ for id_, name in names.items() if name == BACKGROUND]:
        cells = [a for a in tables["annotations"] if isinstance(a, dict) and a.get("category_id") == id_]
        if cells:
            faults.append(f"category {show(id_)} has the name {BACKGROUND!r}, and {len(cells)} cells")
        else:
            del names[id_]
    return names


def find_repeated(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """File names that several image entries have, one text each."""
    faults: list[str] = []
    _find_twice("file_name", (str(to_path(image["file_name"])) for image in images), faults)
    return faults


def raise_faults(path: Path, faults: Sequence[str], *, hint: str = "correct or remove these entries") -> None:
    """Raise one DataError for all ``faults`` found in the file, if there are any."""
    if faults:
        raise DataError(explain(got=f"{path}: {list_faults(faults)}", need="a COCO file without faults", hint=hint))


def show(value: Any) -> str:
    """A value of a file for an error text: no file makes it longer than a line.

    Example:
        >>> show("a" * 1000)[-10:], show(-2)
        ('aaaaaaa ..', '-2')
    """
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]} .."


def _keep_complete(entries: list[Any], kind: str, keys: Iterable[str], faults: list[str]) -> list[dict[str, Any]]:
    """The entries that are objects with all ``keys`` and plain ids; the rest becomes faults."""
    complete = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            faults.append(f"{kind} no. {position + 1} is no object")
        elif missing := [key for key in keys if key not in entry]:
            named = show(entry["id"]) if "id" in entry else f"no. {position + 1}"
            faults.append(f"{kind} {named} lacks {', '.join(missing)}")
        elif bad := [k for k in keys if k.endswith("id") and not _is_id(entry[k])]:
            faults.append(f"{kind} no. {position + 1}: {bad[0]} is {show(entry[bad[0]])}, neither number nor text")
        else:
            complete.append(entry)
    return complete


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    """Whether this can name a class: text, or a number that stands for it."""
    return _is_id(value) and _is_text(str(value)) and bool(str(value).strip())


def _is_text(value: str) -> bool:
    """Whether a text can be written to a file: JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _stays_inside(name: str) -> bool:
    """Whether a file name leads nowhere but into the images folder."""
    path = to_path(name)
    inside = bool(path.name) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]
    return inside and _is_text(name)


def _find_twice(what: str, values: Iterable[Any], faults: list[str]) -> None:
    faults += [f"{what} {show(value)} is given {n} times" for value, n in Counter(values).items() if n > 1]
