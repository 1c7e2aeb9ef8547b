"""COCO files of a run: under the ids of the file that the data came from, or numbered where there is none."""

import json

import numpy as np
import pytest
import tifffile

from cellvision.commands.evaluation.instances import evaluate_predictions, load_truth
from cellvision.data.batching import SubsetView
from cellvision.data.coco import CocoDataset
from cellvision.data.synthetic import SyntheticCells
from cellvision.metrics.instances.field import InstanceField
from cellvision.training.instance_files import name_fields, write_predictions, write_truth

SQUARES = {"a": [1, 1, 6, 1, 6, 6, 1, 6], "b": [8, 8, 12, 8, 12, 12, 8, 12]}


@pytest.fixture
def coco(tmp_path):
    """Three images in a folder of their own, with ids of every kind, and classes against the order of their ids."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    images = [
        {"id": id_, "file_name": f"sub/{name}.tif", "width": 20, "height": 16}
        for id_, name in ((900, "z"), ("x7", "m"), (5, "a"))
    ]
    for image in images:
        tifffile.imwrite(tmp_path / "images" / image["file_name"], np.zeros((16, 20), np.uint8))
    rows = [
        {"id": n, "image_id": image["id"], "category_id": category, "segmentation": [square], "iscrowd": 0}
        for n, (image, category, square) in enumerate(
            [(i, c, s) for i in images for c, s in ((30, SQUARES["a"]), (12, SQUARES["b"]))], start=1
        )
    ]
    categories = [{"id": 12, "name": "flat"}, {"id": 30, "name": "round"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    dataset = CocoDataset(annotations=path, images=tmp_path / "images", categories=["round", "flat"])
    return path, SubsetView(dataset, [2, 0, 1], cache_mib=1)


def write(tmp_path, view):
    """Predictions that are the truth, of all fields; and the ids."""
    ids = name_fields(view, list(view.names))
    fields = {}
    for i, name in enumerate(view.names):
        sample = view.sample(i)
        score = np.linspace(0.9, 0.2, len(sample.cell_classes))
        fields[name] = InstanceField.from_label_image(sample.label_image, sample.cell_classes, score=score)
    write_truth(tmp_path / "truth.json", view, ids)
    write_predictions(tmp_path / "predictions.json", fields, ids)
    return ids


def test_the_original_file_is_a_truth_for_the_predictions(tmp_path, coco):
    original, view = coco
    write(tmp_path, view)
    for truth in (original, tmp_path / "truth.json"):
        scores = evaluate_predictions(tmp_path / "predictions.json", load_truth(truth), score_threshold=0.1).scores
        assert scores["mask/ap"] == scores["instance/pq"] == pytest.approx(1.0)
        assert scores["instance/mpq"] == pytest.approx(1.0)
    found = json.loads((tmp_path / "truth.json").read_text())
    files = {image["id"]: image["file_name"] for image in json.loads(original.read_text())["images"]}
    assert {image["id"]: image["file_name"] for image in found["images"]} == files
    assert {row["id"]: row["name"] for row in found["categories"]} == {12: "flat", 30: "round"}


def test_other_data_are_numbered_in_the_order_of_their_names(tmp_path):
    dataset = SyntheticCells(fields=12, height=64, width=64, cells=(3, 5))
    view = SubsetView(dataset, [11, 2, 10, 3], cache_mib=1)
    ids = write(tmp_path, view)
    assert list(ids.names) == sorted(view.names)
    assert [view.names[position] for position in ids.positions] == list(ids.names)
    found = json.loads((tmp_path / "truth.json").read_text())
    assert [(image["id"], image["file_name"]) for image in found["images"]] == [
        (number, f"{name}.tif") for number, name in enumerate(sorted(view.names), start=1)
    ]
    scores = evaluate_predictions(
        tmp_path / "predictions.json", load_truth(tmp_path / "truth.json"), score_threshold=0.1
    ).scores
    assert scores["mask/ap"] == scores["instance/pq"] == pytest.approx(1.0)


def test_fields_that_were_not_scored_are_in_neither_file(tmp_path, coco):
    _, view = coco
    ids = name_fields(view, [view.names[1]])
    write_truth(tmp_path / "truth.json", view, ids)
    found = json.loads((tmp_path / "truth.json").read_text())
    assert [image["id"] for image in found["images"]] == [900]
    assert {row["image_id"] for row in found["annotations"]} == {900}


def test_unknown_cells_get_a_category_that_no_class_has(tmp_path, coco):
    original, view = coco
    tables = json.loads(original.read_text())
    tables["annotations"][0]["iscrowd"] = 1
    original.write_text(json.dumps(tables))
    crowded = CocoDataset(annotations=original, images=original.parent / "images", categories=["round", "flat"])
    view = SubsetView(crowded, [0, 1, 2], cache_mib=1)
    write_truth(tmp_path / "truth.json", view, name_fields(view, view.names))
    truth = load_truth(tmp_path / "truth.json")
    assert truth.class_of == {12: 1, 30: 2}
    assert sum(int(field.ignored.sum()) for field in truth.fields.values()) == 1


def test_the_class_of_the_cell_is_kept_where_it_is_another(tmp_path):
    masks = [{"size": [2, 2], "counts": "22"}, {"size": [2, 2], "counts": "112"}]
    field = InstanceField.from_rles(
        masks, shape=(2, 2), class_id=np.array([1, 1]), score=np.array([0.5, 0.4]), cell_class=np.array([1, 2])
    )
    view = SubsetView(SyntheticCells(fields=1, height=64, width=64), [0], cache_mib=1)
    ids = name_fields(view, list(view.names))
    two = type(ids)(names=ids.names, positions=ids.positions, images=ids.images, categories=(12, 30))
    write_predictions(tmp_path / "predictions.json", {view.names[0]: field}, two)
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert [row.get("cell_category_id") for row in rows] == [None, 30]
    assert [row["category_id"] for row in rows] == [12, 12]
