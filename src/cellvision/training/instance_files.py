"""Predictions and truth of held-out fields as COCO's files, under the ids of the files that the data came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvision.data.batching import SubsetView
from cellvision.data.coco import write_coco
from cellvision.metrics.instances.field import InstanceField


@dataclass(frozen=True, kw_only=True)
class FieldIds:
    """What fields and classes are called in a COCO file.

    Attributes:
        names: of the fields, in the order of the file.
        positions: of the fields in their view.
        images: {"id": .., "file_name": ..} of each field; without "file_name" where the data set knows none.
        categories: category id of each class 1..K-1.
    """

    names: tuple[str, ...]
    positions: tuple[int, ...]
    images: tuple[dict[str, Any], ...]
    categories: tuple[int | str, ...]


def name_fields(view: SubsetView, names: Sequence[str]) -> FieldIds:
    """The ids of these fields in the COCO file that they are from, so that predictions can be scored against it.

    Fields of other data sets, which have no ``describe`` or say nothing, are numbered from 1 in the order of their
    names, and classes are categories 1, 2 ...

    Args:
        view: of the data set.
        names: of some of its fields.
    """
    place = {name: position for position, name in enumerate(view.names)}
    names = sorted(set(names))
    positions = tuple(place[name] for name in names)
    describe = getattr(view.dataset, "describe", None)
    images = tuple(describe(view.indices[position]) if describe else {} for position in positions)
    if not images or not all("id" in image for image in images):
        images = tuple({"id": number} for number in range(1, len(names) + 1))
    known = tuple(getattr(view.dataset, "category_ids", ()))
    categories = known if len(known) == len(view.classes) - 1 else tuple(range(1, len(view.classes)))
    return FieldIds(names=tuple(names), positions=positions, images=images, categories=categories)


def write_truth(path: Path, view: SubsetView, ids: FieldIds) -> None:
    """The true cells of the fields, as they are scored: label images, in which no pixel is in two cells."""
    samples = (view.sample(position) for position in ids.positions)
    write_coco(path, samples, classes=view.classes, entries=ids.images, categories=ids.categories)


def write_predictions(path: Path, fields: Mapping[str, InstanceField], ids: FieldIds) -> None:
    """COCO results: every prediction of every field, however unsure.

    Args:
        path: file to write.
        fields: predictions by name of the field.
        ids: of the fields.
    """
    rows = [
        row
        for name, image in zip(ids.names, ids.images, strict=True)
        for row in _list_predictions(fields[name], image["id"], ids.categories)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")


def _list_predictions(
    field: InstanceField, image_id: int | str, categories: Sequence[int | str]
) -> Iterator[dict[str, Any]]:
    assert field.score is not None
    for i, rle in enumerate(field.rles):
        left, top, right, bottom = field.boxes[i].tolist()
        row = {
            "image_id": image_id,
            "category_id": categories[field.class_id[i] - 1],
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": dict(rle),
            "score": float(field.score[i]),
        }
        if field.box_score is not None:
            row["box_score"] = float(field.box_score[i])
        if field.cell_class is not None and field.cell_class[i] != field.class_id[i]:
            row["cell_category_id"] = categories[field.cell_class[i] - 1]
        yield row
