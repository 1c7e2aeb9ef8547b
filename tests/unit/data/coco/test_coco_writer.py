"""Written COCO files: read back by us and by pycocotools, exactly as they were."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO

from cellvision.commands.evaluation.instances import load_truth
from cellvision.data.coco import CocoDataset, write_coco, write_coco_folder
from cellvision.data.dataset import CellDataset
from cellvision.data.synthetic import SyntheticCells
from cellvision.errors import ConfigError, DataError
from cellvision.types import IGNORE, Sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2
CELLS = SyntheticCells(fields=3, height=96, width=120, cells=(40, 90), cell_types=("round", "long"), fields_per_well=2)


class WithUncertain:
    """The same fields with a hole in the first cell, and the second of class IGNORE."""

    def __getattr__(self, name):
        return getattr(CELLS, name)

    def __len__(self):
        return len(CELLS)

    def sample(self, index):
        sample = CELLS.sample(index)
        labels, classes = sample.label_image.copy(), sample.cell_classes.copy()
        y, x = np.argwhere(labels == 1).mean(axis=0).astype(int)
        labels[y, x] = 0
        classes[1] = IGNORE
        return replace(sample, label_image=labels, cell_classes=classes)


def load(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_folder_reads_back_as_it_was(tmp_path, segmentation):
    dataset = WithUncertain()
    folder = write_coco_folder(
        dataset, tmp_path / "set", splits={"train": [0, 2], "val": [1]}, segmentation=segmentation
    )
    for split, positions in {"train": [0, 2], "val": [1]}.items():
        data = CocoDataset(annotations=folder / f"instances_{split}.json", images=folder / "images")
        assert isinstance(data, CellDataset)
        assert data.classes == dataset.classes
        assert data.channels[0].name == "phase"
        for at, position in enumerate(positions):
            sample, expected = data.sample(at), dataset.sample(position)
            assert (sample.name, sample.group) == (expected.name, expected.group)
            assert sample.pixel_size_um == expected.pixel_size_um
            np.testing.assert_array_equal(sample.image, expected.image)
            np.testing.assert_array_equal(sample.label_image, expected.label_image)
            np.testing.assert_array_equal(sample.cell_classes, expected.cell_classes)
    with pytest.raises(DataError, match="already has images"):
        write_coco_folder(dataset, folder, splits={"test": [0]})


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_pycocotools_sees_the_same_cells(tmp_path, segmentation):
    sample = WithUncertain().sample(0)
    coco = load(write_coco(tmp_path / "a.json", [sample], classes=CELLS.classes, segmentation=segmentation))
    assert {id_: row["name"] for id_, row in coco.cats.items()} == {1: "round", 2: "long", 3: "uncertain"}
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert len(annotations) == len(sample.cell_classes)
    kinds = {type(annotation["segmentation"]) for annotation in annotations[2:]}
    assert kinds == {dict if segmentation == "rle" else list}
    assert isinstance(annotations[0]["segmentation"], dict)  # its hole
    assert isinstance(annotations[1]["segmentation"], dict)  # a crowd
    for label, (annotation, kind) in enumerate(zip(annotations, sample.cell_classes, strict=True), start=1):
        mask = sample.label_image == label
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        y, x = np.nonzero(mask)
        assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == (kind == IGNORE)
        assert annotation["category_id"] == (3 if kind == IGNORE else kind)


@pytest.mark.parametrize("kinds", [1, 2])
def test_ignored_cells_have_a_category_only_where_classes_differ(tmp_path, kinds):
    sample = WithUncertain().sample(0)
    only = {1: 1, 2: 2, IGNORE: IGNORE} if kinds == 2 else {1: 1, 2: 1, IGNORE: IGNORE}
    sample = replace(sample, cell_classes=np.vectorize(only.get)(sample.cell_classes))
    path = write_coco(tmp_path / "a.json", [sample], classes=["background", "round", "long"][: kinds + 1])
    tables = json.loads(path.read_text())
    crowd = next(row for row in tables["annotations"] if row["iscrowd"])
    assert [row["name"] for row in tables["categories"]] == ["round", "long", "uncertain"][: (kinds - 1) * 2 + 1]
    assert crowd["category_id"] == {1: 1, 2: 3}[kinds]
    field = load_truth(path).fields[1]
    assert field.ignored[1]
    assert field.class_id[1] == {1: 1, 2: IGNORE}[kinds]


def test_annotations_by_id_as_in_livecell(tmp_path):
    samples = [CELLS.sample(0), CELLS.sample(1)]
    plain = json.loads(write_coco(tmp_path / "a.json", samples, classes=CELLS.classes).read_text())
    by_id = write_coco(tmp_path / "b.json", samples, classes=CELLS.classes, annotations_by_id=True)
    tables = json.loads(by_id.read_text())
    assert list(tables["annotations"].values()) == plain["annotations"]
    assert all(int(key) == value["id"] for key, value in tables["annotations"].items())


def test_gaps_and_empty_fields(tmp_path):
    labels = np.zeros((9, 9), np.int32)
    labels[2:4, 2:4], labels[6:9, 6:9] = 2, 5
    image = np.zeros((1, 9, 9), np.uint8)
    classes = np.array([1, 2, 1, 1, 1])
    with_gaps = Sample(name="gaps", group="g", image=image, label_image=labels, cell_classes=classes)
    empty = Sample(name="empty", group="g", image=image, label_image=labels * 0, cell_classes=classes[:0])
    tables = json.loads(
        write_coco(tmp_path / "a.json", [with_gaps, empty], classes=["background", "a", "b"]).read_text()
    )
    assert [(a["image_id"], a["category_id"], a["area"]) for a in tables["annotations"]] == [(1, 2, 4), (1, 1, 9)]
    assert [i["file_name"] for i in tables["images"]] == ["gaps.tif", "empty.tif"]
    assert "um_per_pixel" not in tables["images"][0]


def test_unknown_segmentation(tmp_path):
    with pytest.raises(ConfigError, match="unknown segmentation 'polygon'; need one of: polygons, rle"):
        write_coco(tmp_path / "a.json", [], classes=CELLS.classes, segmentation="polygon")
