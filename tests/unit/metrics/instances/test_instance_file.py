import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cellvision.errors import DataError
from cellvision.metrics.instances import file as instance_file
from cellvision.metrics.instances.file import load_predictions, to_rle
from crowded_fields import draw_coco, to_fields

IMAGES = {7: (2, 3), "b": (4, 4)}
CATEGORIES = {3: 1, 9: 2}
GOOD = {"image_id": 7, "category_id": 9, "segmentation": {"size": [2, 3], "counts": "222"}, "score": 0.5}


def load(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_predictions(path, images=IMAGES, categories=CATEGORIES)


def test_what_is_in_the_file(tmp_path):
    second = GOOD | {
        "category_id": 3, "score": 1, "bbox": [0.5, 0, 2, 1.5], "box_score": 0.25,
        "segmentation": {"size": [2, 3], "counts": [0, 1, 5]},
    }  # fmt: skip
    fields = load(tmp_path, [GOOD, second])
    assert list(fields) == [7, "b"]
    assert len(fields["b"]) == 0
    field = fields[7]
    assert field.class_id.tolist() == [2, 1]
    assert field.score.tolist() == [0.5, 1.0]
    assert field.box_score.tolist() == [0.5, 0.25]
    assert field.boxes.tolist() == [[1, 0, 2, 2], [0.5, 0, 2.5, 1.5]]
    assert field.areas.tolist() == [2, 1]
    assert load(tmp_path, [GOOD])[7].box_score is None
    assert load(tmp_path, [GOOD])[7].cell_class is None
    assert load(tmp_path, [GOOD, second | {"cell_category_id": 9}])[7].cell_class.tolist() == [2, 2]


def test_a_whole_file_of_an_evaluator(tmp_path):
    truth, predictions = draw_coco(0, classes=2)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(predictions))
    shapes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    fields = load_predictions(path, images=shapes, categories={10: 1, 20: 2})
    for (expected, _), id_ in zip(to_fields(truth, predictions), sorted(shapes), strict=True):
        for name in ("boxes", "class_id", "score", "areas"):
            assert getattr(fields[id_], name).tolist() == getattr(expected, name).tolist()
        assert fields[id_].rles == expected.rles


def test_an_empty_list_is_a_file_without_predictions(tmp_path):
    assert [len(field) for field in load(tmp_path, []).values()] == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, "has the unknown image_id 8"),
        ({"image_id": [7]}, r"has the unknown image_id \[7\]"),
        ({"category_id": 1}, "has the unknown category_id 1"),
        ({"category_id": True}, "has the unknown category_id True"),
        ({"score": float("nan")}, "has the score nan"),
        ({"score": "0.5"}, "has the score '0.5'"),
        ({"box_score": None}, "has the box_score None"),
        ({"bbox": [1, 2, 3]}, r"has the bbox \[1, 2, 3\]"),
        ({"bbox": [1, 2, -3, 1]}, r"has the bbox \[1, 2, -3, 1\]"),
        ({"score": 10**400}, r"has the score 10{59}\.\.\."),
        ({"box_score": -(10**400)}, r"has the box_score -10"),
        ({"bbox": [1, 2, 10**400, 1]}, r"has the bbox \[1, 2, 10"),
        ({"bbox": [1, 2, 1e300, 1]}, r"has the bbox \[1, 2, 1e\+300, 1\]"),
        ({"bbox": [1, 2, True, 1]}, r"has the bbox \[1, 2, True, 1\]"),
        ({"cell_category_id": 1}, "has the unknown cell_category_id 1"),
        ({"segmentation": {"size": [], "counts": [6]}}, r"RLE of size \[\] in an image of \[2, 3\]"),
        ({"segmentation": {"size": ["2", 3], "counts": [6]}}, r"RLE of size \['2', 3\] in an image"),
        ({"segmentation": {"size": [-2, -3], "counts": [6]}}, r"RLE of size \[-2, -3\] in an image"),
        ({"segmentation": {"size": [10**30, 3], "counts": [6]}}, r"RLE of size \[10+, 3\] in an image"),
        ({"segmentation": {"size": [2, 3], "counts": [10**400]}}, "RLE counts that do not add up to 6 pixels"),
        ({"segmentation": [[0, 0, 1, 0, 1, 1]]}, "has a segmentation that is no RLE"),
        ({"segmentation": {"size": [2, 3]}}, "has a segmentation that is no RLE"),
        ({"segmentation": {"size": [3, 2], "counts": "222"}}, r"RLE of size \[3, 2\] in an image of \[2, 3\]"),
        ({"segmentation": {"size": [2, 3], "counts": "22"}}, "RLE counts do not add up to 6 pixels"),
        ({"segmentation": {"size": [2, 3], "counts": [2, 2, 1]}}, "RLE counts that do not add up to 6 pixels"),
        ({"segmentation": {"size": [2, 3], "counts": [2, 5, -1]}}, "RLE counts that do not add up to 6 pixels"),
        ({"segmentation": {"size": [2, 3], "counts": None}}, "RLE counts are no text"),
    ],
)
def test_a_faulty_prediction_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=rf"found\.json: prediction no\. 2:? .*{message}"):
        load(tmp_path, [GOOD, GOOD | change])


@pytest.mark.parametrize("key", ["image_id", "category_id", "segmentation", "score"])
def test_a_missing_key_is_named(tmp_path, key):
    with pytest.raises(DataError, match=f"prediction no. 1 lacks {key}"):
        load(tmp_path, [{name: value for name, value in GOOD.items() if name != key}])


def test_all_faults_at_once_but_not_endlessly(tmp_path):
    with pytest.raises(DataError) as raised:
        load(tmp_path, [5, *[GOOD | {"score": None}] * 30, GOOD | {"segmentation": {"size": [2, 3], "counts": "2"}}])
    text = str(raised.value)
    assert "prediction no. 1 is no object; prediction no. 2 has the score None" in text
    assert "and 22 more; need COCO results" in text
    assert "\n" not in text


def test_files_that_are_no_results(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"found\.json is a JSON dict; need a list of predictions"):
        load(tmp_path, {"annotations": []})
    with pytest.raises(DataError, match=r"found\.json is not JSON"):
        load(tmp_path, "[1,")
    with pytest.raises(DataError, match=r"none\.json is no file"):
        load_predictions(tmp_path / "none.json", images=IMAGES, categories=CATEGORIES)
    monkeypatch.setattr(instance_file, "MAX_JSON_BYTES", 1)
    with pytest.raises(DataError, match=r"found\.json is over 2 GiB"):
        load(tmp_path, [])


def test_polygons_and_counts_become_text():
    polygons = [[1, 1, 6, 1, 6, 5], [2.5, 5, 8, 5, 8, 8]]
    oracle = coco_mask.merge(coco_mask.frPyObjects(polygons, 9, 10))
    assert to_rle(polygons, (9, 10)) == {"size": [9, 10], "counts": oracle["counts"].decode()}
    assert to_rle({"size": [2, 3], "counts": [2, 2, 2]}, (2, 3)) == {"size": [2, 3], "counts": "222"}
    assert np.array_equal(to_rle(GOOD["segmentation"], (2, 3))["counts"], "222")
