"""Random crowded fields as COCO files hold them: overlapping ellipses as RLE, predictions as jittered copies."""

import numpy as np
from pycocotools import mask as coco_mask

from cellvision.metrics.instances.field import InstanceField


def draw_ellipse(shape, centre, radii, angle):
    """(H, W) bool."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.reshape(centre, (2, 1, 1))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1


def to_row(mask, **values):
    """A COCO entry with its RLE and box."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    box = coco_mask.toBbox(rle).tolist()
    return {"segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()}, "bbox": box, **values}


def draw_coco(seed, *, images=5, cells=30, shape=(90, 110), classes=1, crowd=0.1, steps=10, largest_px=16):
    """(truth, predictions) as dicts and lists of a COCO file; ids are not in the file's order of images.

    Args:
        seed: of the draw.
        images: number of images; the first has no true cell, the second no prediction.
        cells: true cells per image.
        shape: (H, W) px.
        classes: categories; the last is never predicted right.
        crowd: share of the true cells that are crowds.
        steps: distinct scores; few make many ties.
        largest_px: longest radius of a cell.
    """
    rng = np.random.default_rng(seed)
    truth = {
        "images": [
            {"id": 7 * (images - i), "file_name": f"{i}.png", "height": shape[0], "width": shape[1]}
            for i in range(images)
        ],
        "annotations": [],
        "categories": [{"id": 10 * k, "name": f"type{k}"} for k in range(1, classes + 1)],
    }
    predictions = []
    for number, image in enumerate(truth["images"]):
        for _ in range(cells):
            category = 10 * int(rng.integers(1, classes + 1))
            ellipse = (rng.uniform((0, 0), shape), rng.uniform(2, largest_px, 2), rng.uniform(0, np.pi))
            mask = draw_ellipse(shape, *ellipse)
            if number and mask.any():
                row = to_row(mask, image_id=image["id"], category_id=category, id=len(truth["annotations"]) + 1)
                # Areas on the very bounds of the sizes, and boxes that are not those of the masks, occur in files.
                row["area"] = float(rng.choice([mask.sum(), 324, 961, 1024, 9216]))
                row["bbox"] = (np.array(row["bbox"]) + rng.uniform(-0.4, 0.4, 4)).clip(0.1).tolist()
                truth["annotations"].append(row | {"iscrowd": int(rng.random() < crowd)})
            for spread in rng.choice([0.05, 0.15, 0.3], rng.integers(0, 3)):
                centre = ellipse[0] + rng.normal(0, spread * ellipse[1].mean(), 2)
                mask = draw_ellipse(shape, centre, ellipse[1] * np.exp(rng.normal(0, spread, 2)), ellipse[2])
                if number != 1 and mask.any():
                    guess = category if rng.random() < 0.9 else 10 * int(rng.integers(1, classes + 1))
                    score = float(rng.integers(1, steps + 1) / steps)
                    predictions.append(to_row(mask, image_id=image["id"], category_id=guess, score=score))
    return truth, predictions


def to_fields(truth, predictions):
    """(predicted, true) InstanceFields of every image, by ascending id."""
    pairs = []
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        shape = (image["height"], image["width"])
        sides = []
        for rows in (predictions, truth["annotations"]):
            rows = [row for row in rows if row["image_id"] == image["id"]]
            boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
            is_truth = rows and "id" in rows[0]
            sides.append(
                InstanceField.from_rles(
                    [row["segmentation"] for row in rows],
                    shape=shape,
                    class_id=np.array([row["category_id"] // 10 for row in rows], np.int64),
                    boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
                    score=None if is_truth else np.array([row["score"] for row in rows], np.float64).reshape(-1),
                    areas=np.array([row["area"] for row in rows], np.float64) if is_truth else None,
                    ignored=np.array([row["iscrowd"] for row in rows], bool) if is_truth else None,
                )
            )
        pairs.append(tuple(sides))
    return pairs


def draw_label_images(seed, *, cells=25, shape=(70, 80)):
    """(predicted, true) label images with gaps in their numbers: found, missed, extra, merged and split cells."""
    rng = np.random.default_rng(seed)
    truth, pred = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for label in range(1, cells + 1):
        centre, radii, angle = rng.uniform((0, 0), shape), rng.uniform(2, 9, 2), rng.uniform(0, np.pi)
        truth[draw_ellipse(shape, centre, radii, angle)] = label
        moved = draw_ellipse(shape, centre + rng.normal(0, 1, 2), radii * np.exp(rng.normal(0, 0.1, 2)), angle)
        number = label + 1 if rng.random() < 0.2 else label
        if rng.random() < 0.85:
            pred[moved] = number
        if rng.random() < 0.2:
            pred[moved & (np.arange(shape[1]) > centre[1])] = cells + 1 + label
    return pred, truth
