"""A COCO results file, read strictly: all its faults at once, or the predicted cells of every image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cellvision.errors import DataError, explain, is_finite_number
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.mask_runs import find_rle_fault

MAX_JSON_BYTES = 2**31
_KEYS = ("image_id", "category_id", "segmentation", "score")
_MOST_LISTED = 10
_LONGEST_VALUE = 60
LARGEST_PX = 2**31
"""Of a coordinate: far beyond any image, and an area of it is still a number."""


def load_predictions(
    path: Path, *, images: Mapping[Any, tuple[int, int]], categories: Mapping[Any, int]
) -> dict[Any, InstanceField]:
    """The predicted cells of every image, in the order of the file; an image without any has an empty field.

    Of each prediction "image_id", "category_id", "segmentation" (RLE, either form) and "score" are read; "bbox" (left,
    top, width, height in px), or else the tight box of the mask; "box_score", by which boxes compete, or else "score";
    and "cell_category_id", the class of the separate cell, or else "category_id".

    Args:
        path: JSON, a list of predictions.
        images: (H, W) px by image id.
        categories: class 1..K-1 by category id.

    Raises:
        DataError: no such file, no JSON list, or faults inside, which are all counted, and the first 10 listed.
    """
    entries = _load_list(path)
    faults: list[str] = []
    rows: dict[Any, list[dict[str, Any]]] = {image: [] for image in images}
    for number, entry in enumerate(entries, start=1):
        if fault := _find_fault(entry, images, categories):
            faults.append(f"prediction no. {number} {fault}")
        else:
            rows[entry["image_id"]].append(entry | {"number": number})
    fields = {}
    for image, shape in images.items():
        rles = [_to_text(row["segmentation"]) for row in rows[image]]
        if found := find_rle_fault(rles, shape):
            faults.append(f"prediction no. {rows[image][found[0]]['number']}: {found[1]}")
        elif not faults:
            fields[image] = _build_field(rows[image], rles, shape, categories)
    if faults:
        more = f"; and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
        raise DataError(
            explain(
                got=f"{path}: {'; '.join(faults[:_MOST_LISTED])}{more}",
                need="COCO results for these images and categories",
                hint="check that predictions and truth belong together, and write the results again",
            )
        )
    return fields


def to_rle(segmentation: Any, shape: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE of a segmentation without fault: polygons, or either form of RLE.

    Example:
        >>> to_rle([[1, 0, 2, 0, 2, 2, 1, 2]], (2, 3))
        {'size': [2, 3], 'counts': '222'}
    """
    if isinstance(segmentation, list):
        packed = coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape))
    elif isinstance(segmentation["counts"], list):
        packed = coco_mask.frPyObjects(segmentation, *shape)
    else:
        return {"size": list(shape), "counts": segmentation["counts"]}
    return {"size": list(shape), "counts": packed["counts"].decode("ascii")}


def _load_list(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(explain(got=f"{path} is no file", need="COCO results", hint="check the path"))
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(explain(got=f"{path} is over 2 GiB", need="less", hint="split it by image"))
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            explain(got=f"{path} is not JSON ({error})"[:400], need="COCO results", hint="write the results again")
        ) from error
    if not isinstance(entries, list):
        raise DataError(
            explain(
                got=f"{path} is a JSON {type(entries).__name__}",
                need="a list of predictions",
                hint="the file that COCO calls results, and not annotations",
            )
        )
    return entries


def _find_fault(entry: Any, images: Mapping[Any, Any], categories: Mapping[Any, Any]) -> str | None:
    if not isinstance(entry, dict):
        return "is no object"
    if missing := [key for key in _KEYS if key not in entry]:
        return f"lacks {', '.join(missing)}"
    for key, known in (("image_id", images), ("category_id", categories), ("cell_category_id", categories)):
        value = entry.get(key, entry["category_id"])
        if not isinstance(value, int | str) or isinstance(value, bool) or value not in known:
            return f"has the unknown {key} {_shorten(value)}"
    for key in ("score", "box_score"):
        if not is_finite_number(entry.get(key, 0)):
            return f"has the {key} {_shorten(entry[key])}"
    box = entry.get("bbox", [0, 0, 0, 0])
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_place, box)) and min(box[2:]) >= 0):
        return f"has the bbox {_shorten(box)}"
    return _find_mask_fault(entry["segmentation"], images[entry["image_id"]])


def _find_mask_fault(rle: Any, shape: tuple[int, int]) -> str | None:
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys() or not isinstance(rle["size"], list):
        return "has a segmentation that is no RLE"
    # The size first: all that follows is checked against the image.
    if not all(type(length) is int for length in rle["size"]) or rle["size"] != list(shape):
        return f"has an RLE of size {_shorten(rle['size'])} in an image of {list(shape)}"
    if not isinstance(rle["counts"], list):
        return None
    whole = all(type(count) is int and count >= 0 for count in rle["counts"])
    is_full = whole and sum(rle["counts"]) == shape[0] * shape[1]
    return None if is_full else f"has RLE counts that do not add up to {shape[0] * shape[1]} pixels"


def _is_place(value: Any) -> bool:
    return is_finite_number(value) and abs(value) <= LARGEST_PX


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _to_text(rle: dict[str, Any]) -> dict[str, Any]:
    return rle if not isinstance(rle["counts"], list) else to_rle(rle, (rle["size"][0], rle["size"][1]))


def _build_field(
    rows: list[dict[str, Any]], rles: list[dict[str, Any]], shape: tuple[int, int], categories: Mapping[Any, int]
) -> InstanceField:
    has_box_score = any("box_score" in row for row in rows)
    has_cell_class = any("cell_category_id" in row for row in rows)
    as_cells = [categories[row.get("cell_category_id", row["category_id"])] for row in rows]
    return InstanceField.from_rles(
        rles,
        shape=shape,
        class_id=np.array([categories[row["category_id"]] for row in rows], np.int64),
        score=np.array([row["score"] for row in rows], np.float64),
        box_score=np.array([row.get("box_score", row["score"]) for row in rows]) if has_box_score else None,
        boxes=read_boxes([row.get("bbox") for row in rows]),
        cell_class=np.array(as_cells, np.int64) if has_cell_class else None,
    )


def read_boxes(boxes: list[list[float] | None]) -> np.ndarray:
    """(N, 4) left, top, right, bottom from COCO's left, top, width, height; NaN in a row where there is none.

    Example:
        >>> read_boxes([[1, 2, 3, 4], None]).tolist()
        [[1.0, 2.0, 4.0, 6.0], [nan, nan, nan, nan]]
    """
    edges = np.array([[np.nan] * 4 if box is None else box for box in boxes], np.float64).reshape(-1, 4)
    edges[:, 2:] += edges[:, :2]
    return edges
