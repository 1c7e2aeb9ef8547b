"""Oracles: run lengths counted pixel by pixel here, pycocotools' masks, and label images written as such a table."""

import csv
import pickle

import imagecodecs
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cellvision.data.dataset import CellDataset
from cellvision.data.sartorius import SartoriusDataset, read_runs
from cellvision.data.synthetic import SyntheticCells
from cellvision.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
COLUMNS = (
    "id", "annotation", "width", "height", "cell_type",
    "plate_time", "sample_date", "sample_id", "elapsed_timedelta",
)  # fmt: skip
SHAPE = (5, 8)


def to_text(mask):
    """Pixel by pixel along the rows, counted from 1."""
    words, length = [], 0
    for number, is_cell in enumerate([*mask.ravel().tolist(), False], start=1):
        if is_cell:
            length += 1
        elif length:
            words += [number - length, length]
            length = 0
    return " ".join(map(str, words))


def write_table(path, rows, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def make_row(name, annotation, *, shape=SHAPE, kind="cort", **others):
    return {
        "id": name, "annotation": annotation, "height": shape[0], "width": shape[1], "cell_type": kind,
        "plate_time": "11h30m00s", "sample_date": "2019-06-16", "elapsed_timedelta": "0 days 11:30:00",
        "sample_id": f"{kind}_{name}", **others,
    }  # fmt: skip


def write(root, rows, *, images=None):
    """The competition's folder; images default to a noisy one of its size for each id."""
    (root / "train").mkdir(exist_ok=True)
    write_table(root / "train.csv", rows)
    shapes = {row["id"]: (int(row["height"]), int(row["width"])) for row in rows} if images is None else images
    for name, shape in shapes.items():
        pixels = RNG.integers(0, 256, shape).astype(np.uint8)
        (root / "train" / f"{name}.png").write_bytes(imagecodecs.png_encode(pixels))
    return root


def test_runs_go_along_the_rows_from_pixel_1():
    assert read_runs("2 2 7 1", pixels=10).tolist() == [1, 2, 3, 1]
    assert read_runs("1 3 4 7", pixels=10).tolist() == [0, 3, 0, 7]  # two runs that touch, to the last pixel


def test_masks_are_those_that_were_written(tmp_path):
    masks = {name: RNG.random((3, 13, 9)) < 0.3 for name in ("a", "b")}
    rows = [make_row(name, to_text(mask), shape=(13, 9)) for name, stack in masks.items() for mask in stack]
    data = SartoriusDataset(root=write(tmp_path, rows))
    assert isinstance(data, CellDataset)
    assert (data.names, data.groups) == (("a", "b"), ("cort_a", "cort_b"))
    assert [channel.name for channel in data.channels] == ["grey"]
    for index, stack in enumerate(masks.values()):
        sample = data.sample(index)
        first = np.where(stack.any(0), stack.argmax(0) + 1, 0)
        np.testing.assert_array_equal(sample.label_image, first)
        np.testing.assert_array_equal(sample.image[0], imagecodecs.imread(data._paths[index]))
        areas = [int(read_runs(to_text(mask), pixels=117)[1::2].sum()) for mask in stack]
        assert areas == coco_mask.area(coco_mask.encode(np.asfortranarray(stack.transpose(1, 2, 0), np.uint8))).tolist()


def test_generated_cells_come_back(tmp_path):
    cells = SyntheticCells(fields=2, height=64, width=80, cells=(5, 9))
    rows, labels = [], []
    for index, name in enumerate(cells.names):
        labels.append(cells.sample(index).label_image)
        numbers = [n for n in np.unique(labels[-1]) if n]
        rows += [make_row(name, to_text(labels[-1] == n), shape=(64, 80)) for n in numbers]
    data = SartoriusDataset(root=write(tmp_path, rows), overlap="smallest")
    for index, expected in enumerate(labels):
        numbers = np.unique(expected, return_inverse=True)[1].reshape(expected.shape)
        np.testing.assert_array_equal(data.sample(index).label_image, numbers)


def test_a_pixel_claimed_twice(tmp_path):
    root = write(tmp_path, [make_row("a", "1 8"), make_row("a", "2 1 9 3"), make_row("a", "9 2")])
    assert SartoriusDataset(root=root).sample(0).label_image.ravel()[:11].tolist() == [1] * 8 + [2, 2, 2]
    smallest = SartoriusDataset(root=root, overlap="smallest").sample(0).label_image.ravel()[:11].tolist()
    assert smallest == [1, 2, 1, 1, 1, 1, 1, 1, 3, 3, 2]
    with pytest.raises(ConfigError, match=r"overlap 'last'; need one of: first, smallest"):
        SartoriusDataset(root=root, overlap="last")


def test_classes_are_cell_types(tmp_path):
    root = write(tmp_path, [make_row("a", "1 2", kind="shsy5y"), make_row("b", "1 2", kind="astro")])
    data = SartoriusDataset(root=root)
    assert data.classes == ("background", "astro", "shsy5y")
    assert [data.sample(i).cell_classes.tolist() for i in (0, 1)] == [[2], [1]]
    chosen = SartoriusDataset(root=root, classes=["shsy5y", "cort", "astro"])
    assert [chosen.sample(i).cell_classes.tolist() for i in (0, 1)] == [[1], [3]]
    with pytest.raises(DataError, match=r"types shsy5y; need a class for each .*; try: classes=\[astro,shsy5y\]"):
        SartoriusDataset(root=root, classes=["astro", "cort"])


def test_groups(tmp_path):
    wells = {"a": "E1", "b": "E1", "c": "F2"}
    rows = [make_row(name, "1 2", sample_id=f"cort[pre]_{well}_Vessel-1_Ph_{name}") for name, well in wells.items()]
    root = write(tmp_path, rows)
    assert len(set(SartoriusDataset(root=root).groups)) == 3
    assert SartoriusDataset(root=root, group_pattern=r"_([A-H]\d+)_").groups == ("E1", "E1", "F2")
    assert SartoriusDataset(root=root, group_column=None).groups == ("a", "b", "c")


def test_settings_that_change_the_samples_change_the_fingerprint(tmp_path):
    root = write(tmp_path, [make_row("a", "1 8"), make_row("b", "2 1 9 3")])
    prints = {
        SartoriusDataset(root=root).fingerprint(),
        SartoriusDataset(root=root, overlap="smallest").fingerprint(),
        SartoriusDataset(root=root, group_column=None).fingerprint(),
    }
    assert len(prints) == 3
    again = pickle.loads(pickle.dumps(SartoriusDataset(root=root)))
    assert again.fingerprint() in prints


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ("", "annotation is empty"),
        ("1 2 3", "annotation of 3 numbers, which is odd"),
        ("0 2", "something else than whole numbers from 1 up"),
        ("1 0", "something else than whole numbers from 1 up"),
        ("1 -2", "something else than whole numbers from 1 up"),
        ("1 2.5", "something else than whole numbers from 1 up"),
        ("1 ²", "something else than whole numbers from 1 up"),
        ("1 99999999999999999999", "something else than whole numbers from 1 up"),
        ("nan 1", "something else than whole numbers from 1 up"),
        ("5 3 7 1", "runs overlap or are not in order"),
        ("9 2 1 2", "runs overlap or are not in order"),
        ("40 2", "run up to pixel 41 of 40"),
        ("1 999999999", "run up to pixel 999999999 of 40"),
    ],
)
def test_annotations_that_cannot_be_read_are_named_or_skipped(tmp_path, annotation, said):
    root = write(tmp_path, [make_row("a", "1 2"), make_row("a", annotation), make_row("a", "4 2")])
    with pytest.raises(
        DataError, match=rf"train\.csv: 1 fault: line 3: .*{said}, in a; need .* data\.faulty_cells=skip"
    ):
        SartoriusDataset(root=root)
    data = SartoriusDataset(root=root, faulty_cells="skip")
    assert data.sample(0).label_image.ravel()[:6].tolist() == [1, 1, 0, 2, 2, 0]
    assert len(data.skipped) == 1
    assert said in data.skipped[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "../a"}, r"id '\.\./a' is no name of a file"),
        ({"id": "a\\b"}, r"id 'a.*b' is no name of a file"),
        ({"id": ""}, r"id '' is no name of a file"),
        ({"width": "0"}, r"width '0' is no number from 1 up"),
        ({"height": "5.0"}, r"height '5\.0' is no number from 1 up"),
        ({"id": "ä" * 126}, r"id 'ä+ \.\. is no name of a file"),
        ({"cell_type": ""}, r"no cell_type"),
        ({"cell_type": "background"}, r"cell_type 'background' is no class"),
        ({"cell_type": "uncertain"}, r"cell_type 'uncertain' is no class"),
        ({"sample_id": ""}, r"a has no group"),
        ({"height": 8}, r"a is \(8, 8\) px, and \(5, 8\) px in an earlier line"),
        ({"sample_id": "x"}, r"a is of 'x', and of 'cort_a' in an earlier line"),
    ],
)
@pytest.mark.parametrize("faulty_cells", ["error", "skip"])
def test_rows_that_make_no_sense_are_never_skipped(tmp_path, row, said, faulty_cells):
    write(tmp_path, [make_row("a", "1 2")])
    write_table(tmp_path / "train.csv", [make_row("a", "1 2"), {**make_row("a", "4 2"), **row}])
    with pytest.raises(DataError, match=rf"train\.csv: 1 fault: line 3: {said}"):
        SartoriusDataset(root=tmp_path, faulty_cells=faulty_cells)


def test_all_faults_are_listed_at_once(tmp_path):
    root = write(tmp_path, [make_row("a", text) for text in ("1 2", "", "1", "50 1")])
    with pytest.raises(DataError, match=r"3 faults: line 3: .*; line 4: .*; line 5: "):
        SartoriusDataset(root=root)


def test_tables_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv is missing; need a table with id, annotation, .*sample_id"):
        SartoriusDataset(root=tmp_path)
    table = tmp_path / "train.csv"
    write_table(table, [], columns=COLUMNS[:4])
    with pytest.raises(DataError, match=r"columns id, annotation, width, height; need also cell_type, sample_id"):
        SartoriusDataset(root=tmp_path)
    write_table(table, [])
    with pytest.raises(DataError, match=r"train\.csv has no row"):
        SartoriusDataset(root=tmp_path)
    table.write_text(f"{','.join(COLUMNS)}\na,1 2,8,5\n")
    with pytest.raises(DataError, match=r"line 2: other number of columns than the first line"):
        SartoriusDataset(root=tmp_path)
    table.write_bytes(b"id,\xff\xfe")
    with pytest.raises(DataError, match=r"need a CSV table in UTF-8"):
        SartoriusDataset(root=tmp_path)
    with pytest.raises(ConfigError, match=r"faulty_cells 'drop'; need one of: error, skip"):
        SartoriusDataset(root=tmp_path, faulty_cells="drop")


def test_images_missing_damaged_or_of_another_size_are_listed(tmp_path):
    rows = [make_row(name, "1 2") for name in "abc"]
    root = write(tmp_path, rows, images={"a": (8, 5)})
    (root / "train" / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3 faults: ") as caught:
        SartoriusDataset(root=root)
    text = str(caught.value)
    assert "a.png is (8, 5) px, the table says (5, 8)" in text
    assert "b.png" in text
    assert "c.png is missing" in text
    assert (text.count("; need "), text.count("; try: ")) == (1, 1)
    assert "data.root" in text.partition("; try: ")[2]
