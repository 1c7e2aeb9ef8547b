"""Oracles: pycocotools decoding, the label images beside the shared data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cellvision.bundle import Channel
from cellvision.data.coco import CocoDataset
from cellvision.data.coco.file import load_categories
from cellvision.data.coco.masks import compute_runs, find_fault, paint_cells
from cellvision.data.dataset import CellDataset
from cellvision.data.images import read_label_image
from cellvision.errors import ConfigError, DataError
from cellvision.types import IGNORE

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
HEIGHT, WIDTH = 20, 30


def square(left, top, size):
    return [[left, top, left + size, top, left + size, top + size, left, top + size]]


def rle(mask, *, compressed):
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    columns = mask.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(columns, prepend=0)) if columns.size else []
    return {"size": encoded["size"], "counts": np.diff([0, *edges, columns.size]).tolist()}


def coco():
    return {
        "images": [
            {"id": 7, "file_name": "a.tif", "width": WIDTH, "height": HEIGHT, "group": 3, "um_per_pixel": 0.5},
            {"id": 9, "file_name": "b.tif", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 5, "name": "dead"}, {"id": 2, "name": "live"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "segmentation": square(2, 3, 5)},
            {"id": 2, "image_id": 9, "category_id": 2, "segmentation": square(1, 1, 4)},
            {"id": 3, "image_id": 7, "category_id": 2, "segmentation": square(5, 3, 5)},
        ],
    }


@pytest.fixture
def write(tmp_path):
    def make(record, **options):
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in ("a.tif", "b.tif"):
            tifffile.imwrite(tmp_path / "images" / name, np.full((HEIGHT, WIDTH), 4000, np.uint16))
        path = tmp_path / "cells.json"
        path.write_text(record if isinstance(record, str) else json.dumps(record))
        return CocoDataset(annotations=path, images=tmp_path / "images", **options)

    return make


def test_samples(write):
    data = write(coco())
    assert isinstance(data, CellDataset)
    assert len(data) == 2
    assert data.classes == ("background", "live", "dead")  # in the order of the category ids
    assert data.channels == (Channel(name="grey"),)
    assert data.names == ("a", "b")
    assert data.groups == ("3", "b")
    sample = data.sample(0)
    expected = np.zeros((HEIGHT, WIDTH), np.int32)
    expected[3:8, 5:10] = 2
    expected[3:8, 2:7] = 1  # the first keeps what both claim
    np.testing.assert_array_equal(sample.label_image, expected)
    assert sample.cell_classes.tolist() == [2, 1]
    assert (sample.name, sample.group, sample.pixel_size_um) == ("a", "3", 0.5)
    assert sample.image.dtype == np.uint16


def test_categories_choose_and_order_classes(write):
    data = write(coco(), categories=["dead", "live"], channels=["hoechst:nuclear"])
    assert data.classes == ("background", "dead", "live")
    assert data.channels == (Channel(name="hoechst", role="nuclear"),)
    assert data.sample(0).cell_classes.tolist() == [1, 2]


def test_ignored_categories_and_crowds_keep_their_labels(write):
    record = coco()
    record["annotations"].insert(0, {**record["annotations"][0], "id": 8, "iscrowd": 1, "category_id": 5})
    record["annotations"][0]["segmentation"] = square(0, 0, 12)
    data = write(record, ignore=["live"])
    assert data.classes == ("background", "dead")
    sample = data.sample(0)
    assert sample.cell_classes.tolist() == [IGNORE, 1, IGNORE]
    assert sample.label_image[4, 4] == 2  # the crowd is first in the file but takes only what no cell claims
    assert (sample.label_image == 1).sum() == 144 - 40
    assert set(np.unique(sample.class_map)) == {0, 1, IGNORE}


def test_annotations_as_an_object_by_id(write):
    record = coco()
    plain = write(record).sample(0).label_image
    record["annotations"] = {str(a["id"]): a for a in record["annotations"]}
    np.testing.assert_array_equal(write(record).sample(0).label_image, plain)


def test_images_without_cells_and_pattern(write):
    record = coco()
    record["annotations"] = record["annotations"][:1]
    record["images"][1]["group"] = None
    data = write(record, pattern="b*")
    assert data.names == data.groups == ("b",)
    assert data.sample(0).label_image.max() == 0
    assert len(data.sample(0).cell_classes) == 0
    with pytest.raises(DataError, match=r"has no image named like 'x\*'; need at least one"):
        write(record, pattern="x*")
    with pytest.raises(DataError, match=r'data\.pattern="\*"; \[7\] in it stands for one character of these'):
        write(record, pattern="x[7]")


def test_stems_that_repeat_take_their_folders(write, tmp_path):
    record = coco()
    for image, folder in zip(record["images"], ("p1", "p2"), strict=True):
        (tmp_path / "images" / folder).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "images" / folder / "a.tif", np.zeros((HEIGHT, WIDTH), np.uint8))
        image["file_name"] = f"{folder}/a.tif"
    assert write(record).names == ("p1_a", "p2_a")
    record["images"][1]["file_name"] = "p1/a.tiff"
    tifffile.imwrite(tmp_path / "images/p1/a.tiff", np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(DataError, match="p1_a is the name of 2 images"):
        write(record)


def test_fingerprint_follows_the_data(write, tmp_path):
    data = write(coco())
    before = data.fingerprint()
    assert len(before) == 64
    assert before == write(coco()).fingerprint()
    assert before != write(coco(), ignore=["dead"]).fingerprint()
    tifffile.imwrite(tmp_path / "images" / "b.tif", np.full((HEIGHT, WIDTH), 4001, np.uint16))
    assert before != data.fingerprint()


def change(path, value):
    """A function that sets, or with KeyError deletes, what is found at ``path``."""

    def apply(record):
        *outer, last = path
        for key in outer:
            record = record[key]
        if value is KeyError:
            del record[last]
        else:
            record[last] = value

    return apply


A0 = ("annotations", 0)
NAN = float("nan")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("images",), KeyError, "lacks the lists images"),
        (("annotations",), 5, "lacks the lists annotations"),
        (("images", 0, "width"), KeyError, "image 7 lacks width"),
        (("images", 0, "id"), None, "image no. 1: id is None"),
        (("images", 0, "id"), [1], "image no. 1: id is [1]"),
        (("images", 0), 5, "image no. 1 is no object"),
        (("images", 0, "height"), -2, "image 7 has the height -2"),
        (("images", 0, "width"), "30", "image 7 has the width '30'"),
        (("images", 0, "um_per_pixel"), 0, "image 7 has the um_per_pixel 0"),
        (("images", 0, "um_per_pixel"), 10**400, "image 7 has the um_per_pixel 1000"),
        (("images", 0, "um_per_pixel"), NAN, "image 7 has the um_per_pixel nan"),
        (("images", 0, "height"), 10**400, "image 7 has the height 1000"),
        (("images", 0), {"id": 7, "file_name": "a.tif", "width": 2**18, "height": 2**14}, "has 262144 x 16384 px"),
        (("images", 0, "file_name"), "\ud800.tif", "image 7 has the file_name '\\ud800.tif'"),
        (("images", 0, "file_name"), "a\0.tif", "image 7 has the file_name 'a\\x00.tif'"),
        (("images", 0, "file_name"), "x" * 300 + ".tif", "xxx .. cannot be opened (File name too long)"),
        (("images", 0, "file_name"), "../a.tif", "image 7 has the file_name '../a.tif'"),
        (("images", 0, "file_name"), "/etc/a.tif", "image 7 has the file_name '/etc/a.tif'"),
        (("images", 0, "file_name"), "..\\a.tif", "image 7 has the file_name"),
        (("images", 0, "file_name"), "C:\\a.tif", "image 7 has the file_name"),
        (("images", 1, "id"), 7, "image id 7 is given 2 times"),
        (("images", 1, "file_name"), "a.tif", "file_name 'a.tif' is given 2 times"),
        (("images", 1, "file_name"), ".\\a.tif", "file_name 'a.tif' is given 2 times"),
        (("categories", 1, "id"), 5, "category id 5 is given 2 times"),
        (("categories", 1, "name"), "dead", "category name 'dead' is given 2 times"),
        (("categories", 1, "name"), None, "category 2 has the name None"),
        (("categories", 1, "name"), " ", "category 2 has the name ' '"),
        (("categories", 1, "name"), "\ud800", "category 2 has the name '\\ud800'"),
        (("categories", 1, "name"), "background", "category 2 has the name 'background', and 2 cells"),
        ((*A0, "id"), 2, "annotation id 2 is given 2 times"),
        ((*A0, "segmentation"), KeyError, "annotation 1 lacks segmentation"),
        ((*A0, "image_id"), 99, "annotation 1 has the unknown image 99"),
        ((*A0, "image_id"), "7", "annotation 1 has the unknown image '7'"),
        ((*A0, "category_id"), 99, "annotation 1 has the unknown category 99"),
        ((*A0, "segmentation"), [], "annotation 1 of a.tif: empty segmentation"),
        ((*A0, "segmentation"), [[1, 2, 3, 4]], "polygon of 4 numbers"),
        ((*A0, "segmentation"), [[1, 2, 3, 4, 5, 6, 7]], "polygon of 7 numbers, which is odd"),
        ((*A0, "segmentation"), [[1, 2, 3, 4, 5, NAN]], "polygon with NaN"),
        ((*A0, "segmentation"), [["a"] * 6], "polygon with something else than numbers"),
        ((*A0, "segmentation"), [["1", "1", "9", "1", "9", "9"]], "polygon with something else than numbers"),
        ((*A0, "segmentation"), [[1, 1, 9, 1, 9, 10**400]], "polygon with something else than numbers"),
        ((*A0, "segmentation"), [[1, 1, 9, 1, 9, None]], "polygon with something else than numbers"),
        ((*A0, "segmentation"), [[1, 1, 9, 1, [9], 9]], "polygon with something else than numbers"),
        ((*A0, "segmentation"), [[3, 3, 3, 3, 3, 3]], "annotation 1 of a.tif: polygons without a pixel"),
        ((*A0, "segmentation"), [[3.1, 3.6, 9.3, 3.6, 9.3, 3.7, 3.1, 3.7]], "polygons without a pixel"),
        ((*A0, "iscrowd"), "0", "annotation 1 of a.tif: iscrowd is '0', neither 0 nor 1"),
        ((*A0, "iscrowd"), [], "annotation 1 of a.tif: iscrowd is [], neither 0 nor 1"),
        ((*A0, "segmentation"), [5], "polygon of 1 numbers"),
        ((*A0, "segmentation"), square(-3, 0, 9), "polygon outside its image (x -3..6"),
        ((*A0, "segmentation"), square(25, 5, 9), "polygon outside its image (x 25..34"),
        ((*A0, "segmentation"), square(5, 15, 9), "polygon outside its image (x 5..14, y 15..24)"),
        ((*A0, "segmentation"), "abc", "neither polygons nor RLE"),
        ((*A0, "segmentation"), {"size": [5, 5], "counts": [25]}, "RLE of size [5, 5]"),
        ((*A0, "segmentation"), {"size": 5, "counts": [25]}, "RLE of size 5"),
        ((*A0, "segmentation"), {"size": [], "counts": [25]}, "RLE of size []"),
        ((*A0, "segmentation"), {"size": [10**300, -6], "counts": [25]}, "RLE of size [100000"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": [1, 2]}, "do not add up to 600"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": [700, -200, 100]}, "do not add up to 600"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": [2**63 - 1, 2**63 - 1, 602]}, "do not add up to 600"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": [2**70]}, "cannot be read"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": [1.5, 598.5]}, "cannot be read"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": [600]}, "RLE without a pixel"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": []}, "cannot be read"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": "PPP"}, "cannot be read"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": "o" * 40 + "0"}, "cannot be read"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": "µ"}, "cannot be read"),
        ((*A0, "segmentation"), {"size": [20, 30], "counts": ""}, "cannot be read"),
        (("images", 0, "width"), 31, "a.tif is 20x30 px, the JSON says 20x31"),
        (("images", 0, "file_name"), "c.tif", "c.tif is missing"),
    ],
    ids=str,
)
def test_each_fault_is_named(write, path, value, words):
    record = coco()
    change(path, value)(record)
    with pytest.raises(DataError) as caught:
        write(record)
    assert words in str(caught.value)
    assert "cells.json" in str(caught.value)
    assert "; need " in str(caught.value)


def test_all_faults_are_counted_and_the_first_listed(write):
    record = coco()
    record["annotations"] += [{**record["annotations"][0], "id": 100 + i, "image_id": 50 + i} for i in range(30)]
    record["annotations"][0]["category_id"] = 77
    with pytest.raises(DataError, match=r"31 faults: annotation 1 has the unknown category 77; .*; and 21 more; need"):
        write(record)


@pytest.mark.parametrize(
    ("path", "value"), [(("images", 0, "height"), -2), (("images", 0), 5), (("categories", 0), {"id": 5})], ids=str
)
def test_the_cells_of_a_faulty_entry_are_no_faults_of_their_own(write, path, value):
    record = coco()
    change(path, value)(record)
    with pytest.raises(DataError, match=r"cells\.json: 1 fault: (image|category) "):
        write(record)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[]", "is a JSON list"), ("[" * 100_000, "is not JSON"), ("\xff\xfe", "is not JSON")],
)
def test_files_that_are_no_coco(write, text, words):
    with pytest.raises(DataError, match=words):
        write(text)


def test_missing_and_damaged_files(write, tmp_path):
    with pytest.raises(DataError, match="is no file"):
        CocoDataset(annotations=tmp_path / "gone.json", images=tmp_path)
    write(coco())
    (tmp_path / "images" / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"a\.tif cannot be decoded|a\.tif has no page") as caught:
        CocoDataset(annotations=tmp_path / "cells.json", images=tmp_path / "images")
    text = str(caught.value)
    assert (text.count("; need "), text.count("; try: ")) == (1, 1)
    assert "data.root" in text.partition("; try: ")[2]


def test_huge_json_is_refused(write, tmp_path, monkeypatch):
    monkeypatch.setattr("cellvision.data.coco.tables.MAX_JSON_BYTES", 10)
    with pytest.raises(DataError, match="over 2 GiB"):
        write(coco())


def test_unknown_and_left_over_categories(write):
    with pytest.raises(DataError, match="unknown category 'lives'; need one of: dead, live; try: 'live'"):
        write(coco(), categories=["lives"])
    with pytest.raises(DataError, match="unknown category 'x'"):
        write(coco(), ignore=["x"])
    with pytest.raises(DataError, match=r"cells of the categories live; need a class for each .*ignore=\[live\]"):
        write(coco(), categories=["dead"])
    with pytest.raises(ConfigError, match="at least one class besides background"):
        write(coco(), ignore=["dead", "live"])
    with pytest.raises(ConfigError, match=r"both name dead; need each .* in one of them; try: data\.ignore=\[\]$"):
        write(coco(), categories=["dead", "live"], ignore=["dead"])
    with pytest.raises(ConfigError, match="each once"):
        write(coco(), categories=["dead", "live", "dead"])


def test_a_category_background_without_cells_is_none(write):
    record = coco()
    record["categories"].insert(0, {"id": 0, "name": "background"})
    data = write(record)
    assert data.classes == ("background", "live", "dead")
    assert data.category_ids == (2, 5)
    assert data.sample(0).cell_classes.tolist() == [2, 1]
    assert load_categories(data._file.path) == ("live", "dead")


def test_uncertain_cells_are_of_no_class(write):
    record = coco()
    record["categories"][0]["name"] = "uncertain"
    for options in ({}, {"ignore": ["uncertain"]}, {"categories": ["live"]}):
        data = write(record, **options)
        assert data.classes == ("background", "live")
        assert data.sample(0).cell_classes.tolist() == [IGNORE, 1]
    with pytest.raises(ConfigError, match="classes live, uncertain; need other names: 'uncertain' are cells whose"):
        write(record, categories=["live", "uncertain"])


def test_an_image_and_a_class_keep_their_names_in_the_file(write):
    data = write(coco(), pattern="b*", categories=["dead", "live"])
    assert data.describe(0) == {"id": 9, "file_name": "b.tif"}
    assert data.category_ids == (5, 2)


def test_images_must_be_alike(write, tmp_path):
    write(coco())
    tifffile.imwrite(tmp_path / "images" / "c.tif", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    record = coco()
    record["images"][1]["file_name"] = "c.tif"
    with pytest.raises(DataError, match=r"1 fault: c\.tif has 3 channels; need 1 channels \(grey\), alike"):
        write(record)
    with pytest.raises(DataError, match=r"2 faults: a\.tif has 1 channels; b\.tif has 1 channels; need 2 channels"):
        write(coco(), channels=["x", "y"])
    with pytest.raises(ConfigError, match="unknown role of channel 'x' 'nuclei'"):
        write(coco(), channels=["x:nuclei"])
    with pytest.raises(ConfigError, match="need a name"):
        write(coco(), channels=[":dead"])
    with pytest.raises(ConfigError, match="each name once"):
        write(record, channels=["x", "x", "y"])


def test_swapped_channel_names_between_files(write, tmp_path):
    write(coco())
    for name, channels in {"a.tif": ["h", "pi"], "b.tif": ["pi", "h"]}.items():
        metadata = {"axes": "CYX", "Channel": {"Name": channels}}
        stains = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        tifffile.imwrite(tmp_path / "images" / name, stains, ome=True, photometric="minisblack", metadata=metadata)
    with pytest.raises(DataError, match=r"b\.tif has the channels pi, h; need 2 channels \(h, pi\)"):
        CocoDataset(annotations=tmp_path / "cells.json", images=tmp_path / "images")


masks = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).random((seed % 13 + 1, seed % 7 + 1)) < (seed % 5) / 4
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(mask=masks, compressed=st.booleans())
def test_rle_agrees_with_pycocotools(mask, compressed):
    height, width = mask.shape
    encoded = rle(mask, compressed=compressed)
    assert find_fault(encoded, height=height, width=width) == (None if mask.any() else "RLE without a pixel")
    runs = compute_runs(encoded, height=height, width=width)
    np.testing.assert_array_equal(paint_cells([(1, runs)], height=height, width=width), mask)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2
def test_damaged_rle_text_is_a_fault_or_a_mask():
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(400):
        encoded = rle(rng.random((7, 9)) < 0.3, compressed=True)
        text = list(encoded["counts"])
        for position in rng.integers(len(text), size=rng.integers(1, 3)):
            text[position] = chr(rng.integers(46, 114))
        encoded["counts"] = "".join(text)
        outcomes.append(find_fault(encoded, height=7, width=9))
        if outcomes[-1] is None:
            labels = paint_cells([(1, compute_runs(encoded, height=7, width=9))], height=7, width=9)
            np.testing.assert_array_equal(labels, coco_mask.decode(encoded))
    assert 0 < sum(fault is None for fault in outcomes) < 40


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    polygons=st.lists(
        st.lists(st.floats(-1, 16, width=32), min_size=6, max_size=14).filter(lambda p: len(p) % 2 == 0),
        min_size=1,
        max_size=3,
    )
)
def test_polygons_agree_with_pycocotools(polygons):
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 15, 17)))
    assert find_fault(polygons, height=15, width=17) == (None if expected.any() else "polygons without a pixel")
    runs = compute_runs(polygons, height=15, width=17)
    np.testing.assert_array_equal(paint_cells([(1, runs)], height=15, width=17), expected)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "pattern"), [("livedead_mcf7_nc", "*"), ("phase_usiigaci", "*"), ("dsb2018", "fluor_*")]
)
def test_shared_sets_agree_with_their_label_images(name, pattern):
    if not SHARED.is_dir():
        pytest.skip("the real images are not beside the checkout")
    root = SHARED / name
    data = CocoDataset(annotations=root / "instances_val.json", images=root / "images", pattern=pattern)
    for index in range(min(len(data), 8)):
        sample = data.sample(index)
        truth = read_label_image(root / "labels" / f"{sample.name}.png")
        assert sample.label_image.max() == truth.max() == len(sample.cell_classes)
        # dsb2018 holds polygons, simplified by up to 0.3 px; the others exact RLE
        differing = np.count_nonzero(sample.label_image != truth)
        assert differing <= (1e-3 * truth.size if name == "dsb2018" else 0)


@pytest.mark.shared
def test_shared_mixed_pictures_are_refused():
    if not SHARED.is_dir():
        pytest.skip("the real images are not beside the checkout")
    root = SHARED / "dsb2018"
    with pytest.raises(DataError, match=r'12 faults: histo_.* has 3 channels.*pattern="'):
        CocoDataset(annotations=root / "instances_val.json", images=root / "images")
