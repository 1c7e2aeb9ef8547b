"""Oracles: arrays written by the test, pycocotools and the scale of the shared set."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellvision.bundle import Channel
from cellvision.data.dataset import CellDataset
from cellvision.data.images import read_image, read_label_image
from cellvision.data.livedead import LiveDeadDataset
from cellvision.errors import ConfigError, DataError
from cellvision.types import IGNORE

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data" / "livedead_mcf7_nc"
LABELS = np.zeros((12, 16), np.uint16)
LABELS[1:4, 1:4], LABELS[5:8, 2:6], LABELS[5:8, 6:9] = 1, 2, 5
CELLS = "image,label,class\nA1,1,live\nA1.tif,2,dead\nA1,5,uncertain\nB2,1,dead\nB2,2,dead\nB2,5,live\n"
FIELDS = "image,group,split,pixel_size_um\nA1,w1,train,0.3\nB2,,val,\n"


@pytest.fixture
def root(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number, stem in enumerate(("A1", "B2")):
        stains = np.full((2, 12, 16), 1000 + number, np.uint16)
        tifffile.imwrite(
            tmp_path / "images" / f"{stem}.tif", stains, photometric="minisblack", metadata={"axes": "CYX"}
        )
        tifffile.imwrite(tmp_path / "labels" / f"{stem}.tif", LABELS)
    (tmp_path / "cells.csv").write_text(CELLS)
    return tmp_path


def test_folder_with_tables(root):
    (root / "fields.csv").write_text(FIELDS)
    data = LiveDeadDataset(root=root, channels=["hoechst:nuclear", "pi:dead"])
    assert isinstance(data, CellDataset)
    assert data.classes == ("background", "live", "dead")
    assert data.channels == (Channel(name="hoechst", role="nuclear"), Channel(name="pi", role="dead"))
    assert data.names == ("A1", "B2")
    assert data.groups == ("w1", "B2")
    sample = data.sample(0)
    np.testing.assert_array_equal(sample.label_image, LABELS)
    assert sample.cell_classes.tolist() == [1, 2, IGNORE, IGNORE, IGNORE]
    assert sample.pixel_size_um == 0.3
    assert data.sample(1).pixel_size_um is None
    assert data.sample(1).image.max() == 1001
    assert set(np.unique(sample.class_map)) == {0, 1, 2, IGNORE}
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy.sample(0).image, sample.image)


def test_split_from_the_fields_table(root):
    (root / "fields.csv").write_text(FIELDS)
    assert LiveDeadDataset(root=root, split="val").names == ("B2",)
    with pytest.raises(DataError, match="unknown split 'test'; need one of: train, val"):
        LiveDeadDataset(root=root, split="test")


def test_without_fields_table(root):
    data = LiveDeadDataset(root=root)
    assert data.groups == ("A1", "B2")
    with pytest.raises(DataError, match=r"fields\.csv is missing; need a table with image"):
        LiveDeadDataset(root=root, split="val")


def test_byte_order_mark_and_spaces_in_tables(root):
    (root / "cells.csv").write_text("\ufeff" + CELLS.replace(",", " , "), encoding="utf-8")
    assert LiveDeadDataset(root=root).sample(1).cell_classes.tolist() == [2, 2, IGNORE, IGNORE, 1]


def test_unlisted_cells(root):
    (root / "cells.csv").write_text(CELLS.replace("A1.tif,2,dead\n", ""))
    with pytest.raises(DataError, match=r"A1\.tif: cells\.csv does not list \[2\]; .*unlisted=ignore"):
        LiveDeadDataset(root=root).sample(0)
    assert LiveDeadDataset(root=root, unlisted="ignore").sample(0).cell_classes.tolist() == [1, *[IGNORE] * 4]
    (root / "cells.csv").unlink()
    with pytest.raises(DataError, match=r"cells\.csv is missing; need a table with image, label, class"):
        LiveDeadDataset(root=root)
    assert set(LiveDeadDataset(root=root, unlisted="ignore").sample(0).cell_classes) == {IGNORE}
    with pytest.raises(ConfigError, match="unknown unlisted 'skip'"):
        LiveDeadDataset(root=root, unlisted="skip")


def test_listed_cells_without_pixels(root):
    (root / "cells.csv").write_text(CELLS + "A1,3,live\n")
    with pytest.raises(DataError, match=r"it lists \[3\], which have no pixel"):
        LiveDeadDataset(root=root, unlisted="ignore").sample(0)


def test_bad_rows_are_all_listed(root):
    bad = f"C3,1,live\nA1,{'9' * 5000},live\nA1,x,live\nA1,7,alive\nA1,1,dead\nA1,9\nA1,9,live,dead\nA1,0,live\n"
    (root / "cells.csv").write_text(CELLS + bad)
    with pytest.raises(DataError) as caught:
        LiveDeadDataset(root=root)
    text = str(caught.value)
    for words in (
        "cells.csv: 8 faults",
        "line 8: unknown image 'C3'",
        "line 9: label '999",
        "999 .. is no number from 1 up",
        "line 10: label 'x'",
        "line 11: class 'alive' is none of live, dead, uncertain",
        "line 12: label 1 of A1 for the second time",
        "line 13: other number of columns",
        "line 14: other number of columns",
        "line 15: label '0' is no number from 1 up",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("image\nA1\n", "image B2 has no row"),
        ("image\nA1\nA1\nB2\n", "line 3: image A1 for the second time"),
        ("image\nA1\nB2\nC3\n", "line 4: unknown image 'C3'"),
        ("image,pixel_size_um\nA1,nan\nB2,-1\n", "pixel_size_um 'nan' is no positive number; line 3"),
        ("image,well\nA1,2\nB2,3\n", "has the columns image, well; need image (and group, split, pixel_size_um)"),
        ("", "has the columns (none)"),
        ("a" * 5000, f"has the columns {'a' * 80}...; need image"),
    ],
)
def test_bad_fields_table(root, rows, words):
    (root / "fields.csv").write_text(rows)
    with pytest.raises(DataError) as caught:
        LiveDeadDataset(root=root)
    assert words in str(caught.value)


def test_tables_that_are_not_text(root):
    (root / "cells.csv").write_bytes(b"image,label,class\n\xff\xfe")
    with pytest.raises(DataError, match="need a CSV table in UTF-8"):
        LiveDeadDataset(root=root)


def test_missing_labels_and_other_sizes(root):
    (root / "labels" / "A1.tif").unlink()
    tifffile.imwrite(root / "labels" / "B2.tif", LABELS[1:])
    with pytest.raises(
        DataError, match=r"2 faults: A1\.tif has no label file; B2\.tif is \(12, 16\) px but B2\.tif is"
    ):
        LiveDeadDataset(root=root)


def test_another_number_of_channels(root):
    with pytest.raises(DataError, match=r"2 faults: A1\.tif has 2 channels; B2\.tif has 2 channels; need 3 channels"):
        LiveDeadDataset(root=root, channels=["hoechst", "calcein:live", "pi:dead"])


def test_giant_cell_numbers_are_refused(root):
    tifffile.imwrite(root / "labels" / "A1.tif", np.full((12, 16), 2**31 - 1, np.uint32))
    with pytest.raises(DataError, match="numbers a cell 2147483647; need numbers up to 16777216"):
        LiveDeadDataset(root=root, unlisted="ignore").sample(0)


def add_coco(root, **image):
    names = ["live", "dead", "uncertain"]
    record = {
        "images": [{"id": 1, "file_name": "C3.tif", "width": 16, "height": 12, **image}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": i,
                "segmentation": [[i * 4, 1, i * 4 + 3, 1, i * 4 + 3, 9, i * 4, 9]],
            }
            for i in (1, 2, 3)
        ],
    }
    (root / "instances_val.json").write_text(json.dumps(record))
    tifffile.imwrite(
        root / "images" / "C3.tif", np.stack([LABELS * 51, LABELS]).astype(np.uint8), photometric="minisblack"
    )


def test_coco_form(root):
    add_coco(root)
    data = LiveDeadDataset(root=root, split="val")
    assert data.classes == ("background", "live", "dead")
    assert data.names == ("C3",)
    assert data.sample(0).cell_classes.tolist() == [1, 2, IGNORE]
    for split in ("train", None):
        with pytest.raises(DataError, match=f"unknown split {split!r}; need one of: val"):
            LiveDeadDataset(root=root, split=split)


def test_what_the_coco_file_calls_an_image_and_the_classes(root):
    tables = LiveDeadDataset(root=root)
    assert (tables.describe(0), tables.category_ids, tables.skipped) == ({}, (), ())
    add_coco(root)
    data = LiveDeadDataset(root=root, split="val")
    path = root / "instances_val.json"
    record = json.loads(path.read_text())
    ids = {category["name"]: category["id"] for category in record["categories"]}
    assert data.category_ids == (ids["live"], ids["dead"])
    assert data.describe(0) == {key: record["images"][0][key] for key in ("id", "file_name")}
    record["annotations"][0]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"polygon of 3 numbers; .*data\.faulty_cells=skip"):
        LiveDeadDataset(root=root, split="val")
    assert len(LiveDeadDataset(root=root, split="val", faulty_cells="skip").skipped) == 1


def test_restored_counts(root):
    add_coco(root, scale={"R": [-10, 500], "G": [0, 65535.0]})
    plain = LiveDeadDataset(root=root, split="val")
    data = LiveDeadDataset(root=root, split="val", restore_counts=True)
    image = data.sample(0).image
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0], -10 + LABELS * 51 * 2.0)
    np.testing.assert_allclose(image[1], LABELS * 257.0, rtol=1e-6)
    assert len(data.fingerprint()) == 64
    assert data.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize(
    "scale",
    [
        None,
        {"R": [0, 1]},
        {"R": [0, 1], "G": [0, float("nan")]},
        [[0, 1], [0, 1]],
        {"R": 1},
        {"R": [0, 1], "G": [0, 10**400]},
        {"R": [0, 1], "G": [0, 1e300]},
    ],
)
def test_scales_that_cannot_be_used(root, scale):
    add_coco(root, scale=scale)
    with pytest.raises(DataError, match=r"image C3\.tif has the scale .* for each of 2 channels"):
        LiveDeadDataset(root=root, split="val", restore_counts=True)


def test_counts_can_only_be_restored_where_they_were_scaled(root):
    with pytest.raises(ConfigError, match=r"restore_counts for .* need COCO annotations"):
        LiveDeadDataset(root=root, restore_counts=True)
    add_coco(root, scale={"R": [-10, 500], "G": [0, 65535.0]})
    tifffile.imwrite(root / "images" / "C3.tif", np.zeros((2, 12, 16), np.uint16), photometric="minisblack")
    with pytest.raises(DataError, match="C3 is uint16, so its counts were never scaled"):
        LiveDeadDataset(root=root, split="val", restore_counts=True).sample(0)


def test_fingerprint_follows_labels_and_tables(root):
    seen = {LiveDeadDataset(root=root).fingerprint()}
    assert LiveDeadDataset(root=root).fingerprint() in seen
    (root / "cells.csv").write_text(CELLS.replace("live", "dead"))
    seen.add(LiveDeadDataset(root=root).fingerprint())
    tifffile.imwrite(root / "labels" / "A1.tif", LABELS[::-1])
    seen.add(LiveDeadDataset(root=root).fingerprint())
    assert len(seen) == 3


@pytest.mark.shared
def test_shared_set():
    if not SHARED.is_dir():
        pytest.skip("the real images are not beside the checkout")
    channels = ["pi:dead", "brightfield", "hoechst:nuclear"]
    data = LiveDeadDataset(root=SHARED, split="val", channels=channels, restore_counts=True)
    assert len(data) == 12
    assert [c.role for c in data.channels] == ["dead", "", "nuclear"]
    classes = np.concatenate([data.sample(i).cell_classes for i in range(12)])
    assert [(classes == k).sum() for k in (1, 2, IGNORE)] == [336, 104, 10]  # the counts of its README
    sample = data.sample(0)
    np.testing.assert_array_equal(sample.label_image, read_label_image(SHARED / "labels" / f"{sample.name}.png"))
    scale = json.loads((SHARED / "instances_val.json").read_text())["images"][0]["scale"]["R"]
    stored = read_image(SHARED / "images" / f"{sample.name}.png")[0][0].astype(np.float64)
    np.testing.assert_allclose(sample.image[0], scale[0] + stored / 255 * (scale[1] - scale[0]), rtol=1e-5, atol=1e-2)
    assert sample.pixel_size_um == 0.3112
