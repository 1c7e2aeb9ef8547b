"""Any data set as COCO files, for ``CocoDataset`` and for other tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask
from scipy import ndimage

from cellvision.data.coco.outlines import encode_cells, trace_polygons
from cellvision.data.dataset import UNCERTAIN, CellDataset
from cellvision.data.image_writer import write_image
from cellvision.errors import DataError, check_choice, explain
from cellvision.types import IGNORE, Sample

SEGMENTATIONS = ("rle", "polygons")


def write_coco(
    path: Path | str,
    samples: Iterable[Sample],
    *,
    classes: Sequence[str],
    segmentation: str = "rle",
    suffix: str = ".tif",
    annotations_by_id: bool = False,
    entries: Sequence[Mapping[str, Any]] | None = None,
    categories: Sequence[int | str] | None = None,
) -> Path:
    """Write an instances JSON that gives back exactly the label images; the images are written by who has them.

    A label without pixels is left out, and the labels after it move up when the file is read. A cell of class IGNORE
    becomes a crowd region: of a category "uncertain" after the classes, or of the class itself where there is only
    one, for other tools ignore a crowd within its category alone.

    Args:
        path: file to write.
        samples: read once, one at a time.
        classes: names of the classes, background first.
        segmentation: "rle", or "polygons" along the pixel edges, for tools that know nothing else; crowd regions, and
            cells with a hole, which no polygon can say, stay RLE.
        suffix: of the image files: their names are the samples' names and this.
        annotations_by_id: write "annotations" as an object by id, as LIVECell's files are, and not as a list.
        entries: "id" of each sample's image, and "file_name" if it is another; None for 1, 2 ...
        categories: ids of the classes without the background; None for 1, 2 ...

    Returns:
        The file.

    Raises:
        ConfigError: an unknown ``segmentation``.

    Example:
        >>> import tempfile
        >>> from cellvision.data.synthetic import SyntheticLiveDead
        >>> cells = SyntheticLiveDead(fields=1, height=64, width=64, cells=(3, 3))
        >>> path = Path(tempfile.mkdtemp()) / "instances.json"
        >>> len(json.loads(write_coco(path, [cells.sample(0)], classes=cells.classes).read_text())["annotations"])
        3
    """
    check_choice("segmentation", segmentation, SEGMENTATIONS)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = [*classes[1:], UNCERTAIN] if len(classes) > 2 else list(classes[1:])
    ids = list(categories or range(1, len(classes)))
    ids = [*ids, next(free for free in count(1) if free not in ids)][: len(names)]
    for at, sample in enumerate(samples):
        height, width = sample.label_image.shape
        entry = {"id": at + 1, "file_name": f"{sample.name}{suffix}", "width": width, "height": height}
        size = {} if sample.pixel_size_um is None else {"um_per_pixel": sample.pixel_size_um}
        images.append({**entry, "group": sample.group, **size, **(entries[at] if entries else {})})
        for cell in _list_cells(sample, segmentation, ids):
            annotations.append({"id": len(annotations) + 1, "image_id": images[-1]["id"], **cell})
    used = {*ids[: len(classes) - 1], *(annotation["category_id"] for annotation in annotations)}
    tables = {
        "info": {"description": "written by cellvision"},
        "licenses": [],
        "images": images,
        "annotations": {str(a["id"]): a for a in annotations} if annotations_by_id else annotations,
        "categories": [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True) if id_ in used],
    }
    Path(path).write_text(json.dumps(tables, separators=(",", ":")), encoding="utf-8")
    return Path(path)


def write_coco_folder(
    dataset: CellDataset, folder: Path | str, *, splits: Mapping[str, Sequence[int]], segmentation: str = "rle"
) -> Path:
    """Write what ``data=coco`` reads: ``images/<name>.tif`` (OME-TIFF) and ``instances_<split>.json``.

    Args:
        dataset: what to write.
        folder: made if it does not exist.
        splits: split name -> positions in the data set.
        segmentation: see ``write_coco``.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown ``segmentation``.
        DataError: the folder already has images, which would mix with the new ones.
    """
    images = Path(folder) / "images"
    if any(images.glob("*")):
        raise DataError(explain(got=f"{folder} already has images", need="a new folder", hint="choose another name"))
    images.mkdir(parents=True, exist_ok=True)

    def read(positions: Sequence[int]) -> Iterable[Sample]:
        for position in positions:
            sample = dataset.sample(position)
            write_image(images / f"{sample.name}.tif", sample, dataset.channels)
            yield sample

    for split, positions in splits.items():
        path = Path(folder) / f"instances_{split}.json"
        write_coco(path, read(positions), classes=dataset.classes, segmentation=segmentation)
    return Path(folder)


def _list_cells(sample: Sample, segmentation: str, categories: Sequence[int | str]) -> list[dict[str, Any]]:
    """Annotations of a sample, without their ids; cells of class IGNORE have the last category."""
    labels, rles = encode_cells(sample.label_image)
    boxes = ndimage.find_objects(sample.label_image)
    cells = []
    for label, rle in zip(labels.tolist(), rles, strict=True):
        kind, (rows, columns) = int(sample.cell_classes[label - 1]), boxes[label - 1]
        shape: Any = rle
        if segmentation == "polygons" and kind != IGNORE:
            mask = sample.label_image[rows, columns] == label
            shape = trace_polygons(mask, top=rows.start, left=columns.start, rle=rle) or rle
        size = (columns.stop - columns.start, rows.stop - rows.start)
        cells.append(
            {
                "category_id": categories[-1 if kind == IGNORE else kind - 1],
                "iscrowd": int(kind == IGNORE),
                "area": int(coco_mask.area(rle)),
                "bbox": [columns.start, rows.start, *size],
                "segmentation": shape,
            }
        )
    return cells
