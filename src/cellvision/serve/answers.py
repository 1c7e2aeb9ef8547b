"""From an image file to what a request gets: the cells that ``cellvision predict`` finds, by the same way."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvision.bundle import Manifest
from cellvision.data.coco.outlines import encode_cells
from cellvision.data.images import image_stem, read_label_image
from cellvision.runtime.cells import Cells
from cellvision.runtime.predictor import Predictor
from cellvision.serve.asked import Asked

_ENDINGS = {"cells": ".json", "coco": "_coco.json", "labels": "_labels.tif", "overlay": "_overlay.png"}
_TYPES = {"cells": "application/json", "coco": "application/json", "labels": "image/tiff", "overlay": "image/png"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes back.

    Attributes:
        content: JSON, TIFF or PNG.
        media_type: of the content.
        file_name: under which it may be kept.
        cells: number of cells found.
    """

    content: bytes
    media_type: str
    file_name: str
    cells: int


def answer_image(predictor: Predictor, path: Path, asked: Asked) -> Answer:
    """Find the cells of an image file and say them in the form that is asked for.

    Args:
        predictor: an open bundle.
        path: image file.
        asked: see Asked.

    Raises:
        CellvisionError: as `Predictor.predict_to_folder`.
    """
    with tempfile.TemporaryDirectory(prefix="cellvision-") as folder:
        cells = predictor.predict_to_folder(
            path,
            folder,
            name="found",
            channel_names=asked.channels,
            pixel_size_um=asked.pixel_size_um,
            intensity_scale=asked.intensity_scale,
            overlay=asked.overlay or asked.answer == "overlay",
        )
        files = {name: Path(folder) / f"found{_ENDINGS[name]}" for name in ("labels", "overlay")}
        if asked.answer in files:
            content = files[asked.answer].read_bytes()
        elif asked.answer == "coco":
            content = _to_json(to_coco(cells, files["labels"], name=asked.name))
        else:
            picture = {"overlay_png": _to_text(files["overlay"])} if asked.overlay else {}
            content = _to_json(to_record(cells, predictor.manifest, name=asked.name) | picture)
    return Answer(
        content=content,
        media_type=_TYPES[asked.answer],
        file_name=f"{image_stem(asked.name or 'image')}{_ENDINGS[asked.answer]}",
        cells=len(cells),
    )


def to_record(cells: Cells, manifest: Manifest, *, name: str) -> dict[str, Any]:
    """Counts, viability and one row per cell as plain data; rows as in cells.csv, and ``bbox`` (top, left, bottom,
    right in px, the last two one past the last pixel).
    """  # noqa: D205 - one sentence
    boxes = cells.bbox.tolist()
    found = cells.viability() if cells.has_viability else None
    shares = {"percent": found.viability, "low_percent": found.low, "high_percent": found.high} if found else {}
    return {
        "image": name,
        "model": manifest.model,
        "height_px": cells.shape[0],
        "width_px": cells.shape[1],
        "pixel_size_um": cells.pixel_size_um,
        "count": len(cells),
        "counts": {each: cells.count(each) for each in cells.classes[1:]},
        "viability": {key: None if share is None else 100.0 * share for key, share in shares.items()} or None,
        "tiles": cells.tiles,
        "notes": list(cells.notes),
        "cells": [row | {"bbox": box} for row, box in zip(cells.to_rows(), boxes, strict=True)],
    }


def to_coco(cells: Cells, labels: Path, *, name: str) -> dict[str, Any]:
    """The cells as COCO annotations with compressed run lengths; ids are the labels.

    Args:
        cells: of the image.
        labels: their label image.
        name: of the image file.
    """
    _, rles = encode_cells(read_label_image(labels))
    height, width = cells.shape
    annotations = []
    for i, rle in enumerate(rles):
        top, left, bottom, right = cells.bbox[i].tolist()
        score = {} if cells.score is None else {"score": float(cells.score[i])}
        annotations.append(
            {
                "id": int(cells.label[i]),
                "image_id": 1,
                "category_id": int(cells.class_id[i]),
                "iscrowd": 0,
                "area": int(cells.area_px[i]),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": rle,
                **score,
            }
        )
    return {
        "images": [{"id": 1, "file_name": name or "image", "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": i, "name": each} for i, each in enumerate(cells.classes) if i > 0],
    }


def describe_bundle(manifest: Manifest) -> dict[str, Any]:
    """What a client wants to know of a bundle before it sends images, as plain data."""
    return {
        "model": manifest.model,
        "kind": manifest.kind,
        "classes": list(manifest.classes[1:]),
        "channels": [{"name": channel.name, "role": channel.role} for channel in manifest.channels],
        "image_dtypes": list(manifest.image_dtypes),
        "pixel_size_um": manifest.pixel_size_um,
        "graphs": [
            {"role": graph.role, "engine": graph.engine, "precision": graph.precision, "sha256": graph.sha256}
            for graph in manifest.graphs
        ],
        "recipe": [str(step.get("step", "")) for step in manifest.recipe],
        "accuracy": {name: value for name, value in manifest.accuracy.items() if isinstance(value, int | float)},
        "versions": dict(manifest.versions),
    }


def _to_text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _to_json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="replace")
